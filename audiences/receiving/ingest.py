"""Receiving: one webhook call becomes Events, a Receipt and parked items, in one transaction.

The only writer of Events. Numbers are assigned under the audience's row lock, so each lane has no gaps and numbers
become visible in commit order. Serial ids don't work: they are drawn before the commit, so a cursor could pass an id
that isn't visible yet.
"""

import copy
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import accumulate, chain, count, repeat
from typing import Any, NamedTuple

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.utils.timezone import now

from audiences import prepared_statements, sessions, sql
from audiences.models import Again, Audience, FutureTime, Install
from audiences.receiving import audience_lookup, identifier_lists, parking, resend_causes
from audiences.receiving.audience_lookup import Audiences, FactsByName
from audiences.receiving.group_commit import GroupCommit, GroupLostError
from audiences.wake import wake
from lytics import bodies, messages, payload, reasons, times
from lytics.facts import NAME_BYTES, Fact, ItemToPark, Reading

log = structlog.get_logger(__name__)


class _Limit(NamedTuple):
    set_config: str


class _Stored(NamedTuple):
    """The ids of the Receipts in the order of their calls, or None, and the number of events."""

    receipts: list[int] | None
    events: int


_SQL = sql.beside(__file__)
_LIMIT_LOCK_WAIT = _SQL.query("limit_lock_wait", _Limit._make, prepared=True)
_LOCK_NAMED = _SQL.command("lock_named", prepared=True)
_STORE_NAMED = _SQL.query("store_named", _Stored._make, prepared=True)
_STORE = _SQL.query("store", _Stored._make, prepared=True)

# The most events that a group of calls has. More would make each of its calls wait longer than it saves.
GROUP_EVENTS = 5_000
# How long a group waits for a lock, in milliseconds; then its calls are stored one by one. Two groups of two processes
# wait for each other for less. With no limit, one locked audience would stop all calls of its install.
GROUP_LOCK_MILLISECONDS = 500


@dataclass
class Received:
    """The answer to one call: messages, events stored, items parked and why, values that were no identifiers.

    ``receipt`` is the id of its Receipt.
    """

    received: int = 0
    queued: int = 0
    parked: int = 0
    skipped: int = 0
    parked_reasons: dict[str, int] = field(default_factory=dict)
    receipt: int | None = None


class _Call(NamedTuple):
    bytes: int
    source: str | None
    at: datetime
    # The token of a caller that wasn't looked up: it is checked when the call is stored.
    token_id: int | None = None


class _Receipt(NamedTuple):
    """A Receipt's values, by the names of their parameters in ``sql/fragments.sql``."""

    received: datetime
    sources: str
    jobs: str
    bytes: int
    messages: int
    queued: int
    parked: int
    skipped: int
    parked_reasons: str


_NO_RECEIPTS: dict[str, tuple[Any, ...]] = dict.fromkeys(_Receipt._fields, ())


class _Plain(NamedTuple):
    """A call that only has events of known audiences, on its way to ``_store_plain``.

    ``install`` says how it was read. ``token_id`` is a token that has to be live when the call is stored.
    """

    facts_by_name: FactsByName
    receipt: _Receipt
    install: Install
    token_id: int | None


def receive(install: Install, body: bytes, *, source: str | None = None, encoding: str = "") -> Received:
    """Store one call. When this returns, PostgreSQL has committed all of it; when it raises, none of it.

    ``encoding`` is the Content-Encoding that the body still has.
    """
    received_at = now()
    reading = bodies.name_encoding(_read(install, body, received_at), encoding)
    facts_by_name = audience_lookup.by_name(reading.facts)
    call = _Call(len(body), source, received_at)
    received = _record_plain(install, reading, facts_by_name, call)
    if received is None:
        with transaction.atomic():
            received = _record(install, reading, facts_by_name, call)
    _wake_for(received, install)
    return received


def receive_unchecked(
    install: Install, body: bytes, *, token_id: int, source: str | None, encoding: str
) -> Received | None:
    """The same for a caller whose token wasn't looked up for this call.

    None, and nothing is stored, unless the call is plain, the token is live and the install has the same settings.
    """
    received_at = now()
    reading = bodies.name_encoding(_read(install, body, received_at), encoding)
    call = _Call(len(body), source, received_at, token_id)
    received = _record_plain(install, reading, audience_lookup.by_name(reading.facts), call)
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
    """All that a plain call does, for an install that isn't there: nothing comes of it but a quicker next one."""
    nobody, at = Install(pk=0), now()
    word = {"id": "none", "slug": "none", "event": "enter", "enter": times.text(times.from_moment(at))}
    body = b"[%s]" % messages.encode({"data": {nobody.identifier_field: "rehearsal", "segment_events": [word]}})
    reading = _read(nobody, body, at)
    _record_plain(nobody, reading, audience_lookup.by_name(reading.facts), _Call(len(body), None, at))


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


def _record_plain(install: Install, reading: Reading, facts_by_name: FactsByName, call: _Call) -> Received | None:
    """Store a usual call, whose audiences all exist under the names it uses, in one round trip.

    None for any other call, of which nothing is stored here.
    """
    if reading.to_park or install.forget_missing_identifiers or reading.claims:
        return None
    if not all(segment_id for segment_id, _ in facts_by_name):
        # A slug alone is looked up in another way. Tried here, it would send its whole group the longer way.
        return None
    received = Received(reading.messages, len(reading.facts), 0, reading.skipped, {})
    plain = _Plain(facts_by_name, _receipt(reading, call, received), install, call.token_id)
    if connection.in_atomic_block:
        # The call belongs to this transaction, so no other thread may store it.
        stored = _store_plain([plain])
        received.receipt = stored[0] if stored else None
    else:
        received.receipt = _store_in_group(plain, size=received.queued)
    return None if received.receipt is None else received


def _store_in_group(plain: _Plain, *, size: int) -> int | None:
    try:
        return _groups.store(plain.install.pk, plain, size=size)
    except GroupLostError:
        # PostgreSQL may be frozen. The next statement then needs a new session, for which one thread of the process
        # waits; on this session it would wait for DATABASE_WEB_SECONDS, and the next group with it.
        connection.close()
        raise


def _store_plain(calls: Sequence[_Plain]) -> list[int] | None:
    """Store calls of one install together, and give the ids of their Receipts. None: nothing is stored.

    The events of an audience are inserted one after the other, whatever call they came with.
    """
    facts: dict[tuple[str, str], list[Fact]] = {}
    numbers: dict[tuple[str, str], list[int]] = {}
    for number, call in enumerate(calls, start=1):
        for name, some in call.facts_by_name.items():
            facts.setdefault(name, []).extend(some)
            numbers.setdefault(name, []).extend(repeat(number, len(some)))
    receipts = [call.receipt for call in calls]
    values = _values([*facts.values()], calls=chain.from_iterable(numbers.values()), receipts=receipts)
    segments = prepared_statements.texts(segment_id for segment_id, _ in facts)
    slugs = prepared_statements.texts(slug for _, slug in facts)
    install = calls[0].install
    with sessions.allow_more(sum(receipt.bytes for receipt in receipts) / 1_000_000):
        with prepared_statements.pipeline():
            if not connection.in_atomic_block:
                _LIMIT_LOCK_WAIT.run(milliseconds=str(GROUP_LOCK_MILLISECONDS))
            _LOCK_NAMED.run(install=install.pk, segments=segments)
            storing = _STORE_NAMED.run(
                install=install.pk,
                segments=segments,
                slugs=slugs,
                tokens=prepared_statements.numbers({call.token_id for call in calls if call.token_id is not None}),
                install_names=prepared_statements.texts({call.install.name for call in calls}),
                identifier_fields=prepared_statements.texts({call.install.identifier_field for call in calls}),
                top_levels=prepared_statements.numbers(
                    {int(call.install.allow_top_level_identifier) for call in calls}
                ),
                **values,
            )
        stored = storing.one()
    return None if stored is None else stored.receipts


_groups = GroupCommit(_store_plain, largest=GROUP_EVENTS)


def _record(install: Install, reading: Reading, facts_by_name: FactsByName, call: _Call) -> Received:
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
    receipt_id = append(found, received_at=call.at, install_id=install.pk, receipt=_receipt(reading, call, received))
    assert receipt_id is not None
    _note_future_times(found, received_at=call.at)
    received.receipt = receipt_id
    if aside:
        parking.park(install, receipt_id, call.at, aside)
        tell = partial(log.warning, "parked", install=install.name, receipt=receipt_id, reasons=dict(counts))
        transaction.on_commit(tell, robust=True)
    audience_lookup.note_slugs(audiences, facts_by_name)
    return received


def _receipt(reading: Reading, call: _Call, received: Received) -> _Receipt:
    return _Receipt(
        received=call.at,
        sources=call.source or "",
        jobs=reading.job[:NAME_BYTES].replace("\x00", ""),
        bytes=call.bytes,
        messages=received.received,
        queued=received.queued,
        parked=received.parked,
        skipped=received.skipped,
        parked_reasons=json.dumps(received.parked_reasons),
    )


def read_again(
    install: Install, raw: bytes, *, receipt_id: int | None, at: datetime, identifier_field: str = ""
) -> bool:
    """Read an item that was parked at ``at`` once more, inside a transaction. Whether nothing of it is left aside.

    With an ``identifier_field`` this item alone is read by that field. Its values are then compared with no earlier
    list of the profile: they are values of another field, and would make all earlier ones leave.
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
    receipt: _Receipt | None = None,
    receipt_id: int | None = None,
    forced: bool = False,
) -> int | None:
    """Add facts to the log, by the ids of their audiences, each audience's numbered in the order given.

    All or nothing, also outside a transaction. With a ``receipt`` that is stored too, and its id returned; else the
    events belong to the one with ``receipt_id``, or to none.
    """
    events = sum(map(len, facts.values()))
    if not events and receipt is None:
        return None
    receipts = [] if receipt is None else [receipt]
    values = _values([*facts.values()], calls=repeat(1, events), receipts=receipts)
    values |= {"received": [received_at], "receipt_id": receipt_id, "forced": forced}
    with prepared_statements.pipeline():
        audience_lookup.lock(facts)
        storing = _STORE.run(install=install_id, audiences=prepared_statements.numbers(facts), **values)
    stored = storing.one()
    assert stored is not None
    if stored.events != events:
        raise RuntimeError(f"{events} events to store, {stored.events} stored")
    return stored.receipts[0] if stored.receipts else None


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


def _values(groups: Sequence[Sequence[Fact]], *, calls: Iterable[int], receipts: Sequence[_Receipt]) -> dict[str, Any]:
    """For ``store_calls``; each group of facts is of one audience. ``calls`` has the number of each fact's call."""
    facts = [fact for group in groups for fact in group]
    counts = [len(group) for group in groups]
    texts, numbers = prepared_statements.texts, prepared_statements.numbers
    columns = dict(zip(_Receipt._fields, zip(*receipts, strict=True), strict=True)) if receipts else _NO_RECEIPTS
    return {
        **{name: numbers(columns[name]) for name in ("bytes", "messages", "queued", "parked", "skipped")},
        **{name: texts(columns[name]) for name in ("sources", "jobs", "parked_reasons")},
        "received": list(columns["received"]),
        "has_receipts": bool(receipts),
        "receipt_id": None,
        "forced": False,
        "counts": numbers(counts),
        "ahead": numbers(accumulate(counts[:-1], initial=0)),
        "numbers": numbers(chain.from_iterable(map(repeat, count(1), counts))),
        "identifiers": texts([fact.identifier for fact in facts]),
        "kinds": numbers([int(fact.kind) for fact in facts]),
        "moments": numbers([fact.occurred_ns for fact in facts]),
        "calls": numbers(calls),
    }
