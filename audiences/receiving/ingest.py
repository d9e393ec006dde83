"""Receiving: one webhook call becomes Events, a Receipt and parked items, in one transaction.

This module and ``plain_calls``, which stores calls that only have events of known audiences, are the only writers of
Events and Receipts. Numbers are assigned under the audience's row lock, so each lane has no gaps and numbers become
visible in commit order. Serial ids don't work: they are drawn before the commit, so a cursor could pass an id that
isn't visible yet.
"""

import copy
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from itertools import chain

import structlog
from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.utils.timezone import now

from audiences import prepared_statements, sessions, sql
from audiences.models import Again, Audience, FutureTime, Install
from audiences.receiving import audience_lookup, call_values, identifier_lists, parking, plain_calls, resend_causes
from audiences.receiving.audience_lookup import Audiences, FactsByName
from audiences.receiving.call_values import Call, Facts, NewReceipt, Received, Stored
from audiences.receiving.group_commit import GroupLockedError
from audiences.wake import wake
from lytics import bodies, messages, payload, reasons, times
from lytics.facts import Fact, ItemToPark, Reading

log = structlog.get_logger(__name__)

_SQL = sql.beside(__file__)
_STORE = _SQL.query("store", Stored._make, prepared=True)


# How many milliseconds a call that is stored alone waits for each lock of PostgreSQL. A process has ten threads, and an
# audience that stays locked must not occupy them all: calls of other audiences and installs would find none. So at most
# PATIENT_AT_MOST calls of a process wait as long, FEW_AT_MOST of them in the AGAIN_SECONDS after one has waited in
# vain, and the others SHORT_LOCK_MILLISECONDS.
LOCK_MILLISECONDS = 3_000
SHORT_LOCK_MILLISECONDS = 500
PATIENT_AT_MOST = 7
FEW_AT_MOST = 3
AGAIN_SECONDS = 30.0
_counting = threading.Lock()
_patient = 0
# Until this moment of time.monotonic().
_few_until = 0.0


def receive(
    install: Install, body: bytes, *, source: str | None = None, encoding: str = "", alone: bool = False
) -> Received:
    """Store one call. When this returns, PostgreSQL has committed all of it; when it raises, none of it.

    ``encoding`` is the Content-Encoding that the body still has. ``alone`` stores it without others. Raises
    ``OperationalError`` with SQLSTATE 55P03 when an audience of the call stays locked by another transaction.
    """
    received_at = now()
    reading = bodies.name_encoding(_read(install, body, received_at), encoding)
    call = Call(len(body), source, received_at)
    received = None
    if not alone:
        with suppress(GroupLockedError):
            received = plain_calls.store(install, reading, call)
    if received is None:
        with _limited_lock_wait():
            received = _record(install, reading, call)
    _wake_for(received, install)
    return received


@contextmanager
def _limited_lock_wait() -> Iterator[None]:
    """Begin a transaction that limits the wait for each lock. Inside another transaction, its limit stays."""
    if connection.in_atomic_block:
        with transaction.atomic():
            yield
        return
    global _few_until, _patient
    with _counting:
        is_patient = _patient < (FEW_AT_MOST if time.monotonic() < _few_until else PATIENT_AT_MOST)
        _patient += is_patient
    try:
        with transaction.atomic():
            sessions.limit_lock_wait(LOCK_MILLISECONDS if is_patient else SHORT_LOCK_MILLISECONDS)
            yield
    except OperationalError as error:
        if is_patient and sessions.state_of(error) == sessions.LOCK_TIMEOUT:
            _few_until = time.monotonic() + AGAIN_SECONDS
        raise
    finally:
        with _counting:
            _patient -= is_patient


def receive_unchecked(
    install: Install, body: bytes, *, token_id: int, source: str | None, encoding: str
) -> Received | None:
    """The same for a caller whose token wasn't looked up for this call.

    None, and nothing is stored, unless the call is plain, the token is live and the install has the same settings.
    Raises ``GroupLockedError`` when an audience is locked; the call then has to be stored alone.
    """
    received_at = now()
    reading = bodies.name_encoding(_read(install, body, received_at), encoding)
    call = Call(len(body), source, received_at, token_id)
    received = plain_calls.store(install, reading, call)
    if received is not None:
        _wake_for(received, install)
    return received


def _wake_for(received: Received, install: Install) -> None:
    """Send the hint after the commit. It needs no session: the thread of a call whose leader stored it may have none.

    ``on_commit`` would open one, and with no session free, a stored call would be answered 503.
    """
    if not received.queued:
        return
    if connection.in_atomic_block:
        transaction.on_commit(lambda: wake(install.pk), robust=True)
        return
    try:
        wake(install.pk)
    except Exception:
        log.exception("a wake-up failed; the sweep finds the events", install=install.name)


def rehearse() -> None:
    """Do what storing a plain call does, for an install that doesn't exist: it only prepares the statements."""
    nobody, at = Install(pk=0), now()
    word = {"id": "none", "slug": "none", "event": "enter", "enter": times.text(times.from_moment(at))}
    body = b"[%s]" % messages.encode({"data": {nobody.identifier_field: "rehearsal", "segment_events": [word]}})
    reading = _read(nobody, body, at)
    plain_calls.store(nobody, reading, Call(len(body), None, at))


def _read(install: Install, body: bytes, at: datetime, *, released: bool = False) -> Reading:
    return payload.parse(
        body,
        identifier_field=install.identifier_field,
        allow_top_level=install.allow_top_level_identifier,
        empty_lists=install.forget_missing_identifiers,
        received_ns=times.from_moment(at),
        released=released,
        placeholders=settings.PLACEHOLDER_IDENTIFIERS,
        tolerance_ns=round(settings.CLOCK_TOLERANCE_SECONDS * times.SECOND),
    )


def _record(install: Install, reading: Reading, call: Call) -> Received:
    facts_by_name = audience_lookup.by_name(reading.facts)
    wanted = audience_lookup.wanted_names(facts_by_name)
    audiences = audience_lookup.find_or_create(install, wanted, audience_lookup.find(install, wanted))
    found = _found(install, audiences, facts_by_name, reading.emptied)
    nameless = [fact for name, facts in facts_by_name.items() if name.key not in audiences for fact in facts]
    aside = [
        *reading.to_park,
        *(ItemToPark(reasons.UNKNOWN_SLUG, "", parking.as_message(install, fact)) for fact in nameless),
    ]
    counts = Counter(item.reason for item in aside)
    received = Received(reading.messages, sum(map(len, found.values())), len(aside), reading.skipped, dict(counts))
    receipt = call_values.receipt_of(reading, call, received)
    receipt_id = append(found, received_at=call.at, install_id=install.pk, receipt=receipt)
    assert receipt_id is not None
    _note_future_times(found, received_at=call.at)
    received.receipt = receipt_id
    if aside:
        parking.park(install, receipt_id, call.at, aside)
        tell = partial(log.warning, "parked", install=install.name, receipt=receipt_id, reasons=dict(counts))
        transaction.on_commit(tell, robust=True)
    audience_lookup.note_slugs(audiences, facts_by_name)
    return received


def read_again(
    install: Install, raw: bytes, *, receipt_id: int | None, at: datetime, identifier_field: str = ""
) -> bool:
    """Read an item that was parked at ``at`` again, inside a transaction. Returns whether all of it became events.

    With an ``identifier_field`` this item alone is read by that field. Its values are then not compared with earlier
    lists of the profile: these have values of another field, which would all leave.
    """
    if identifier_field and identifier_field != install.identifier_field:
        install = copy.copy(install)
        install.identifier_field, install.forget_missing_identifiers = identifier_field, False
    reading = _read(install, raw, at, released=True)
    facts_by_name = audience_lookup.by_name(reading.facts)
    wanted = audience_lookup.wanted_names(facts_by_name)
    audiences = audience_lookup.find_or_create(install, wanted, audience_lookup.find(install, wanted))
    found = _found(install, audiences, facts_by_name, reading.emptied)
    released_at = now()
    append(found, received_at=released_at, receipt_id=receipt_id)
    resend_causes.note({pk: [(len(some), None)] for pk, some in found.items()}, Again.Cause.RELEASE)
    _note_future_times(found, received_at=released_at)
    if found:
        transaction.on_commit(lambda: wake(install.pk), robust=True)
    return not reading.to_park and len(audiences) == len(wanted)


def _found(
    install: Install,
    audiences: Audiences,
    facts_by_name: FactsByName,
    emptied: Iterable[Fact],
) -> dict[int, list[Fact]]:
    """Facts by the ids of their audiences, and the departures that they imply if the install asks for those."""
    found = _by_audience(audiences, facts_by_name)
    if install.forget_missing_identifiers:
        nobody = audience_lookup.by_name(emptied)
        listed = _by_audience(audience_lookup.find(install, audience_lookup.wanted_names(nobody)), nobody)
        for audience_id, facts in found.items():
            listed.setdefault(audience_id, []).extend(facts)
        audience_lookup.lock(listed)
        for audience_id, departures in identifier_lists.departures(listed).items():
            found.setdefault(audience_id, []).extend(departures)
    return found


def _by_audience(audiences: Audiences, facts_by_name: FactsByName) -> dict[int, list[Fact]]:
    found: dict[int, list[Fact]] = {}
    for name, facts in facts_by_name.items():
        if (audience := audiences.get(name.key)) is not None:
            found.setdefault(audience.pk, []).extend(facts)
    return found


def append(
    facts: Mapping[int, Sequence[Fact]],
    *,
    received_at: datetime,
    install_id: int | None = None,
    receipt: NewReceipt | None = None,
    receipt_id: int | None = None,
    forced: bool = False,
) -> int | None:
    """Add facts to the log, by the ids of their audiences; each audience's facts are numbered in the given order.

    Stores all of them or raises, also outside a transaction. A ``receipt`` is stored too, and its id returned; without
    one the events belong to the Receipt ``receipt_id``, or to none.
    """
    counts = [*map(len, facts.values())]
    events = sum(counts)
    if not events and receipt is None:
        return None
    receipts = [] if receipt is None else [receipt]
    values = call_values.parameters(_columns(facts), counts=counts, calls=["1"] * events, receipts=receipts)
    times_received = prepared_statements.texts([received_at.isoformat()])
    values |= {"received": times_received, "receipt_id": receipt_id, "forced": forced}
    with prepared_statements.pipeline():
        audience_lookup.lock(facts)
        storing = _STORE.run(install=install_id, audiences=prepared_statements.numbers(facts), **values)
    stored = storing.one()
    assert stored is not None
    if stored.events != events:
        raise RuntimeError(f"{events} events to store, {stored.events} stored")
    return stored.receipts[0] if stored.receipts else None


def _columns(facts: Mapping[int, Sequence[Fact]]) -> Facts:
    some = [*chain.from_iterable(facts.values())]
    identifiers, kinds = [fact.identifier for fact in some], [fact.kind for fact in some]
    return Facts(identifiers, kinds, [fact.occurred_ns for fact in some])


def _note_future_times(facts: Mapping[int, Sequence[Fact]], *, received_at: datetime) -> None:
    """Store the transition times that weren't believed, in the transaction that numbered their events."""
    claims = {pk: some for pk, some in facts.items() if any(fact.claimed_ns for fact in some)}
    if not claims:
        return
    last = dict(Audience.objects.filter(pk__in=claims).values_list("pk", "last_sequence"))
    FutureTime.objects.bulk_create(
        FutureTime(
            audience_id=pk,
            sequence=last[pk] - len(some) + place,
            claimed_ns=min(fact.claimed_ns, 2**63 - 1),
            received_at=received_at,
        )
        for pk, some in claims.items()
        for place, fact in enumerate(some, start=1)
        if fact.claimed_ns
    )
