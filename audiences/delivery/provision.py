"""Making an audience in ODP before its first delivery, and looking at it again when somebody asks.

Apart from delivering: a making has its own lease, on the audience's row, and its own backoff. An audience that can't be
made waits alone; the install is braked by what becomes of its deliveries and by nothing else.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import structlog
from django.conf import settings
from django.db import Error, connection, transaction
from django.db.models.functions import Now

from audiences import naming, sessions
from audiences.delivery import backoff, claims, drafts, holds
from audiences.delivery.odp_account import Gate, client_of, mechanism_of
from audiences.models import Audience
from audiences.wake import wake_making
from odp.deadline import TooLateError
from odp.mechanisms import Refusal
from odp.outcomes import Answer, Outcome, readable

log = structlog.get_logger(__name__)

# How the reason begins when a making failed by an error of this service and not of ODP.
UNEXPECTED = "Unexpected error: "

# So that two workers at once don't both find the last place free. No delivery waits for longer than this statement.
_LOCK = "SELECT id FROM audiences_install WHERE id = %s FOR NO KEY UPDATE"
# Those that have failed least often first: one that fails for hours doesn't take the place of a new one.
_CLAIM = f"""
WITH waiting AS MATERIALIZED (
    SELECT audience.id, audience.hold_failures, audience.hold_until_at
    FROM audiences_audience AS audience
    JOIN audiences_lane AS lane ON lane.audience_id = audience.id
    JOIN audiences_install AS install ON install.id = audience.install_id
    WHERE install.id = %(install)s AND {claims.GOING} AND {claims.TO_MAKE}
        AND (SELECT count(*) FROM audiences_audience WHERE install_id = %(install)s
            AND making_until_at > clock_timestamp()) < {claims.MAKING_AT_ONCE}
), chosen AS (
    SELECT id FROM waiting ORDER BY hold_failures, hold_until_at NULLS FIRST, id LIMIT 1
)
UPDATE audiences_audience AS audience SET
    making_token = %(token)s, making_until_at = clock_timestamp() + make_interval(secs => %(lease)s)
FROM chosen WHERE audience.id = chosen.id
RETURNING audience.id, (SELECT count(*) FROM waiting) > 1
"""  # noqa: S608 — only constants of this room
_HOLD = """
UPDATE audiences_audience SET
    making_token = NULL, making_until_at = NULL, hold_failures = hold_failures + 1, hold_reason = %(reason)s,
    hold_since_at = coalesce(hold_since_at, clock_timestamp()),
    hold_until_at = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE id = %(audience)s AND making_token = %(token)s
"""
# What was asked for while this making was under way is still to be done.
_END = """
UPDATE audiences_audience SET
    making_token = NULL, making_until_at = NULL,
    hold_failures = 0, hold_reason = '', hold_since_at = NULL, hold_until_at = NULL,
    look_asked_at = CASE WHEN look_asked_at <= %(asked)s THEN NULL ELSE look_asked_at END,
    provisioned_at = CASE WHEN %(made)s THEN clock_timestamp() ELSE provisioned_at END,
    foreign_definition = %(foreign)s
WHERE id = %(audience)s AND making_token = %(token)s
"""


class Making(NamedTuple):
    """One audience that this worker makes now. Whoever has another token by then has taken it over."""

    audience: Audience
    token: uuid.UUID
    more: bool


# --- what a person asks for ----------------------------------------------------------------------------------

_NO_HOLD: dict[str, Any] = {"hold_failures": 0, "hold_reason": "", "hold_since_at": None, "hold_until_at": None}


def look_again(audience_id: int, *, unless_within: timedelta = timedelta(0)) -> None:
    """Have what it needs in ODP looked at, and made where it is gone. Its next delivery waits for that look."""
    made = Audience.objects.filter(pk=audience_id, provisioned_at__lte=Now() - unless_within)
    if unless_within:  # one look is enough for many that ask
        made = made.filter(look_asked_at=None)
    made.update(look_asked_at=Now(), **_NO_HOLD)


def try_now(*, install_id: int, audience_id: int | None = None) -> bool:
    """Let what failed to be made be tried again at once: one audience, or all of an install. False when none waits."""
    waiting = Audience.objects.filter(install=install_id, hold_failures__gt=0)
    if audience_id is not None:
        waiting = waiting.filter(pk=audience_id)
    return bool(waiting.update(hold_until_at=Now()))


def accept(audience_id: int, definition: str) -> bool:
    """A person takes the audience's definition in ODP for right. False when another one was found there meanwhile."""
    found = Audience.objects.filter(pk=audience_id, foreign_definition=definition).exclude(foreign_definition="")
    return bool(found.update(accepted_definition=definition, foreign_definition=""))


def use_id(audience_id: int, odp_id: str) -> None:
    """Let it have another id in ODP, where nothing of it is yet. Whoever was making it under the old one has lost it.

    Raises ``IntegrityError`` when another audience of the install has that id.
    """
    Audience.objects.filter(pk=audience_id).update(
        odp_id=odp_id,
        provisioned_at=None,
        look_asked_at=None,
        making_token=None,
        making_until_at=None,
        foreign_definition="",
        accepted_definition="",
        **_NO_HOLD,
    )


# --- what the workers do about it ----------------------------------------------------------------------------


def claim(install_id: int) -> Making | None:
    """Take the next audience that is to be made. None when there is none, or enough are being made."""
    token = uuid.uuid4()
    with _given_back_in_trouble(token):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(_LOCK, [install_id])
            cursor.execute(_CLAIM, {"install": install_id, "token": token, "lease": settings.LEASE_SECONDS})
            row = cursor.fetchone()
        return row and Making(Audience.objects.select_related("install").get(pk=row[0]), token, more=row[1])


@contextmanager
def _given_back_in_trouble(token: uuid.UUID) -> Iterator[None]:
    """A making whose database session is lost doesn't wait for the end of its lease."""
    try:
        yield
    except Error as error:
        if sessions.is_database_error(error):
            _give_back(token)
        raise


def provision_one(install_id: int, *, gate: Gate | None = None) -> bool:
    """Make one audience that waits for it. False when none may be tried now."""
    making = claim(install_id)
    if making is None:
        return False
    if making.more:
        wake_making(install_id)
    with _given_back_in_trouble(making.token):
        return _make(making, gate)


def _make(making: Making, gate: Gate | None) -> bool:
    audience = making.audience
    # All calls together get what one delivery may take, and so the lease outlives them.
    seconds = settings.DELIVERY_DEADLINE_SECONDS
    client = client_of(audience.install, ends_at=time.monotonic() + seconds, gate=gate)
    try:
        problem = mechanism_of(audience.install).ensure(
            client,
            audience.odp_id,
            naming.label(audience.slug),
            seconds=seconds,
            accepted=audience.accepted_definition,
        )
    except TooLateError:  # others stood at the gate for all that time: no fault of ODP
        _give_back(making.token)
        return False
    except Exception as error:  # a fault of ours is this audience's alone, too
        if sessions.is_database_error(error):  # PostgreSQL is away, and with it the place to write that down
            raise
        log.exception("making an audience failed", audience=audience.odp_id)
        first_line = next(iter(str(error).splitlines()), "") or "the log of the worker says more"
        problem = Answer(Outcome.RETRY_LATER, readable(UNEXPECTED + first_line), slow_probe=True)
    if isinstance(problem, Answer):
        _hold(making, problem)
    elif isinstance(problem, Refusal):
        _refuse(making, problem)
    elif _end(making, made=True):
        log.info("audience ready in ODP", audience=audience.odp_id)
    return True


def _give_back(token: uuid.UUID) -> None:
    made = Audience.objects.filter(making_token=token)
    sessions.when_back(lambda: made.update(making_token=None, making_until_at=None), seconds=settings.LEASE_SECONDS)


def _hold(making: Making, answer: Answer) -> None:
    """Nobody else waits for this one: it is tried again after a pause of its own."""
    audience = making.audience
    seconds = backoff.pause_seconds(failures=audience.hold_failures, answer=answer)
    values: dict[str, Any] = {
        "audience": audience.pk,
        "token": making.token,
        "seconds": seconds,
        "reason": answer.reason,
    }
    with connection.cursor() as cursor:
        cursor.execute(_HOLD, values)
    if not audience.hold_failures:
        log.warning("audience on hold", audience=audience.odp_id, seconds=round(seconds, 1), reason=answer.reason)


def _refuse(making: Making, refusal: Refusal) -> None:
    """A person has to act. The lane's row before the audience's, as whoever unblocks takes them."""
    audience = making.audience
    with transaction.atomic():
        newly = holds.block_audience(audience.pk, refusal.reason)
        if not _end(making, made=False, foreign=refusal.definition):
            transaction.set_rollback(True)  # whoever makes it now gets the same answer
            return
    if newly:
        log.error("blocked", audience=audience.odp_id, reason=refusal.reason)


def _end(making: Making, *, made: bool, foreign: str = "") -> bool:
    """Write down how it ended. False when another worker has taken it over."""
    values: dict[str, Any] = {
        "audience": making.audience.pk,
        "token": making.token,
        "made": made,
        "asked": making.audience.look_asked_at,
        "foreign": foreign,
    }
    with connection.cursor() as cursor:
        cursor.execute(_END, values)
        ended = bool(cursor.rowcount)
    if ended and made:
        drafts.accepted(making.audience.install_id)
    return ended
