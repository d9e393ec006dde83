"""Test customers: each enters a separate audience over the whole path and leaves it again. The only writer of Trials.

``workers/trial.py`` runs the steps. This module makes the calls, stores the steps that are done, and sends the exit
that ends each trial, also a failed one.
"""

import secrets
from datetime import timedelta
from typing import Any, Literal

import structlog
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils.timezone import now

from audiences import naming, sessions
from audiences.models import Audience, Event, Install, Lane, Trial
from audiences.receiving import ingest
from audiences.wake import try_out
from lytics import messages, times
from lytics.facts import Kind

log = structlog.get_logger(__name__)

# Its audience in Lytics' words; in ODP it is lytics_sync_test, if the install has the default prefix.
SEGMENT_ID = naming.TEST_SEGMENT_ID
SLUG = "sync_test"
# The name of the Lytics job in its calls, by which pages tell them from Lytics' calls.
JOB = "lytics-sync-test"
# Longer than any step takes. After this time without a step, the worker of the test customer has died.
SILENT_AFTER = timedelta(seconds=150)

Leg = Literal["in", "out"]
IN: Leg = "in"
OUT: Leg = "out"
# The steps in their order: the call is made, its event is stored, the audience is created in ODP, a worker claims the
# event, ODP accepts it, ODP shows it over GraphQL.
CALLED, STORED, MADE, CLAIMED, TAKEN, SHOWN = "called", "stored", "made", "claimed", "taken", "shown"
LEGS: dict[Leg, tuple[str, ...]] = {
    "in": (CALLED, STORED, MADE, CLAIMED, TAKEN, SHOWN),
    "out": (CALLED, STORED, CLAIMED, TAKEN, SHOWN),
}
# The result of a step: as expected; done in another way, so that the next steps could be tested; failed.
DONE, AROUND, FAILED = "done", "around", "failed"
# Part of the words of a step that failed because its install was on hold.
ON_HOLD = "The install is on hold: "


def start(install: Install, *, by: str, identifier: str = "") -> Trial | None:
    """Start a test customer. None when another one is under way, or when its audience is retired.

    With an ``identifier`` it is a probe of the schedule.
    """
    if is_retired(install):
        return None
    give_up_silent(install)
    try:
        with transaction.atomic():
            trial = Trial.objects.create(
                install=install,
                identifier=identifier or f"lytics-sync-test-{secrets.token_hex(6)}",
                started_by=by,
                is_probe=bool(identifier),
            )
    except IntegrityError:
        return None
    transaction.on_commit(lambda: try_out(install.pk))
    return trial


def proven(ended: QuerySet[Trial]) -> QuerySet[Trial]:
    """Those in which ODP showed the customer in the audience, and later no longer."""
    shown = ended.filter(hops__contains=[{"leg": OUT, "hop": SHOWN}])
    return shown.exclude(hops__contains=[{"how": FAILED}])


def drop_old_probes(install: Install, *, keep: int) -> None:
    """Delete the probes of an install that have ended, except the newest and the last proof."""
    ended = Trial.objects.filter(install=install, is_probe=True, closed_at__isnull=False)
    kept = Trial.objects.filter(install=install, is_probe=True).order_by("-id").values("pk")[:keep]
    proof = proven(ended).order_by("-id").values("pk")[:1]
    ended.exclude(pk__in=kept).exclude(pk__in=proof).delete()


def is_retired(install: Install) -> bool:
    """Whether a person has retired the audience of the test customers."""
    return Lane.objects.filter(
        audience__install=install, audience__segment_id=SEGMENT_ID, retired_sequence__isnull=False
    ).exists()


def running(install: Install) -> Trial | None:
    return Trial.objects.filter(install=install, closed_at=None, moved_at__gt=now() - SILENT_AFTER).first()


def latest(install: Install) -> Trial | None:
    return Trial.objects.filter(install=install).first()


def begin(install_id: int) -> Trial | None:
    """Take the install's waiting test customer. None when another worker has taken it."""
    waiting = Trial.objects.filter(install=install_id, closed_at=None, begun_at=None)
    if not waiting.update(begun_at=now(), moved_at=now()):
        return None
    return Trial.objects.select_related("install").get(install=install_id, closed_at=None)


def note(trial: Trial, leg: Leg, hop: str, how: str, words: str, *, ms: int) -> None:
    """Record that a step succeeded or failed."""
    trial.hops.append({"leg": leg, "hop": hop, "how": how, "words": words, "ms": ms})
    Trial.objects.filter(pk=trial.pk).update(hops=trial.hops, moved_at=now())


def close(trial: Trial) -> None:
    Trial.objects.filter(pk=trial.pk, closed_at=None).update(closed_at=now(), moved_at=now())


def give_up_silent(install: Install | None = None) -> None:
    """Close trials whose worker has died or that no worker has started, and send the exit of their customers."""
    silent = Trial.objects.filter(closed_at=None, moved_at__lte=now() - SILENT_AFTER)
    for trial in silent.filter(**({"install": install} if install else {})).select_related("install"):
        with transaction.atomic():
            if Trial.objects.filter(pk=trial.pk, closed_at=None).update(closed_at=Now()):
                log.warning("test customer given up", install=trial.install.name, customer=trial.identifier)
                if trial.begun_at:
                    _send_out(trial)


def _send_out(trial: Trial) -> None:
    """Close a trial. An error is logged, so that the other trials are still closed."""
    try:
        with transaction.atomic():
            send_straight_in(trial, OUT)
    except Exception as error:
        if sessions.is_database_error(error):
            raise
        log.exception("a test customer could not be sent out", install=trial.install.name, customer=trial.identifier)


# --- its calls -----------------------------------------------------------------------------------------------


def call(trial: Trial, leg: Leg) -> bytes:
    """The body of the call with the customer's entry or exit, as Lytics would send it for this install.

    The entry is dated back, because ODP may order by seconds and an exit in the same second would tie with it.
    """
    install, kind = trial.install, Kind.ENTER if leg == IN else Kind.EXIT
    at = times.text(times.from_moment(now() - timedelta(seconds=5 if leg == IN else 0)))
    word, field = kind.name.lower(), install.identifier_field
    event = {"id": SEGMENT_ID, "slug": SLUG, "event": word, word: at}
    data: dict[str, Any] = {"_id": trial.identifier, "segment_events": [event]}
    message: dict[str, Any] = {"data": data, "meta": {"object": "user", "subscription_id": JOB, "timestamp": at}}
    if install.allow_top_level_identifier and field not in message:
        if field == "_id":
            del data["_id"]
        message[field] = trial.identifier
    else:
        data[field] = trial.identifier
    return b"[" + messages.encode(message) + b"]"


def send_straight_in(trial: Trial, leg: Leg) -> None:
    """Store the call directly, without an HTTP request."""
    ingest.receive(trial.install, call(trial, leg))


# --- their events --------------------------------------------------------------------------------------------


def audience_of(install: Install) -> Audience | None:
    return Audience.objects.filter(install=install, segment_id=SEGMENT_ID).first()


def event_of(trial: Trial, leg: Leg, *, after: int) -> Event | None:
    """The customer's event in the log, beyond the number that was the last before its call."""
    kind = Kind.ENTER if leg == IN else Kind.EXIT
    events = Event.objects.filter(audience__install=trial.install, audience__segment_id=SEGMENT_ID, sequence__gt=after)
    return events.filter(identifier=trial.identifier, kind=kind).order_by("sequence").first()
