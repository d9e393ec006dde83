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

from audiences import prepared_statements
from audiences.encryption import encrypt
from audiences.models import Again, Audience, FutureTime, Install
from audiences.receiving import audience_lookup, identifier_lists, resend_causes
from audiences.receiving.audience_lookup import Audiences, FactsByName
from audiences.wake import wake
from lytics import json_pieces, messages, payload, reasons, times
from lytics.facts import NAME_BYTES, Fact, Kind, Reading, SetAside

log = structlog.get_logger(__name__)

_LOCK_NAMED = """
SELECT id FROM audiences_audience WHERE install_id = %s AND segment_id = ANY(%s::text[]) ORDER BY id FOR NO KEY UPDATE
"""

_BY_ID = """
unnest(%(audiences)s::int[], %(counts)s::int[], %(ahead)s::int[])
    WITH ORDINALITY AS told(audience_id, by, ahead, number)
JOIN audiences_audience AS audience ON audience.id = told.audience_id
"""
_BY_NAME = """
unnest(%(segments)s::text[], %(slugs)s::text[], %(counts)s::int[], %(ahead)s::int[])
    WITH ORDINALITY AS told(segment_id, slug, by, ahead, number)
JOIN audiences_audience AS audience ON audience.install_id = %(install)s::bigint
    AND audience.segment_id = told.segment_id AND told.slug IN ('', audience.latest_slug)
"""

# Stores nothing unless every audience exists and is named once. Events are inserted in ascending order of their keys:
# descending order makes the B-tree split its pages in half.
_STORE = """
WITH grown AS MATERIALIZED (
    SELECT audience.id, number, by, ahead FROM {audiences}
), complete AS (
    SELECT 1 WHERE (SELECT count(DISTINCT id) FROM grown) = cardinality(%(counts)s::int[])
), receipt AS (
    INSERT INTO audiences_receipt
        (install_id, received_at, source, job, bytes, messages, queued, parked, skipped, parked_reasons)
    SELECT install, %(at)s, source, job, bytes, messages, queued, parked, skipped, reasons
    FROM complete, (VALUES (
        %(install)s::bigint, %(source)s::inet, %(job)s, %(bytes)s::int,
        %(messages)s::int, %(queued)s::int, %(parked)s::int, %(skipped)s::int, %(parked_reasons)s::jsonb
    )) AS v(install, source, job, bytes, messages, queued, parked, skipped, reasons)
    WHERE install IS NOT NULL
    RETURNING id
), numbered AS (
    UPDATE audiences_audience AS audience SET last_sequence = audience.last_sequence + grown.by
    FROM grown, complete WHERE audience.id = grown.id
    RETURNING audience.id, grown.number, audience.last_sequence - grown.by - grown.ahead AS before
), stored AS (
    INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced, receipt_id)
    SELECT numbered.id, before + place, identifier, kind, occurred_ns, %(at)s, %(forced)s,
        coalesce((SELECT id FROM receipt), %(receipt_id)s::bigint)
    FROM unnest(%(numbers)s::int[], %(identifiers)s::text[], %(kinds)s::smallint[], %(moments)s::bigint[])
        WITH ORDINALITY AS fact(number, identifier, kind, occurred_ns, place)
    JOIN numbered ON numbered.number = fact.number ORDER BY place
    RETURNING 1
)
SELECT (SELECT id FROM receipt), (SELECT count(*) FROM stored)
"""
_APPEND = _STORE.format(audiences=_BY_ID)
_APPEND_NAMED = _STORE.format(audiences=_BY_NAME)

_COPY_PARKED = """
COPY audiences_parked (install_id, receipt_id, reason, detail, raw, parked_at, identifier, closed_by, resolution)
FROM STDIN (FORMAT BINARY)
"""


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


class _Receipt(NamedTuple):
    """A Receipt's values by the names they have in ``_STORE``; without an install there is none."""

    install: int | None = None
    source: str | None = None
    job: str = ""
    bytes: int = 0
    messages: int = 0
    queued: int = 0
    parked: int = 0
    skipped: int = 0
    parked_reasons: str = "{}"


def receive(install: Install, body: bytes, *, source: str | None = None, encoding: str = "") -> Received:
    """Store one call. When this returns, PostgreSQL has committed all of it; when it raises, none of it.

    ``encoding`` is the Content-Encoding that the body still has.
    """
    received_at = now()
    reading = json_pieces.name_encoding(_read(install, body, received_at), encoding)
    facts_by_name = audience_lookup.by_name(reading.facts)
    call = _Call(len(body), source, received_at)
    received = _record_plain(install, reading, facts_by_name, call)
    if received is None:
        with transaction.atomic():
            received = _record(install, reading, facts_by_name, call)
    if received.queued:
        transaction.on_commit(lambda: wake(install.pk), robust=True)
    return received


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
    if reading.aside or install.forget_missing_identifiers or reading.claims:
        return None
    received = Received(reading.messages, len(reading.facts), 0, reading.skipped, {})
    receipt = _receipt(install, reading, call, received)
    values = _values([*facts_by_name.values()], received_at=call.at, receipt=receipt)
    values["segments"] = prepared_statements.texts(name.segment_id for name in facts_by_name)
    values["slugs"] = prepared_statements.texts(name.slug for name in facts_by_name)
    locking, storing = prepared_statements.cursor(), prepared_statements.cursor()
    with prepared_statements.pipeline():
        locking.execute(_LOCK_NAMED, [install.pk, values["segments"]])
        storing.execute(_APPEND_NAMED, values)
    received.receipt, _ = storing.fetchone()
    return None if received.receipt is None else received


def _record(install: Install, reading: Reading, facts_by_name: FactsByName, call: _Call) -> Received:
    wanted = audience_lookup.wanted_names(facts_by_name)
    audiences = audience_lookup.find_or_create(install, wanted, audience_lookup.find(install, wanted))
    found = _found(install, audiences, facts_by_name, reading.emptied)
    nameless = [fact for name, facts in facts_by_name.items() if name.key not in audiences for fact in facts]
    aside = [*reading.aside, *(SetAside(reasons.UNKNOWN_SLUG, "", _as_message(install, fact)) for fact in nameless)]
    counts = Counter(item.reason for item in aside)
    received = Received(reading.messages, sum(map(len, found.values())), len(aside), reading.skipped, dict(counts))
    receipt_id = append(found, received_at=call.at, receipt=_receipt(install, reading, call, received))
    assert receipt_id is not None
    _note_future_times(found, received_at=call.at)
    received.receipt = receipt_id
    if aside:
        _park(install, receipt_id, call.at, aside)
        tell = partial(log.warning, "parked", install=install.name, receipt=receipt_id, reasons=dict(counts))
        transaction.on_commit(tell, robust=True)
    audience_lookup.note_slugs(audiences, facts_by_name)
    return received


def _receipt(install: Install, reading: Reading, call: _Call, received: Received) -> _Receipt:
    return _Receipt(
        install=install.pk,
        source=call.source,
        job=reading.job[:NAME_BYTES].replace("\x00", ""),
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
    return not reading.aside and len(audiences) == len(wanted)


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
    values = _values(
        [*facts.values()], received_at=received_at, receipt=receipt or _Receipt(), receipt_id=receipt_id, forced=forced
    )
    storing = prepared_statements.cursor()
    with prepared_statements.pipeline():
        audience_lookup.lock(facts)
        storing.execute(_APPEND, {**values, "audiences": prepared_statements.numbers(facts)})
    stored_receipt, stored = storing.fetchone()
    if stored != events:
        raise RuntimeError(f"{events} events to store, {stored} stored")
    return None if stored_receipt is None else int(stored_receipt)


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


def _values(
    groups: Sequence[Sequence[Fact]],
    *,
    received_at: datetime,
    receipt: _Receipt,
    receipt_id: int | None = None,
    forced: bool = False,
) -> dict[str, Any]:
    """For ``_STORE``; each group of facts is of one audience."""
    facts = [fact for group in groups for fact in group]
    counts = [len(group) for group in groups]
    return {
        **receipt._asdict(),
        "at": received_at,
        "receipt_id": receipt_id,
        "forced": forced,
        "counts": prepared_statements.numbers(counts),
        "ahead": prepared_statements.numbers(accumulate(counts[:-1], initial=0)),
        "numbers": prepared_statements.numbers(chain.from_iterable(map(repeat, count(1), counts))),
        "identifiers": prepared_statements.texts([fact.identifier for fact in facts]),
        "kinds": prepared_statements.numbers([int(fact.kind) for fact in facts]),
        "moments": prepared_statements.numbers([fact.occurred_ns for fact in facts]),
    }


# --- parking and releasing -----------------------------------------------------------------------------------


def _park(install: Install, receipt_id: int, at: datetime, aside: Iterable[SetAside]) -> None:
    """In a stream: as an insert, a large body would be in memory several times, and twice as long for being in hex."""
    with connection.cursor() as cursor, cursor.copy(_COPY_PARKED) as copy:
        copy.set_types(["bigint", "bigint", "varchar", "text", "bytea", "timestamptz", "text", "varchar", "varchar"])
        for item in aside:
            detail = item.detail.replace("\x00", "")[:1000]
            raw = encrypt(_kept(install, item))
            copy.write_row((install.pk, receipt_id, item.reason, detail, raw, at, "", "", ""))


def _kept(install: Install, item: SetAside) -> bytes:
    """Profiles aren't stored; but without an identifier, any field may be the right one, so the item keeps all."""
    if item.reason in (reasons.NO_IDENTIFIER, reasons.UNUSABLE_IDENTIFIER):
        return item.raw
    return messages.envelope(item.raw, identifier_field=install.identifier_field)


def _as_message(install: Install, fact: Fact) -> bytes:
    """A fact whose audience is unknown, in its original layout, so that a release can parse it."""
    word = fact.kind.name.lower()
    at = times.text(fact.occurred_ns)
    event = {"id": fact.segment_id, "event": word, **({} if fact.kind is Kind.CHANGE else {word: at})}
    profile = {messages.PROFILE_FIELD: fact.profile} if fact.profile else {}
    data = {**profile, install.identifier_field: fact.identifier, "segment_events": [event]}
    return messages.encode({"data": data, "meta": {"object": "user", "timestamp": at}})
