"""Lanes: claim, open, settle, block, pause. The only writer of Lanes, Runs, Deliveries and the ledger.

A claim is a lease with a token, in the row. Every later step names the token, and a step of a worker that has lost
its lease changes no row. All clocks are PostgreSQL's.
"""

import json
import os
import socket
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now
from django.utils.timezone import now

from audiences.fold import Entry, Held
from audiences.models import Audience, Delivery, Install, Lane, Membership, Parked, Run
from lytics.payload import Kind
from odp.outcomes import Answer, Outcome

log = structlog.get_logger(__name__)

REFUSED_BY_ODP = "refused_by_odp"

Ledger = dict[int, dict[str, Held]]


class LeaseLostError(Exception):
    """Another worker may have claimed these lanes: what this one still wanted to do must not happen."""


class GapError(Exception):
    """Numbers are missing in the log of a lane. Numbering makes that impossible, so it is a bug or a damaged table."""


@dataclass(frozen=True)
class Span:
    """The next events of one lane: sequences ``first`` to ``last``, both included."""

    audience_id: int
    odp_id: str
    first: int
    last: int


@dataclass(frozen=True)
class Lease:
    """Lanes claimed together under one token; ``more`` says that others were ready and didn't fit."""

    token: uuid.UUID
    install: Install
    spans: tuple[Span, ...]
    more: bool

    @property
    def audience_ids(self) -> list[int]:
        return [span.audience_id for span in self.spans]


@dataclass
class Result:
    """What became of one span. ``complete`` moves the cursor over it; else what is known goes to the ledger alone."""

    span: Span
    complete: bool = True
    events: int = 0
    sent: bool = False
    accepted: list[Entry] = field(default_factory=list)
    refused: list[tuple[Entry, str]] = field(default_factory=list)
    block_reason: str = ""


# A lane that may be claimed, as far as the lane itself is concerned.
_FREE = """
    lane.paused_at IS NULL AND lane.blocked_at IS NULL
    AND (lane.lease_expires_at IS NULL OR lane.lease_expires_at <= clock_timestamp())
"""
_GOING = "install.enabled AND (install.brake_until_at IS NULL OR install.brake_until_at <= clock_timestamp())"

_DUE = f"""
SELECT DISTINCT audience.install_id
FROM audiences_lane AS lane
JOIN audiences_audience AS audience ON audience.id = lane.audience_id
JOIN audiences_install AS install ON install.id = audience.install_id
WHERE {_GOING} AND audience.last_sequence > lane.delivered_sequence AND {_FREE}
"""  # noqa: S608 — only constants of this module

_WORK = f"""
SELECT bool_or(audience.provisioned_at IS NULL), bool_or(audience.provisioned_at IS NOT NULL)
FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
WHERE audience.install_id = %s AND audience.last_sequence > lane.delivered_sequence AND {_FREE}
"""  # noqa: S608

# Locked so that one worker at a time claims for an install; receiving takes no lock that this one would hinder.
_INSTALL = f"SELECT * FROM audiences_install AS install WHERE id = %s AND {_GOING} FOR NO KEY UPDATE"  # noqa: S608

_IN_FLIGHT = """
SELECT count(DISTINCT lane.lease_token)
FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
WHERE audience.install_id = %s AND lane.lease_expires_at > clock_timestamp()
"""

# The lanes longest unserved, until the request is full. A lane that a late settle has moved since is left for the
# next claim: its cursor is no longer the one that was read.
_CLAIM = f"""
WITH ready AS (
    SELECT lane.audience_id, audience.odp_id, lane.delivered_sequence AS cursor, audience.last_sequence AS last,
        (sum(audience.last_sequence - lane.delivered_sequence)
            OVER (ORDER BY lane.last_served_at NULLS FIRST, lane.audience_id))::bigint AS upto
    FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
    WHERE audience.install_id = %(install)s AND (audience.provisioned_at IS NOT NULL) = %(provisioned)s
        AND audience.last_sequence > lane.delivered_sequence AND {_FREE}
), packed AS (
    SELECT audience_id, odp_id, cursor,
        least(last, cursor + %(capacity)s - (upto - (last - cursor))) AS last
    FROM ready WHERE upto - (last - cursor) < %(capacity)s
)
UPDATE audiences_lane AS lane SET
    lease_token = %(token)s,
    lease_expires_at = clock_timestamp() + make_interval(secs => %(lease)s),
    last_served_at = clock_timestamp()
FROM packed
WHERE lane.audience_id = packed.audience_id AND lane.delivered_sequence = packed.cursor AND {_FREE}
RETURNING packed.audience_id, packed.odp_id, packed.cursor + 1, packed.last,
    (SELECT max(upto) FROM ready) > %(capacity)s
"""  # noqa: S608

_READ = """
SELECT event.audience_id, event.sequence, event.identifier, event.kind, event.occurred_ns, event.forced,
    held.is_member, held.occurred_ns, held.refused
FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS span(audience_id, first, last)
JOIN audiences_event AS event
    ON event.audience_id = span.audience_id AND event.sequence BETWEEN span.first AND span.last
LEFT JOIN audiences_membership AS held
    ON held.audience_id = event.audience_id AND held.identifier = event.identifier
"""

_RENEW = """
UPDATE audiences_lane SET lease_expires_at = clock_timestamp() + make_interval(secs => %s)
WHERE audience_id = ANY(%s) AND lease_token = %s
"""

_MOVE = """
UPDATE audiences_lane AS lane SET
    delivered_sequence = greatest(lane.delivered_sequence, moved.cursor),
    member_count = lane.member_count + moved.joined,
    lease_token = NULL,
    lease_expires_at = NULL,
    blocked_at = CASE WHEN moved.block = '' THEN lane.blocked_at ELSE clock_timestamp() END,
    block_reason = CASE WHEN moved.block = '' THEN lane.block_reason ELSE moved.block END
FROM jsonb_to_recordset(%s::jsonb) AS moved(audience_id bigint, cursor bigint, joined bigint, block text)
WHERE lane.audience_id = moved.audience_id AND lane.lease_token = %s
"""

# The guard can't fail while lanes are leased properly; with it the ledger can't go back even if they weren't.
_LEDGER = """
INSERT INTO audiences_membership AS held (audience_id, identifier, is_member, occurred_ns, sequence, refused)
SELECT a, i, m, t, s, r FROM jsonb_to_recordset(%s::jsonb)
    AS x(a bigint, i text, m boolean, t bigint, s bigint, r boolean)
ON CONFLICT (audience_id, identifier) DO UPDATE SET
    is_member = excluded.is_member, occurred_ns = excluded.occurred_ns,
    sequence = excluded.sequence, refused = excluded.refused
WHERE (excluded.occurred_ns, NOT excluded.is_member) >= (held.occurred_ns, NOT held.is_member)
"""

_PARK = """
INSERT INTO audiences_parked
    (install_id, audience_id, delivery_id, sequence, identifier, reason, detail, parked_at, closed_by, resolution)
SELECT %s, a, d, s, i, %s, w, clock_timestamp(), '', ''
FROM jsonb_to_recordset(%s::jsonb) AS x(a bigint, d bigint, s bigint, i text, w text)
ON CONFLICT (audience_id, identifier) WHERE closed_at IS NULL AND sequence IS NOT NULL
DO UPDATE SET sequence = excluded.sequence, detail = excluded.detail, delivery_id = excluded.delivery_id
"""

_SUPERSEDE = """
UPDATE audiences_parked AS parked SET closed_at = clock_timestamp(), resolution = 'superseded'
FROM jsonb_to_recordset(%s::jsonb) AS x(a bigint, i text)
WHERE parked.audience_id = x.a AND parked.identifier = x.i AND parked.closed_at IS NULL AND parked.sequence IS NOT NULL
"""


def lay(audience: Audience) -> Lane:
    """The lane of a new audience, with nothing delivered yet."""
    return Lane.objects.create(audience=audience)


def due() -> list[int]:
    """The installs that have something to send and are allowed to."""
    with connection.cursor() as cursor:
        cursor.execute(_DUE)
        return [row[0] for row in cursor.fetchall()]


def work(install_id: int) -> tuple[bool, bool]:
    """Whether a lane waits for its audience to be made in ODP, and whether one waits to be delivered."""
    with connection.cursor() as cursor:
        cursor.execute(_WORK, [install_id])
        unprovisioned, provisioned = cursor.fetchone() or (None, None)
    return bool(unprovisioned), bool(provisioned)


def claim(install_id: int, *, capacity: int | None = None, provisioned: bool = True) -> Lease | None:
    """Lease the lanes longest unserved, up to ``capacity`` events (default: what one request of the install holds).

    None when nothing is ready, the install is braked or switched off, or enough requests are under way. After a
    failure one request at a time finds out whether ODP is back.
    """
    with transaction.atomic():
        install = next(iter(Install.objects.raw(_INSTALL, [install_id])), None)
        if install is None or _in_flight(install) >= (1 if install.brake_failures else install.max_in_flight):
            return None
        token = uuid.uuid4()
        with connection.cursor() as cursor:
            cursor.execute(
                _CLAIM,
                {
                    "install": install.pk,
                    "provisioned": provisioned,
                    "capacity": capacity or capacity_of(install),
                    "token": token,
                    "lease": settings.LEASE_SECONDS,
                },
            )
            rows = cursor.fetchall()
        if not rows:
            return None
        lease = Lease(token, install, tuple(Span(*row[:4]) for row in rows), more=rows[0][4])
        _close_abandoned(lease)
        return lease


def capacity_of(install: Install) -> int:
    """How many events fill one request."""
    per_change = 2 if install.mechanism == Install.Mechanism.PASSTHROUGH else 1
    return max(1, min(install.batch_size, install.learned_batch_size or install.batch_size) // per_change)


def _in_flight(install: Install) -> int:
    with connection.cursor() as cursor:
        cursor.execute(_IN_FLIGHT, [install.pk])
        row = cursor.fetchone()
    return int(row[0]) if row else 0


def _close_abandoned(lease: Lease) -> None:
    """A run that is still open here was planted by a worker that died or was too late: nobody knows what ODP did.

    The request about a customer without an audience has a Delivery and no Run; it is known by its age, because no
    request outlives a lease.
    """
    abandoned = Run.objects.filter(audience_id__in=lease.audience_ids, closed_at=None)
    deliveries = [delivery for delivery in abandoned.values_list("delivery_id", flat=True) if delivery]
    if deliveries:
        abandoned.update(closed_at=Now(), outcome=Outcome.UNKNOWN)
    is_old = Q(opened_at__lte=Now() - timedelta(seconds=settings.LEASE_SECONDS))
    has_open_run = Exists(Run.objects.filter(delivery=OuterRef("pk"), closed_at=None))
    Delivery.objects.filter(
        Q(pk__in=deliveries) | is_old & ~has_open_run, install=lease.install, closed_at=None
    ).update(closed_at=Now(), outcome=Outcome.UNKNOWN, reason="The worker was gone before the answer; sent again.")


def read(lease: Lease) -> tuple[dict[int, list[Entry]], Ledger]:
    """The claimed events by audience, and what the ledger holds of their identifiers. Raises ``GapError``."""
    spans = lease.spans
    entries: dict[int, list[Entry]] = {span.audience_id: [] for span in spans}
    ledger: Ledger = {span.audience_id: {} for span in spans}
    with connection.cursor() as cursor:
        cursor.execute(_READ, [[s.audience_id for s in spans], [s.first for s in spans], [s.last for s in spans]])
        for audience_id, sequence, identifier, kind, occurred_ns, forced, is_member, held_ns, refused in cursor:
            entries[audience_id].append(Entry(sequence, identifier, kind, occurred_ns, forced))
            if is_member is not None:
                ledger[audience_id][identifier] = Held(is_member, held_ns, refused)
    for span in spans:
        if len(entries[span.audience_id]) != span.last - span.first + 1:
            raise GapError(f"{span.odp_id}: events {span.first}–{span.last} are not all there")
    return entries, ledger


def refused_customers(install: Install, identifiers: set[str]) -> set[str]:
    """Those of whom ODP has refused something that is still parked."""
    refused = Parked.objects.filter(install=install, reason=REFUSED_BY_ODP, closed_at=None)
    if not refused.exists():
        return set()
    return set(refused.filter(identifier__in=identifiers).values_list("identifier", flat=True))


def was_taken(audience_id: int) -> bool:
    """Whether ODP has ever taken anything of this audience."""
    return Membership.objects.filter(audience_id=audience_id, refused=False).exists()


def open_delivery(
    lease: Lease, *, endpoint: str, items: int, size: int, sent: Mapping[int, int], of: Mapping[int, int]
) -> int:
    """Plant the flag: the lease renewed, a Delivery and its Runs stored as open. Returns the Delivery's id.

    ``sent`` gives the changes in the request by audience, ``of`` the events they were folded from. Raises
    ``LeaseLostError`` when the lanes are no longer ours.
    """
    with transaction.atomic():
        _renew(lease)
        delivery = Delivery.objects.create(
            install=lease.install,
            endpoint=endpoint,
            opened_at=Now(),
            items=items,
            bytes=size,
            worker=f"{socket.gethostname()}:{os.getpid()}"[:100],
            version=settings.VERSION,
        )
        Run.objects.bulk_create(
            Run(
                audience_id=span.audience_id,
                delivery=delivery,
                first_sequence=span.first,
                last_sequence=span.last,
                sent=sent[span.audience_id],
                folded=of[span.audience_id] - sent[span.audience_id],
                opened_at=Now(),
            )
            for span in lease.spans
            if span.audience_id in sent
        )
    return int(delivery.pk)


def _renew(lease: Lease) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_RENEW, [settings.LEASE_SECONDS, lease.audience_ids, lease.token])
        if cursor.rowcount != len(lease.spans):
            raise LeaseLostError


def close_delivery(delivery_id: int, answer: Answer) -> None:
    """Take the flag down: what came back. A delivery that was closed as unknown meanwhile keeps that."""
    outcome = answer.outcome
    closed = Delivery.objects.filter(pk=delivery_id, closed_at=None).update(
        closed_at=Now(),
        outcome=outcome,
        status=answer.status,
        latency_ms=round(answer.seconds * 1000),
        reason=answer.reason,
        answer=answer.text if outcome is not Outcome.DELIVERED else "",
    )
    if closed:
        Run.objects.filter(delivery_id=delivery_id, closed_at=None).update(closed_at=Now(), outcome=outcome)


def settle(
    lease: Lease,
    results: Sequence[Result],
    ledger: Ledger,
    *,
    delivery_id: int | None = None,
    answer: Answer | None = None,
) -> None:
    """Write down what became of a lease and give it back, in one transaction: cursors, ledger, Runs, Parked.

    Raises ``LeaseLostError``, with no row changed, when one of its lanes has gone to another worker.
    """
    with transaction.atomic():
        _move(lease, results, ledger)
        _write_ledger(results)
        _supersede(results, ledger)
        _park(lease.install, results, delivery_id)
        if delivery_id is not None and answer is not None:
            close_delivery(delivery_id, answer)
        _record_folded(results)
    for result in results:
        if result.block_reason:
            log.error("blocked", audience=result.span.odp_id, reason=result.block_reason)


def _move(lease: Lease, results: Sequence[Result], ledger: Ledger) -> None:
    moved = [
        {
            "audience_id": result.span.audience_id,
            "cursor": result.span.last if result.complete else 0,
            "joined": _joined(result, ledger[result.span.audience_id]),
            "block": result.block_reason.replace("\x00", ""),
        }
        for result in results
    ]
    with connection.cursor() as cursor:
        cursor.execute(_MOVE, [json.dumps(moved), lease.token])
        if cursor.rowcount != len(lease.spans):
            raise LeaseLostError


def is_member(entry: Entry) -> bool:
    return entry.kind != Kind.EXIT


def _joined(result: Result, held: Mapping[str, Held]) -> int:
    """By how many the audience's members grow in the ledger."""
    written = [*result.accepted, *(entry for entry, _ in result.refused)]
    before = sum(held[entry.identifier].is_member for entry in written if entry.identifier in held)
    return sum(map(is_member, written)) - before


def _write_ledger(results: Iterable[Result]) -> None:
    rows = [
        {
            "a": result.span.audience_id,
            "i": entry.identifier,
            "m": is_member(entry),
            "t": entry.occurred_ns,
            "s": entry.sequence,
            "r": refused,
        }
        for result in results
        for refused, entries in ((False, result.accepted), (True, [entry for entry, _ in result.refused]))
        for entry in entries
    ]
    _execute(_LEDGER, rows)


def _supersede(results: Iterable[Result], ledger: Ledger) -> None:
    """A refused item of which ODP has now taken something newer needs nobody any more."""
    rows = [
        {"a": result.span.audience_id, "i": entry.identifier}
        for result in results
        for entry in result.accepted
        if (held := ledger[result.span.audience_id].get(entry.identifier)) and held.refused
    ]
    _execute(_SUPERSEDE, rows)


def _park(install: Install, results: Iterable[Result], delivery_id: int | None) -> None:
    rows = [
        {
            "a": result.span.audience_id,
            "d": delivery_id,
            "s": entry.sequence,
            "i": entry.identifier,
            "w": words.replace("\x00", ""),
        }
        for result in results
        for entry, words in result.refused
    ]
    if rows:
        with connection.cursor() as cursor:
            cursor.execute(_PARK, [install.pk, REFUSED_BY_ODP, json.dumps(rows)])
        log.warning("parked", install=install.name, reasons={REFUSED_BY_ODP: len(rows)})


def _execute(statement: str, rows: list[dict[str, object]]) -> None:
    if rows:
        with connection.cursor() as cursor:
            cursor.execute(statement, [json.dumps(rows)])


def _record_folded(results: Iterable[Result]) -> None:
    """A run of which nothing had to be sent is history too: it says where its events went."""
    Run.objects.bulk_create(
        Run(
            audience_id=result.span.audience_id,
            first_sequence=result.span.first,
            last_sequence=result.span.last,
            sent=0,
            folded=result.events,
            opened_at=Now(),
            closed_at=Now(),
            outcome=Outcome.DELIVERED,
        )
        for result in results
        if result.complete and not result.sent
    )


# --- what a person may do to a lane --------------------------------------------------------------------------


def pause(lane: Lane, *, by: str, reason: str) -> bool:
    """Hold a lane until a person resumes it. False when it is paused already."""
    paused = Lane.objects.filter(pk=lane.pk, paused_at=None)
    return bool(paused.update(paused_at=now(), paused_by=by, pause_reason=reason))


def resume(lane: Lane) -> bool:
    """Let a paused lane go on. False when it wasn't paused."""
    return bool(
        Lane.objects.filter(pk=lane.pk, paused_at__isnull=False).update(paused_at=None, paused_by="", pause_reason="")
    )


def block(lease: Lease, reason: str) -> None:
    """Give a lease back with its lanes blocked: ODP takes nothing of these audiences until a person acts."""
    settle(
        lease,
        [Result(span, complete=False, block_reason=reason) for span in lease.spans],
        {span.audience_id: {} for span in lease.spans},
    )


def give_back(lease: Lease) -> None:
    """Return a lease with nothing done. Quietly nothing, when it was lost."""
    Lane.objects.filter(lease_token=lease.token).update(lease_token=None, lease_expires_at=None)


def unblock(lane: Lane) -> bool:
    """Let a blocked lane try again. False when it wasn't blocked."""
    return bool(Lane.objects.filter(pk=lane.pk, blocked_at__isnull=False).update(blocked_at=None, block_reason=""))
