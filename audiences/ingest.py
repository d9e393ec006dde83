"""Receiving: one webhook call becomes Events, a Receipt and what had to be parked, in one transaction.

The only writer of Events. Numbers are handed out under the audience's row lock, so in every lane they are gapless
and appear in commit order; serial ids would not do, because they are drawn before commit and a cursor can step past
one that isn't visible yet.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

import structlog
from django.db import connection, transaction
from django.utils.timezone import now

from audiences import lanes, naming, remember
from audiences.models import Audience, Install, Parked, Receipt
from audiences.secrets import encrypt
from audiences.wake import wake
from lytics import payload, reasons, times
from lytics.payload import Fact, Kind, Reading, SetAside

log = structlog.get_logger(__name__)

# A segment that was first seen by its slug alone is known by this until a call tells its id.
BY_SLUG = "slug:"
# Items of one call that are encrypted and in memory at a time; any of them may be a megabyte.
PARKED_AT_ONCE = 100

_INSERT_EVENTS = """
WITH incoming AS (
    SELECT * FROM unnest(%s::bigint[], %s::int[], %s::text[], %s::smallint[], %s::bigint[])
        AS t(audience_id, place, identifier, kind, occurred_ns)
), numbered AS (
    UPDATE audiences_audience AS audience SET last_sequence = audience.last_sequence + grown.by
    FROM unnest(%s::bigint[], %s::bigint[]) AS grown(audience_id, by)
    WHERE audience.id = grown.audience_id
    RETURNING audience.id, audience.last_sequence - grown.by AS before
)
INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced, receipt_id)
SELECT audience_id, before + place, identifier, kind, occurred_ns, %s, %s, %s
FROM incoming JOIN numbered ON numbered.id = incoming.audience_id
"""


@dataclass
class Received:
    """The answer to one call: messages, events stored, items parked and why, values that were no identifiers."""

    received: int = 0
    queued: int = 0
    parked: int = 0
    skipped: int = 0
    parked_reasons: dict[str, int] = field(default_factory=dict)


def receive(install: Install, body: bytes, *, source: str | None = None) -> Received:
    """Store one call. When this returns, PostgreSQL has committed all of it; when it raises, none of it."""
    received_at = now()
    reading = _read(install, body, received_at)
    with transaction.atomic():
        receipt, received = _record(install, reading, size=len(body), source=source, at=received_at)
        if received.queued:
            transaction.on_commit(lambda: wake(install.pk), robust=True)
    if received.parked:
        log.warning("parked", install=install.name, receipt=receipt.pk, reasons=received.parked_reasons)
    return received


def _read(install: Install, body: bytes, at: datetime, *, released: bool = False) -> Reading:
    return payload.parse(
        body,
        identifier_field=install.identifier_field,
        allow_top_level=install.allow_top_level_identifier,
        received_ns=times.from_moment(at),
        released=released,
    )


def _record(
    install: Install, reading: Reading, *, size: int, source: str | None, at: datetime
) -> tuple[Receipt, Received]:
    audiences, nameless = _audiences(install, reading.facts)
    facts = [fact for fact in reading.facts if _key(fact) in audiences]
    numbered = _numbered(install, audiences, facts)
    aside = [*reading.aside, *(SetAside(reasons.UNKNOWN_SLUG, "", _as_message(install, fact)) for fact in nameless)]
    counts = Counter(item.reason for item in aside)
    receipt = Receipt.objects.create(
        install=install,
        received_at=at,
        source=source,
        job=reading.job[: payload.NAME_BYTES].replace("\x00", ""),
        bytes=size,
        messages=reading.messages,
        queued=len(numbered),
        parked=len(aside),
        skipped=reading.skipped,
        parked_reasons=counts,
    )
    _park(install, receipt, aside)
    append(numbered, received_at=at, receipt=receipt)
    _note_slugs(audiences, facts)
    return receipt, Received(reading.messages, len(numbered), len(aside), reading.skipped, dict(counts))


def read_again(install: Install, raw: bytes, *, receipt: Receipt | None, at: datetime) -> bool:
    """Read an item that was parked at ``at`` once more, inside a transaction. Whether nothing of it is left aside."""
    reading = _read(install, raw, at, released=True)
    audiences, nameless = _audiences(install, reading.facts)
    facts = [fact for fact in reading.facts if _key(fact) in audiences]
    append(_numbered(install, audiences, facts), received_at=now(), receipt=receipt)
    if facts:
        transaction.on_commit(lambda: wake(install.pk), robust=True)
    return not reading.aside and not nameless


def _numbered(install: Install, audiences: dict[str, int], facts: Sequence[Fact]) -> list[tuple[int, Fact]]:
    """Facts with the ids of their audiences, and the departures that they imply if the install asks for those."""
    found = [(audiences[_key(fact)], fact) for fact in facts]
    if not install.forget_missing_identifiers or not found:
        return found
    _lock({audience_id for audience_id, _ in found})
    return remember.with_departures(found)


def append(
    facts: Sequence[tuple[int, Fact]], *, received_at: datetime, receipt: Receipt | None = None, forced: bool = False
) -> None:
    """Add facts to the log, each with the id of its audience, numbered in the order given. Inside a transaction."""
    if not facts:
        return
    places: Counter[int] = Counter()
    numbered = []
    for audience_id, fact in facts:
        places[audience_id] += 1
        numbered.append((audience_id, places[audience_id], fact))
    _lock(places)
    with connection.cursor() as cursor:
        cursor.execute(
            _INSERT_EVENTS,
            [
                _array(audience_id for audience_id, _, _ in numbered),
                _array(place for _, place, _ in numbered),
                _text_array(fact.identifier for _, _, fact in numbered),
                _array(int(fact.kind) for _, _, fact in numbered),
                _array(fact.occurred_ns for _, _, fact in numbered),
                _array(places.keys()),
                _array(places.values()),
                received_at,
                forced,
                receipt.pk if receipt else None,
            ],
        )
        if cursor.rowcount != len(numbered):
            raise RuntimeError(f"{len(numbered)} events to store, {cursor.rowcount} stored")


def _lock(audience_ids: Iterable[int]) -> None:
    """Two calls that share audiences wait for each other in one order, whichever they name first."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM audiences_audience WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE", [list(audience_ids)]
        )


def _array(numbers: Iterable[int]) -> str:
    """A PostgreSQL array as text: adapting a Python list element by element costs more than the insert."""
    return "{" + ",".join(map(str, numbers)) + "}"


def _text_array(texts: Iterable[str]) -> str:
    return "{" + ",".join('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts) + "}"


# --- which audience a fact belongs to ------------------------------------------------------------------------


def _key(fact: Fact) -> str:
    return fact.segment_id or BY_SLUG + fact.slug


def _audiences(install: Install, facts: Iterable[Fact]) -> tuple[dict[str, int], list[Fact]]:
    """Audience ids by ``_key``, made where they are missing; and the facts whose audience has no slug yet."""
    wanted: dict[str, Fact] = {}
    for fact in facts:
        known = wanted.get(_key(fact))
        if known is None or (fact.slug and not known.slug):
            wanted[_key(fact)] = fact
    known_ids = _find(install, wanted)
    missing = [key for key in wanted if key not in known_ids]
    if any(wanted[key].slug for key in missing):
        # Rare, and the one moment when two calls could make one audience twice or give one ODP id to two.
        Install.objects.select_for_update(no_key=True).get(pk=install.pk)
        known_ids = _find(install, wanted)
        known_ids |= _adopt(install, {key: fact for key, fact in wanted.items() if key not in known_ids}, known_ids)
        # Those with an id first: one known by the slug alone may turn out to be one of them.
        for key in sorted((key for key in wanted if key not in known_ids), key=lambda key: not wanted[key].segment_id):
            if wanted[key].slug:
                known_ids[key] = _create(install, wanted[key])
    nameless = [fact for fact in facts if _key(fact) not in known_ids]
    return known_ids, nameless


def _find(install: Install, wanted: dict[str, Fact]) -> dict[str, int]:
    """The audiences that are there already."""
    found: dict[str, int] = {}
    slugs = [fact.slug for fact in wanted.values() if not fact.segment_id]
    by_slug: dict[str, int] = {}
    if slugs:
        rows = Audience.objects.filter(install=install, latest_slug__in=slugs).order_by("pk")
        by_slug = {audience.latest_slug: audience.pk for audience in rows}
    for audience in Audience.objects.filter(install=install, segment_id__in=list(wanted)):
        found[audience.segment_id] = audience.pk
    for key, fact in wanted.items():
        if not fact.segment_id and fact.slug in by_slug:
            found.setdefault(key, by_slug[fact.slug])
    return found


def _note_slugs(audiences: dict[str, int], facts: Iterable[Fact]) -> None:
    """A slug edited in Lytics is shown and changes nothing else. Only rows that ``append`` has locked are written."""
    newest: dict[int, Fact] = {}
    for fact in facts:
        known = newest.get(audiences[_key(fact)])
        if fact.slug and (known is None or fact.occurred_ns >= known.occurred_ns):
            newest[audiences[_key(fact)]] = fact
    for audience in Audience.objects.filter(pk__in=newest):
        slug = newest[audience.pk].slug
        if audience.latest_slug != slug:
            Audience.objects.filter(pk=audience.pk).update(latest_slug=slug)
            log.warning("slug edited in Lytics", audience=audience.odp_id, now=slug)


def _adopt(install: Install, unknown: dict[str, Fact], known_ids: dict[str, int]) -> dict[str, int]:
    """Audience ids, by ``_key``, of those that were known by their slug alone and now tell their id."""
    by_slug: dict[str, str] = {}
    for key, fact in unknown.items():
        if fact.segment_id and fact.slug:
            by_slug.setdefault(BY_SLUG + fact.slug, key)
    rows = Audience.objects.filter(install=install, segment_id__in=list(by_slug))
    adopted = {by_slug[audience.segment_id]: audience.pk for audience in rows}
    if adopted:
        # The update below locks too. All that this call will number is locked first, in the order of ``append``.
        _lock([*known_ids.values(), *adopted.values()])
        for segment_id, pk in adopted.items():
            Audience.objects.filter(pk=pk).update(segment_id=segment_id)
    return adopted


def _create(install: Install, fact: Fact) -> int:
    """A new audience with its lane; for a slug alone, the one that has got this slug a moment ago."""
    if not fact.segment_id:
        named = Audience.objects.filter(install=install, latest_slug=fact.slug).order_by("-pk").first()
        if named is not None:
            return named.pk
    taken = set(Audience.objects.filter(install=install).values_list("odp_id", flat=True))
    odp_id = naming.free_odp_id(fact.slug, fact.segment_id, taken)
    audience = Audience.objects.create(
        install=install, segment_id=_key(fact), slug=fact.slug, latest_slug=fact.slug, odp_id=odp_id
    )
    lanes.lay(audience)
    if odp_id != naming.odp_id(fact.slug):
        log.warning("two segments want one ODP id", audience=odp_id, wanted=naming.odp_id(fact.slug), slug=fact.slug)
    return audience.pk


# --- parking and releasing -----------------------------------------------------------------------------------


def _park(install: Install, receipt: Receipt, aside: Iterable[SetAside]) -> None:
    rows = (
        Parked(
            install=install,
            receipt=receipt,
            reason=item.reason,
            detail=item.detail.replace("\x00", "")[:1000],
            raw=encrypt(_kept(install, item)),
            parked_at=receipt.received_at,
        )
        for item in aside
    )
    while some := list(islice(rows, PARKED_AT_ONCE)):
        Parked.objects.bulk_create(some)


def _kept(install: Install, item: SetAside) -> bytes:
    """Profiles are not ours to keep; but when no identifier was found, any field may be the one that was meant."""
    if item.reason == reasons.NO_IDENTIFIER:
        return item.raw
    return payload.envelope(item.raw, identifier_field=install.identifier_field)


def _as_message(install: Install, fact: Fact) -> bytes:
    """A fact whose audience is not known yet, in the layout it came in, so that a release reads it like any other."""
    word = fact.kind.name.lower()
    at = f"{times.moment(fact.occurred_ns):%Y-%m-%dT%H:%M:%S}.{fact.occurred_ns % times.SECOND:09d}Z"
    event = {"id": fact.segment_id, "event": word, **({} if fact.kind is Kind.CHANGE else {word: at})}
    data = {install.identifier_field: fact.identifier, "segment_events": [event]}
    return payload.encode({"data": data, "meta": {"object": "user", "timestamp": at}})
