"""Provisioning: create an audience in ODP before its first delivery, and check it again on request.

It is separate from delivery, with its own lease on the audience's row and its own backoff. An audience that can't be
created waits alone, because only failed deliveries start the backoff of an install.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

import structlog
from django.conf import settings
from django.db import Error, transaction
from django.db.models import Case, F, Func, When
from django.db.models.functions import Now

from audiences import naming, sessions, sql
from audiences.delivery import backoff, claims, drafts, holds, shared_ids
from audiences.delivery.odp_account import Gate, client_of, mechanism_for
from audiences.models import Audience
from audiences.wake import wake_making
from odp.client import Client
from odp.mechanisms import Refusal
from odp.outcomes import Answer, Outcome, readable
from outgoing.deadline import TooLateError

log = structlog.get_logger(__name__)

# The reason begins with this text when the error is one of this service and not of ODP.
UNEXPECTED = "Unexpected error: "


class Chosen(NamedTuple):
    audience_id: int
    more: bool


_SQL = sql.beside(__file__)
_LOCK = _SQL.command("lock_install")
_CLAIM = _SQL.query("claim_audience", Chosen._make)
_HOLD = _SQL.command("hold_audience")
_END = _SQL.command("end_making")


class Making(NamedTuple):
    """One audience that this worker makes now. Another token in its row means that another worker has taken it over."""

    audience: Audience
    token: uuid.UUID
    more: bool


# --- what a person asks for ----------------------------------------------------------------------------------

NO_HOLD: dict[str, Any] = {"hold_failures": 0, "hold_reason": "", "hold_since_at": None, "hold_until_at": None}


def look_again(audience_id: int, *, unless_within: timedelta = timedelta(0)) -> None:
    """Request a check of the audience in ODP, which creates missing objects. Its next delivery waits for the check."""
    made = Audience.objects.filter(pk=audience_id, provisioned_at__isnull=False)
    if unless_within:  # one look serves all who ask
        made = made.filter(look_asked_at=None, provisioned_at__lte=Now() - unless_within)
    made.update(look_asked_at=Now(), **NO_HOLD)


def try_now(*, install_id: int, audience_id: int | None = None) -> bool:
    """Retry at once to make one audience, or all of an install, after a failure. False when none has failed."""
    waiting = Audience.objects.filter(install=install_id, hold_failures__gt=0)
    if audience_id is not None:
        waiting = waiting.filter(pk=audience_id)
    return bool(waiting.update(hold_until_at=Now()))


def correct_times(furthest: timedelta) -> int:
    """Shorten leases and end holds that lie further ahead (``clock.py``). Returns their number."""
    lease = timedelta(seconds=settings.LEASE_SECONDS)
    made = Audience.objects.filter(making_until_at__gt=Now() + furthest).update(making_until_at=Now() + lease)
    return made + Audience.objects.filter(hold_until_at__gt=Now() + furthest).update(hold_until_at=Now())


def accept(audience_id: int, definition: str) -> bool:
    """A person accepts the audience's definition in ODP. False when a different one was found there meanwhile."""
    found = Audience.objects.filter(pk=audience_id, foreign_definition=definition).exclude(foreign_definition="")
    return bool(found.update(accepted_definition=definition, foreign_definition=""))


def note_foreign(audience_id: int, definition: str) -> None:
    """Store the digest of a definition in ODP that isn't ours; empty when it is ours or accepted."""
    Audience.objects.filter(pk=audience_id).exclude(foreign_definition=definition).update(foreign_definition=definition)


def replace(audience_id: int, definition: str) -> bool:
    """Store that a person decided to replace this definition by ours. False when ODP now has a different one."""
    found = Audience.objects.filter(pk=audience_id, foreign_definition=definition).exclude(foreign_definition="")
    return bool(found.update(replaced_definition=definition, accepted_definition=""))


def allow_retired_id(audience_id: int) -> None:
    """Store that a person decided to reuse the ODP id of another install's retired audience for this audience."""
    Audience.objects.filter(pk=audience_id).update(reuses_id_at=Now(), **NO_HOLD)


def use_id(audience_id: int, odp_id: str) -> None:
    """Give the audience another id in ODP, where it doesn't exist yet. A worker that was making it loses its lease.

    Raises ``IntegrityError`` when another audience of the install has that id.
    """
    former = Audience._meta.get_field("former_odp_ids")
    with_present = Func(F("former_odp_ids"), F("odp_id"), function="array_append", output_field=former)
    Audience.objects.filter(pk=audience_id).update(
        odp_id=odp_id,
        former_odp_ids=Case(When(provisioned_at__isnull=False, then=with_present), default=F("former_odp_ids")),
        provisioned_at=None,
        look_asked_at=None,
        making_token=None,
        making_until_at=None,
        foreign_definition="",
        accepted_definition="",
        replaced_definition="",
        reuses_id_at=None,
        **NO_HOLD,
    )


def give_up(audience_id: int) -> None:
    """End the tries to make an audience that is retired before ODP had it. Its failures are no trouble any more."""
    Audience.objects.filter(pk=audience_id).update(making_token=None, making_until_at=None, **NO_HOLD)


# --- what the workers do about it ----------------------------------------------------------------------------


def claim(install_id: int, *, at_once: int = claims.MAKING_AT_ONCE) -> Making | None:
    """Claim the next audience to create. None when there is none, or ``at_once`` of the install are being created."""
    token = uuid.uuid4()
    with _given_back_in_trouble(token):
        chosen = None
        try:
            chosen = _choose(install_id, token, at_once=at_once)
        except sessions.LockedError:
            with suppress(sessions.LockedError):  # the install itself is locked
                chosen = _choose(install_id, token, at_once=at_once, skips_locked=True)
        if chosen is None:
            return None
        audience = Audience.objects.select_related("install", "lane").get(pk=chosen.audience_id)
        if audience.lane.retired_at is not None:  # retired after the statement above had chosen it
            give_back(token)
            return None
        return Making(audience, token, more=chosen.more)


def _choose(install_id: int, token: uuid.UUID, *, at_once: int, skips_locked: bool = False) -> Chosen | None:
    """Lease the next audience. ``skips_locked`` leaves out audiences that another transaction locks.

    The caller first tries without it, because each call of Lytics locks its audiences for a moment.
    """
    with sessions.brief_lock_wait():
        _LOCK.run(install=install_id)
        claiming = _CLAIM.run(
            install=install_id,
            token=token,
            lease_seconds=settings.LEASE_SECONDS,
            making_at_once=at_once,
            skips_locked=skips_locked,
        )
        return claiming.one()


@contextmanager
def _given_back_in_trouble(token: uuid.UUID) -> Iterator[None]:
    """Give the audience back after the database session was lost, so that it doesn't wait for the end of the lease."""
    try:
        yield
    except Error as error:
        if sessions.is_database_error(error):
            give_back(token)
        raise


def provision_one(
    install_id: int,
    *,
    gate: Gate | None = None,
    at_once: int = claims.MAKING_AT_ONCE,
    on_more: Callable[[int], None] | None = None,
    on_lost: Callable[[Audience], None] | None = None,
) -> bool:
    """Create the next audience in ODP. False when none may be created now.

    When further audiences wait, ``on_more`` is called before the requests to ODP; by default it wakes another worker.
    ``on_lost`` is called before missing objects of an audience are created again, if its memberships were lost.
    """
    making = claim(install_id, at_once=at_once)
    if making is None:
        return False
    if making.more:
        (on_more or wake_making)(install_id)
    with _given_back_in_trouble(making.token):
        return _make(making, gate, on_lost)


def _make(making: Making, gate: Gate | None, on_lost: Callable[[Audience], None] | None = None) -> bool:
    audience = making.audience
    # All calls together have the deadline of one delivery, so they end before the lease does.
    seconds = settings.DELIVERY_DEADLINE_SECONDS
    client = client_of(audience.install, ends_at=time.monotonic() + seconds, gate=gate)
    try:
        if audience.provisioned_at is None:
            problem: Answer | Refusal | None = shared_ids.conflict(audience)
        else:
            problem = _find_loss(audience, client, seconds=seconds, on_lost=on_lost)
        problem = problem or mechanism_for(audience).ensure(
            client,
            audience.odp_id,
            naming.label(audience.slug),
            seconds=seconds,
            accepted=audience.accepted_definition,
            replaced=audience.replaced_definition,
        )
    except TooLateError:  # the rate limit left no time for it: not an error of ODP
        give_back(making.token)
        return False
    except Exception as error:  # an error of this service holds only this audience, too
        if sessions.is_database_error(error):  # PostgreSQL is unreachable, so the error can't be stored
            raise
        log.exception("making an audience failed", audience=audience.odp_id)
        problem = unexpected(error)
    try:
        _conclude(making, problem)
    except Exception as error:  # such as a reason that can't be stored
        if sessions.is_database_error(error):
            raise
        log.exception("making an audience failed", audience=audience.odp_id)
        hold(making, unexpected(error))
    return True


def _find_loss(
    audience: Audience, client: Client, *, seconds: float, on_lost: Callable[[Audience], None] | None
) -> Answer | None:
    """Have lost memberships sent again. Once the missing objects are there, no later look finds that they were lost."""
    seen = mechanism_for(audience).look(client, audience.odp_id, seconds=seconds, accepted=audience.accepted_definition)
    if isinstance(seen, Answer):
        return seen
    if seen.lost_members and on_lost is not None:
        on_lost(audience)
    return None


def _conclude(making: Making, problem: Answer | Refusal | None) -> None:
    if isinstance(problem, Answer):
        hold(making, problem)
    elif isinstance(problem, Refusal):
        _refuse(making, problem)
    elif _end(making, made=True):
        log.info("audience ready in ODP", audience=making.audience.odp_id)


def unexpected(error: Exception) -> Answer:
    """An error of this service, as the reason to hold an audience."""
    first_line = next(iter(str(error).splitlines()), "") or "the log of the worker says more"
    return Answer(Outcome.RETRY_LATER, readable(UNEXPECTED + first_line), fixed_backoff=True)


def give_back(token: uuid.UUID) -> None:
    made = Audience.objects.filter(making_token=token)
    sessions.when_back(lambda: made.update(making_token=None, making_until_at=None), seconds=settings.LEASE_SECONDS)


def hold(making: Making, answer: Answer) -> None:
    """Retry this audience after its own backoff. No other audience waits for it."""
    audience = making.audience
    seconds = backoff.pause_seconds(failures=audience.hold_failures, answer=answer)
    _HOLD.run(audience=audience.pk, token=making.token, seconds=seconds, reason=answer.reason)
    if not audience.hold_failures:
        log.warning("audience on hold", audience=audience.odp_id, seconds=round(seconds, 1), reason=answer.reason)


def _refuse(making: Making, refusal: Refusal) -> None:
    """Block the lane: a person has to act. Unblocking locks the same rows in the same order, the lane's first."""
    audience = making.audience
    try:
        with sessions.brief_lock_wait():
            newly = holds.block_audience(audience.pk, refusal.reason)
            if not _end(making, made=False, foreign=refusal.definition):
                transaction.set_rollback(True)  # the worker that makes it now gets the same response
                return
    except sessions.LockedError:
        return  # the next try, after this lease, gets the same response
    if newly:
        log.error("blocked", audience=audience.odp_id, reason=refusal.reason)


def _end(making: Making, *, made: bool, foreign: str = "") -> bool:
    """Store how the making ended. False when another worker has taken it over."""
    ending = _END.run(
        audience=making.audience.pk,
        token=making.token,
        made=made,
        look_asked_at=making.audience.look_asked_at,
        foreign_definition=foreign,
    )
    ended = bool(ending.changed)
    if ended and made:
        drafts.accepted(making.audience.install_id)
    return ended
