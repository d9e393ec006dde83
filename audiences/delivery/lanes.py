"""Lanes: claim, open, settle, block, pause. The only writer of Lanes, Runs, Deliveries and the ledger.

A claim is a lease with a token, in the row. Every later step names the token, and a step of a worker that has lost
its lease changes no row. All clocks are PostgreSQL's.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

import structlog
from django.conf import settings
from django.db import Error, connection, transaction
from django.db.models import Case, Exists, F, OuterRef, Q, Value, When
from django.db.models.functions import Coalesce, Greatest, Now
from django.utils.timezone import now

from audiences import carried, prepared, sessions
from audiences.delivery.fold import EARLIEST_NS, EXIT, Entry, Held, disbelieve
from audiences.models import Audience, Delivery, Install, Lane, Membership, Parked, Run
from lytics import times
from odp.mechanisms import MECHANISMS
from odp.outcomes import Answer, Outcome

log = structlog.get_logger(__name__)

REFUSED_BY_ODP = "refused_by_odp"

Ledger = dict[int, dict[str, Held]]


class LeaseLostError(Exception):
    """Another worker may have claimed these lanes: what this one still wanted to do must not happen."""


class GapError(Exception):
    """Numbers are missing in the log of a lane. Numbering makes that impossible, so it is a bug or a damaged table."""


class Work(NamedTuple):
    """Whether an audience of the install is to be made in ODP now and may be, how many events wait to be delivered in
    those that may be claimed, and whether a request is under way."""

    install: Install
    unprovisioned: bool
    ready: int
    under_way: bool


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
    # Whether ODP has refused customers of this install who are still parked for it.
    has_refusals: bool

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
    AND (lane.fault_until_at IS NULL OR lane.fault_until_at <= clock_timestamp())
"""
# When a look at ODP was asked for, the audience's deliveries wait for it, because what they need may be gone there.
# After a look that failed they go on, and at the latest this many seconds after it was asked for.
LOOK_SECONDS = 15
_MADE = f"""
    audience.provisioned_at IS NOT NULL AND (audience.look_asked_at IS NULL OR audience.hold_failures > 0
        OR audience.look_asked_at <= clock_timestamp() - interval '{LOOK_SECONDS} seconds')
"""
# An audience that is to be made in ODP now: it has events or somebody asked, no worker is at it, and its pause after a
# failure is over.
TO_MAKE = """
    (audience.provisioned_at IS NULL AND audience.last_sequence > lane.delivered_sequence
        OR audience.look_asked_at IS NOT NULL)
    AND lane.paused_at IS NULL AND lane.blocked_at IS NULL
    AND (audience.hold_until_at IS NULL OR audience.hold_until_at <= clock_timestamp())
    AND (audience.making_until_at IS NULL OR audience.making_until_at <= clock_timestamp())
"""
# Audiences of one install that are made at once. Each holds a worker's slot for as long as ODP takes to answer, so more
# of them would let an API of ODP that hangs hold up deliveries.
MAKING_AT_ONCE = 2
GOING = _GOING = "install.enabled AND (install.brake_until_at IS NULL OR install.brake_until_at <= clock_timestamp())"

_DUE = f"""
SELECT DISTINCT audience.install_id
FROM audiences_lane AS lane
JOIN audiences_audience AS audience ON audience.id = lane.audience_id
JOIN audiences_install AS install ON install.id = audience.install_id
WHERE {_GOING} AND (audience.last_sequence > lane.delivered_sequence AND {_FREE} AND {_MADE} OR {TO_MAKE})
"""  # noqa: S608 — only constants of this module

# In their order: that is how Django makes an object of them.
_INSTALL_FIELDS = Install._meta.concrete_fields
# The key has to be decrypted, and not everybody needs it.
_KEYLESS_FIELDS = [field for field in _INSTALL_FIELDS if field.name != "odp_api_key"]


def _columns(fields: Iterable[Any]) -> str:
    return ", ".join(f"install.{field.column}" for field in fields)


_WORK = f"""
SELECT {_columns(_KEYLESS_FIELDS)}, lanes.unprovisioned, lanes.ready, lanes.under_way
FROM audiences_install AS install CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE to_make) > 0
            AND count(*) FILTER (WHERE making_until_at > clock_timestamp()) < {MAKING_AT_ONCE} AS unprovisioned,
        coalesce(sum(behind) FILTER (WHERE made AND {_FREE}), 0)::bigint AS ready,
        count(*) FILTER (WHERE lease_expires_at > clock_timestamp()) > 0 AS under_way
    FROM (
        SELECT lane.*, audience.making_until_at, audience.last_sequence - lane.delivered_sequence AS behind,
            {_MADE} AS made, {TO_MAKE} AS to_make
        FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
        WHERE audience.install_id = install.id
    ) AS lane
) AS lanes
WHERE install.id = %s
"""  # noqa: S608 — only constants of this module

# Locked so that one worker at a time claims for an install; receiving takes no lock that this one would hinder. A claim
# that PostgreSQL forgets when it dies costs nothing, since what it leads to is stored by a commit that waits: nobody
# else has to wait for the disk meanwhile.
_LOCK = f"""
SELECT {_columns(_INSTALL_FIELDS)}, EXISTS (SELECT 1 FROM audiences_parked AS parked
    WHERE parked.install_id = install.id AND parked.reason = '{REFUSED_BY_ODP}' AND parked.closed_at IS NULL)
FROM audiences_install AS install WHERE id = %s AND {_GOING} FOR NO KEY UPDATE
"""  # noqa: S608
_WITHOUT_WAITING = "SELECT set_config('synchronous_commit', 'off', true)"

# The lanes longest unserved, until the request is full. A lane that a late settle has moved since is left for the
# next claim: its cursor is no longer the one that was read.
# A request that failed may have been applied. Fewer events of a lane than it held would fold to an older state than
# ODP has, so a lane is taken as far as its last Run went or not at all; the first one always has the room.
# A lane whose last delivery ended in an unexpected error of ours is taken alone, so that the error holds no other lane.
_CLAIM = f"""
WITH lane AS MATERIALIZED (
    SELECT lane.*, audience.odp_id, audience.last_sequence AS last, {_MADE} AS made
    FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
    WHERE audience.install_id = %(install)s
), ready AS (
    SELECT audience_id, odp_id, delivered_sequence AS cursor, last, last_served_at,
        CASE WHEN fault_since_at IS NOT NULL THEN audience_id END AS alone
    FROM lane WHERE made AND last > delivered_sequence AND {_FREE}
), chosen AS (
    SELECT audience_id, odp_id, cursor, last,
        (sum(last - cursor) OVER (ORDER BY last_served_at NULLS FIRST, audience_id))::bigint AS upto
    FROM ready WHERE alone IS NOT DISTINCT FROM
        (SELECT alone FROM ready ORDER BY last_served_at NULLS FIRST, audience_id LIMIT 1)
), room AS (
    SELECT %(capacity)s::bigint AS capacity, CASE WHEN brake_failures > 0 THEN 1 ELSE max_in_flight END
        - (SELECT count(DISTINCT lane.lease_token) FROM lane WHERE lease_expires_at > clock_timestamp()) AS requests
    FROM audiences_install AS install WHERE id = %(install)s AND {_GOING}
), packed AS (
    SELECT audience_id, odp_id, cursor, least(last, cursor + room) AS last, capacity
    FROM (
        SELECT chosen.*, capacity, capacity - (upto - (last - cursor)) AS room FROM chosen, room WHERE requests > 0
    ) AS fitting
    WHERE room > 0 AND (room = capacity OR cursor + room >= last OR cursor + room >= coalesce(
        (SELECT run.last_sequence FROM audiences_run AS run WHERE run.audience_id = fitting.audience_id
            ORDER BY run.id DESC LIMIT 1), 0))
)
UPDATE audiences_lane AS lane SET
    lease_token = %(token)s,
    lease_expires_at = clock_timestamp() + make_interval(secs => %(lease)s),
    last_served_at = clock_timestamp()
FROM packed
WHERE lane.audience_id = packed.audience_id AND lane.delivered_sequence = packed.cursor AND {_FREE}
RETURNING packed.audience_id, packed.odp_id, packed.cursor + 1, packed.last,
    (SELECT sum(last - cursor) FROM ready) > (SELECT least(max(upto), packed.capacity) FROM chosen),
    EXISTS (SELECT 1 FROM audiences_run WHERE audience_id = packed.audience_id AND closed_at IS NULL)
        OR (SELECT min(opened_at) FROM audiences_delivery WHERE install_id = %(install)s AND closed_at IS NULL)
            <= clock_timestamp() - make_interval(secs => %(lease)s)
"""  # noqa: S608

# Limits that limit nothing: with them PostgreSQL looks rows up one by one. By what it guesses of these numbers, and of
# tables that have just begun to grow, it would rather read all of the log.
_READ = """
SELECT event.audience_id, event.sequence, event.identifier, event.kind, event.occurred_ns, event.forced,
    held.is_member, held.occurred_ns, held.refused
FROM unnest(%s::int[], %s::bigint[], %s::bigint[]) AS span(audience_id, first, last)
CROSS JOIN LATERAL (
    SELECT * FROM audiences_event AS event
    WHERE event.audience_id = span.audience_id AND event.sequence BETWEEN span.first AND span.last
    ORDER BY event.sequence LIMIT span.last - span.first + 1
) AS event
LEFT JOIN LATERAL (
    SELECT * FROM audiences_membership AS held
    WHERE held.audience_id = event.audience_id AND held.identifier = event.identifier LIMIT 1
) AS held ON true
"""

# A lease that has run out isn't counted any more, and another may have the install's place by now.
_OPEN = """
WITH renewed AS (
    UPDATE audiences_lane SET lease_expires_at = clock_timestamp() + make_interval(secs => %s)
    WHERE audience_id = ANY(%s::int[]) AND lease_token = %s AND lease_expires_at > clock_timestamp()
    RETURNING 1
), delivery AS (
    INSERT INTO audiences_delivery
        (install_id, endpoint, opened_at, outcome, items, bytes, reason, answer, request, worker, version)
    SELECT %s, %s, statement_timestamp(), '', %s, %s, '', '', %s::bytea, %s, %s
    WHERE (SELECT count(*) FROM renewed) = %s
    RETURNING id
), runs AS (
    INSERT INTO audiences_run
        (audience_id, delivery_id, first_sequence, last_sequence, sent, folded, opened_at, outcome)
    SELECT run.audience_id, delivery.id, run.first, run.last, run.sent, run.folded, statement_timestamp(), ''
    FROM delivery CROSS JOIN unnest(%s::int[], %s::bigint[], %s::bigint[], %s::int[], %s::int[])
        AS run(audience_id, first, last, sent, folded)
)
SELECT id FROM delivery
"""

_CLOSE = """
WITH closed AS (
    UPDATE audiences_delivery SET
        closed_at = statement_timestamp(), outcome = %(outcome)s, status = %(status)s::smallint,
        latency_ms = %(latency)s::int, reason = %(reason)s, answer = %(answer)s,
        affirmed_at = CASE WHEN %(sent)s::boolean THEN affirmed_at ELSE statement_timestamp() END
    WHERE id = %(delivery)s AND closed_at IS NULL RETURNING id
)
UPDATE audiences_run AS run SET closed_at = statement_timestamp(), outcome = %(outcome)s
FROM closed WHERE run.delivery_id = closed.id AND run.closed_at IS NULL
"""

# The same block came back, or nothing was delivered.
_LIFTED_STAYS = "(moved.block = lane.lifted_reason OR moved.block = '' AND moved.cursor <= lane.delivered_sequence)"
_MOVE = f"""
UPDATE audiences_lane AS lane SET
    delivered_sequence = greatest(lane.delivered_sequence, moved.cursor),
    member_count = lane.member_count + moved.joined,
    lease_token = NULL,
    lease_expires_at = NULL,
    blocked_at = CASE WHEN moved.block = '' THEN lane.blocked_at ELSE clock_timestamp() END,
    block_reason = CASE WHEN moved.block = '' THEN lane.block_reason ELSE moved.block END,
    lifted_since_at = CASE WHEN {_LIFTED_STAYS} THEN lane.lifted_since_at END,
    lifted_reason = CASE WHEN {_LIFTED_STAYS} THEN lane.lifted_reason ELSE '' END,
    fault_since_at = NULL,
    fault_until_at = NULL,
    fault_reason = ''
FROM unnest(%s::int[], %s::bigint[], %s::int[], %s::text[]) AS moved(audience_id, cursor, joined, block)
WHERE lane.audience_id = moved.audience_id AND lane.lease_token = %s
"""  # noqa: S608

# In two ways, because who leases a lane knows which of its customers are new: those are copied, and so written down by
# the page. Their keys and the guard can't fail while lanes are leased properly; with them the ledger can't go back even
# if they weren't.
_MET = """
COPY audiences_membership (audience_id, occurred_ns, sequence, is_member, refused, identifier) FROM STDIN
"""
_LEDGER = """
UPDATE audiences_membership AS held SET
    is_member = told.is_member, occurred_ns = told.occurred_ns, sequence = told.sequence, refused = told.refused
FROM unnest(%s::int[], %s::text[], %s::boolean[], %s::bigint[], %s::bigint[], %s::boolean[])
    AS told(audience_id, identifier, is_member, occurred_ns, sequence, refused)
WHERE held.audience_id = told.audience_id AND held.identifier = told.identifier
    AND ((told.occurred_ns, NOT told.is_member) >= (held.occurred_ns, NOT held.is_member) OR held.occurred_ns > %s)
"""

_PARK = """
INSERT INTO audiences_parked
    (install_id, audience_id, delivery_id, sequence, identifier, reason, detail, parked_at, closed_by, resolution)
SELECT %s, a, d, s, i, %s, w, clock_timestamp(), '', ''
FROM jsonb_to_recordset(%s::jsonb) AS x(a int, d bigint, s bigint, i text, w text)
ON CONFLICT (audience_id, identifier) WHERE closed_at IS NULL AND sequence IS NOT NULL
DO UPDATE SET sequence = excluded.sequence, detail = excluded.detail, delivery_id = excluded.delivery_id
"""

_SUPERSEDE = """
UPDATE audiences_parked AS parked SET closed_at = clock_timestamp(), resolution = 'superseded'
FROM jsonb_to_recordset(%s::jsonb) AS x(a int, i text)
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


def work(install_id: int) -> Work | None:
    """What an install has to do now; None when there is no such install."""
    with prepared.cursor() as cursor:
        cursor.execute(_WORK, [install_id])
        row = cursor.fetchone()
    return row and Work(_install(_KEYLESS_FIELDS, row[:-3]), *row[-3:])


def _install(fields: Sequence[Any], row: Sequence[Any]) -> Install:
    values = [
        field.from_db_value(value, None, connection) if hasattr(field, "from_db_value") else value
        for field, value in zip(fields, row, strict=True)
    ]
    return Install.from_db("default", [field.attname for field in fields], values)


def claim(install_id: int, *, capacity: int | None = None) -> Lease | None:
    """Lease the lanes longest unserved, up to ``capacity`` events (default: what one request of the install holds).

    None when nothing is ready, the install is braked or switched off, or enough requests are under way. After a
    failure one request at a time finds out whether ODP is back.
    """
    if capacity is None:
        work_now = work(install_id)
        if work_now is None:
            return None
        capacity = capacity_of(work_now.install)
    token = uuid.uuid4()
    try:
        return _claim(install_id, capacity, token)
    except Error as error:
        if sessions.is_trouble(error):  # the claim may be stored all the same
            _give_back(token)
        raise


def _claim(install_id: int, capacity: int, token: uuid.UUID) -> Lease | None:
    values: dict[str, Any] = {"install": install_id, "capacity": capacity, "token": token}
    locking, claiming = prepared.cursor(), prepared.cursor()
    with prepared.pipeline():
        prepared.cursor().execute(_WITHOUT_WAITING)
        locking.execute(_LOCK, [install_id])
        claiming.execute(_CLAIM, {**values, "lease": settings.LEASE_SECONDS})
    locked, rows = locking.fetchone(), claiming.fetchall()
    if not rows:
        return None
    if locked is None:  # it was braked until between the two: then nobody was waited for
        _give_back(token)
        return None
    spans = tuple(Span(*row[:4]) for row in rows)
    lease = Lease(token, _install(_INSTALL_FIELDS, locked[:-1]), spans, more=rows[0][4], has_refusals=locked[-1])
    if any(row[5] for row in rows):
        _close_abandoned(lease)
    return lease


def capacity_of(install: Install) -> int:
    """How many events fill one request."""
    per_change = MECHANISMS[install.mechanism].items_per_change
    return max(1, min(install.batch_size, install.learned_batch_size or install.batch_size) // per_change)


def _close_abandoned(lease: Lease, reason: str = "The worker was gone before the answer; sent again.") -> None:
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
    ).update(closed_at=Now(), outcome=Outcome.UNKNOWN, reason=reason)


def read(lease: Lease) -> tuple[dict[int, list[Entry]], Ledger]:
    """The claimed events by audience, and what the ledger holds of their identifiers. Raises ``GapError``."""
    spans = lease.spans
    entries: dict[int, list[Entry]] = {span.audience_id: [] for span in spans}
    ledger: Ledger = {span.audience_id: {} for span in spans}
    # Not prepared: a plan that was made while the log was small would be kept when it no longer is.
    with connection.cursor() as cursor:
        cursor.execute(_READ, _arrays(spans))
        rows = cursor.fetchall()
    latest = latest_ns()
    ahead: dict[int, set[int]] = {}
    for audience_id, sequence, identifier, kind, occurred_ns, forced, is_member, held_ns, refused in rows:
        entries[audience_id].append(Entry(sequence, identifier, kind, occurred_ns, forced))
        if occurred_ns > latest:
            ahead.setdefault(audience_id, set()).add(sequence)
        if is_member is not None:
            if held_ns > latest:  # stored by an older version: any real event decides
                held_ns = EARLIEST_NS
            ledger[audience_id][identifier] = Held(is_member, held_ns, refused)
    for audience_id, numbers in ahead.items():
        entries[audience_id] = disbelieve(entries[audience_id], numbers, ledger[audience_id])
    for span in spans:
        if len(entries[span.audience_id]) != span.last - span.first + 1:
            raise GapError(f"{span.odp_id}: events {span.first}–{span.last} are not all there")
    return entries, ledger


def latest_ns() -> int:
    """The latest transition time that is believed now: so far ahead may the clock of Lytics be."""
    return round((time.time() + settings.CLOCK_TOLERANCE_SECONDS) * times.SECOND)


def _arrays(spans: Iterable[Span]) -> list[str]:
    return [prepared.numbers(column) for column in zip(*((s.audience_id, s.first, s.last) for s in spans), strict=True)]


def refused_customers(lease: Lease, identifiers: Iterable[str]) -> set[str]:
    """Those of them of whom ODP has refused something that is still parked."""
    if not lease.has_refusals:
        return set()
    refused = Parked.objects.filter(install=lease.install, reason=REFUSED_BY_ODP, closed_at=None)
    return set(refused.filter(identifier__in=set(identifiers)).values_list("identifier", flat=True))


def was_taken(audience_id: int) -> bool:
    """Whether ODP has ever taken anything of this audience."""
    return Membership.objects.filter(audience_id=audience_id, refused=False).exists()


def open_delivery(
    lease: Lease,
    *,
    endpoint: str,
    items: int,
    size: int,
    sent: Mapping[int, int],
    of: Mapping[int, int],
    body: bytes | None = None,
) -> int:
    """Plant the flag: the lease renewed, a Delivery and its Runs stored as open. Returns the Delivery's id.

    ``body`` is what is about to go out. ``sent`` gives the changes in the request by audience, ``of`` the events they
    were folded from. Raises ``LeaseLostError`` when the lanes are no longer ours.
    """
    request = None if body is None else carried.pack(body)
    spans = [span for span in lease.spans if span.audience_id in sent]
    changes = [sent[span.audience_id] for span in spans]
    folded = [of[span.audience_id] - sent[span.audience_id] for span in spans]
    opening = prepared.cursor()
    with transaction.atomic():
        with prepared.pipeline():
            opening.execute(
                _OPEN,
                [
                    *(settings.LEASE_SECONDS, prepared.numbers(lease.audience_ids), lease.token),
                    *(lease.install.pk, endpoint, items, size, request, _worker(), settings.VERSION, len(lease.spans)),
                    *(_arrays(spans) if spans else ["{}"] * 3),
                    *(prepared.numbers(changes), prepared.numbers(folded)),
                ],
            )
        if (row := opening.fetchone()) is None:
            raise LeaseLostError
    return int(row[0])


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"[:100]


def close_delivery(delivery_id: int, answer: Answer) -> None:
    """Take the flag down: what came back. A delivery that was closed as unknown meanwhile keeps that."""
    prepared.cursor().execute(
        _CLOSE,
        {
            "delivery": delivery_id,
            "outcome": answer.outcome.value,
            "status": answer.status,
            "latency": round(answer.seconds * 1000),
            "reason": answer.reason,
            "answer": answer.text,
            # What never went out can't be applied late: nobody has to look at it again.
            "sent": answer.sent,
        },
    )


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
    moving = prepared.cursor()
    with transaction.atomic():
        with prepared.pipeline():
            prepared.cursor().execute(_WITHOUT_WAITING)
            moving.execute(_MOVE, [*_moves(results, ledger), lease.token])
            if delivery_id is not None and answer is not None:
                close_delivery(delivery_id, answer)
        if moving.rowcount != len(lease.spans):
            raise LeaseLostError
        _write_ledger(results, ledger)
        _supersede(results, ledger)
        _park(lease.install, results, delivery_id)
        _record_folded(results)
    for result in results:
        if result.block_reason:
            log.error("blocked", audience=result.span.odp_id, reason=result.block_reason)


def _moves(results: Sequence[Result], ledger: Ledger) -> list[str]:
    return [
        prepared.numbers(result.span.audience_id for result in results),
        prepared.numbers(result.span.last if result.complete else 0 for result in results),
        prepared.numbers(_joined(result, ledger[result.span.audience_id]) for result in results),
        prepared.texts(result.block_reason.replace("\x00", "") for result in results),
    ]


def _joined(result: Result, held: Mapping[str, Held]) -> int:
    """By how many the audience's members grow in the ledger."""
    written = [*result.accepted, *(entry for entry, _ in result.refused)]
    before = sum(held[entry.identifier].is_member for entry in written if entry.identifier in held)
    return sum(entry.kind != EXIT for entry in written) - before


def _write_ledger(results: Iterable[Result], ledger: Ledger) -> None:
    met: list[tuple[int, Entry, bool]] = []
    known: list[tuple[int, Entry, bool]] = []
    for result in results:
        lane = result.span.audience_id
        held = ledger[lane]
        for entry in result.accepted:
            (known if entry.identifier in held else met).append((lane, entry, False))
        for entry, _ in result.refused:
            (known if entry.identifier in held else met).append((lane, entry, True))
    if met:
        customers = prepared.escaped([entry.identifier for _, entry, _ in met])
        prepared.copy(
            _MET,
            [
                f"{lane}\t{entry.occurred_ns}\t{entry.sequence}\t{entry.kind != EXIT}\t{refused}\t{customer}\n"
                for (lane, entry, refused), customer in zip(met, customers, strict=True)
            ],
        )
    if known:
        lanes, entries, refused = zip(*known, strict=True)
        # Not prepared, as in ``read``.
        with connection.cursor() as cursor:
            cursor.execute(
                _LEDGER,
                [
                    prepared.numbers(lanes),
                    prepared.texts([entry.identifier for entry in entries]),
                    prepared.numbers([entry.kind != EXIT for entry in entries]),
                    prepared.numbers([entry.occurred_ns for entry in entries]),
                    prepared.numbers([entry.sequence for entry in entries]),
                    prepared.numbers(refused),
                    latest_ns(),
                ],
            )


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


# --- events that are not to be sent ---------------------------------------------------------------------------

# In one statement, because the cursors that are read have to be those that are moved. No lane with a lease is touched:
# the worker that holds it may have a request under way.
_SKIP = """
WITH behind AS (
    SELECT lane.audience_id, lane.delivered_sequence AS cursor, audience.last_sequence AS last
    FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
    WHERE audience.install_id = %(install)s AND audience.last_sequence > lane.delivered_sequence
        AND (lane.lease_expires_at IS NULL OR lane.lease_expires_at <= clock_timestamp())
    FOR NO KEY UPDATE OF lane
), moved AS (
    UPDATE audiences_lane AS lane SET delivered_sequence = behind.last, lease_token = NULL, lease_expires_at = NULL,
        fault_since_at = NULL, fault_until_at = NULL, fault_reason = ''
    FROM behind WHERE lane.audience_id = behind.audience_id
    RETURNING lane.audience_id, behind.cursor, behind.last
), runs AS (
    INSERT INTO audiences_run
        (audience_id, first_sequence, last_sequence, sent, folded, opened_at, closed_at, outcome, skip_id)
    SELECT audience_id, cursor + 1, last, 0, 0, clock_timestamp(), clock_timestamp(), 'skipped', %(skip)s FROM moved
)
SELECT audience.odp_id, moved.last - moved.cursor
FROM moved JOIN audiences_audience AS audience ON audience.id = moved.audience_id ORDER BY audience.odp_id
"""
_LEAVE_IN_DOUBT = """
UPDATE audiences_delivery SET affirmed_at = clock_timestamp()
WHERE install_id = %(install)s AND affirmed_at IS NULL AND outcome IN ('unknown', 'retry_later')
"""
_CLOSE_OPEN = """
WITH closed AS (
    UPDATE audiences_delivery SET closed_at = clock_timestamp(), outcome = 'unknown'
    WHERE install_id = %(install)s AND closed_at IS NULL RETURNING id
)
UPDATE audiences_run AS run SET closed_at = clock_timestamp(), outcome = 'unknown'
FROM closed WHERE run.delivery_id = closed.id AND run.closed_at IS NULL
"""


def leased(install_id: int) -> bool:
    """Whether a worker holds any lane of the install now."""
    held = Lane.objects.filter(audience__install=install_id, lease_expires_at__gt=Now())
    return held.exists()


def skip(install_id: int, *, skip_id: int) -> list[tuple[str, int]]:
    """Move every cursor to the end of its log without sending: ODP ids and how many events each. In a transaction.

    Requests that were under way or had failed are left as they are: nothing is sent again because of them.
    """
    values = {"install": install_id, "skip": skip_id}
    with connection.cursor() as cursor:
        for statement in (_CLOSE_OPEN, _LEAVE_IN_DOUBT, _SKIP):
            cursor.execute(statement, values)
        return [(odp_id, int(events)) for odp_id, events in cursor.fetchall()]


# --- requests that ODP may still apply -----------------------------------------------------------------------

# Deliveries without a final answer, long enough ago that ODP has applied them by now or never will.
_DOUBTFUL = """
SELECT id FROM audiences_delivery
WHERE affirmed_at IS NULL AND outcome IN ('unknown', 'retry_later')
    AND closed_at <= clock_timestamp() - make_interval(secs => %s)
ORDER BY closed_at
"""
_AFFIRM = """
UPDATE audiences_delivery SET affirmed_at = clock_timestamp() WHERE id = (
    SELECT id FROM audiences_delivery WHERE id = %s AND affirmed_at IS NULL FOR UPDATE SKIP LOCKED
)
"""

# What those requests said of these customers is no longer the truth, or was not for a while: the ledger moved on.
_OVERTAKEN = """
SELECT DISTINCT ON (held.audience_id, held.identifier)
    held.audience_id, held.identifier, held.is_member, held.occurred_ns, run.delivery_id
FROM audiences_run AS run
JOIN audiences_event AS event
    ON event.audience_id = run.audience_id AND event.sequence BETWEEN run.first_sequence AND run.last_sequence
JOIN audiences_membership AS held
    ON held.audience_id = event.audience_id AND held.identifier = event.identifier
WHERE run.delivery_id = %s AND held.sequence > run.last_sequence AND NOT held.refused
ORDER BY held.audience_id, held.identifier, run.delivery_id DESC
"""


def doubtful(*, seconds: float) -> list[int]:
    """The Deliveries without a final answer that closed ``seconds`` ago and weren't affirmed, oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(_DOUBTFUL, [seconds])
        return [row[0] for row in cursor.fetchall()]


def overtaken(delivery_id: int) -> list[tuple[int, str, bool, int, int]]:
    """Mark a Delivery without a final answer as affirmed; nothing when another worker does so.

    Returns the present truth (audience, identifier, is member, as of when, of which Delivery) about each customer of it
    of whom ODP has been told something newer since. Called inside the transaction that has it sent again.
    """
    with connection.cursor() as cursor:
        cursor.execute(_AFFIRM, [delivery_id])
        if not cursor.rowcount:
            return []
        cursor.execute(_OVERTAKEN, [delivery_id])
        return list(cursor.fetchall())


# --- what a person may do to a lane --------------------------------------------------------------------------


def pause(lane: Lane, *, by: str, reason: str) -> bool:
    """Hold a lane until a person resumes it. False when it is paused already."""
    paused = Lane.objects.filter(pk=lane.pk, paused_at=None)
    return bool(paused.update(paused_at=now(), paused_by=by, pause_reason=reason))


def set_aside(lane: Lane, *, by: str, reason: str) -> bool:
    """Hold a blocked lane until a person resumes it; then its block is told again. False when it isn't blocked."""
    blocked = Lane.objects.filter(pk=lane.pk, blocked_at__isnull=False)
    return bool(blocked.update(paused_at=Greatest(Now(), "blocked_at"), paused_by=by, pause_reason=reason))


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


def block_audience(audience_id: int, reason: str) -> bool:
    """Block a lane whatever is under way: ODP can't hold its audience. False when it was blocked already."""
    reason = reason.replace("\x00", "")
    free = Lane.objects.filter(pk=audience_id, blocked_at=None)
    kept = {
        "lifted_since_at": Case(When(lifted_reason=reason, then=F("lifted_since_at"))),
        "lifted_reason": Case(When(lifted_reason=reason, then=Value(reason)), default=Value("")),
    }
    return bool(free.update(blocked_at=Now(), block_reason=reason, **kept))


def give_back(lease: Lease) -> None:
    """Return a lease with nothing done, once PostgreSQL is there. Quietly nothing, when it was lost."""
    _give_back(lease.token)


def _give_back(token: uuid.UUID) -> None:
    held = Lane.objects.filter(lease_token=token)
    # Later the lease is over anyway.
    sessions.when_back(lambda: held.update(lease_token=None, lease_expires_at=None), seconds=settings.LEASE_SECONDS)


def hold(lease: Lease, reason: str) -> None:
    """Give a lease back after an unexpected error of ours. Each of its lanes is then tried alone: those of a lease of
    several at once, and the one that fails alone after ``PROBE_SECONDS``."""
    alone = len(lease.spans) == 1
    pause = timedelta(seconds=settings.PROBE_SECONDS) if alone else timedelta(0)
    held = Lane.objects.filter(lease_token=lease.token)
    values: dict[str, Any] = {
        "lease_token": None,
        "lease_expires_at": None,
        "fault_since_at": Coalesce("fault_since_at", Now()),
        "fault_until_at": Now() + pause,
        "fault_reason": reason.replace("\x00", ""),
    }

    def put_down() -> None:
        with transaction.atomic():
            if held.update(**values):
                _close_abandoned(lease, reason)

    sessions.when_back(put_down, seconds=settings.LEASE_SECONDS)
    if alone:
        log.warning("audience on hold", audience=lease.spans[0].odp_id, seconds=settings.PROBE_SECONDS, reason=reason)


def try_now(lane: Lane) -> bool:
    """Let a lane that an error of ours holds be tried at once. False when none does."""
    return bool(Lane.objects.filter(pk=lane.pk, fault_since_at__isnull=False).update(fault_until_at=Now()))


def unblock(lane: Lane, *, idle: bool = False) -> bool:
    """Let a blocked lane try again. False when it wasn't blocked, or if ``idle`` when a worker holds it.

    The lifted block is kept until something is delivered, so that the same one is known when it comes back.
    """
    blocked = Lane.objects.filter(pk=lane.pk, blocked_at__isnull=False)
    if idle:
        blocked = blocked.filter(lease_token=None)
    kept = {"lifted_since_at": Coalesce("lifted_since_at", "blocked_at"), "lifted_reason": F("block_reason")}
    return bool(blocked.update(blocked_at=None, block_reason="", **kept))
