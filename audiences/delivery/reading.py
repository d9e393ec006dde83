"""Reading what a lease covers: its events, what the ledger holds of their customers, and what ODP rejected of them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import structlog

from audiences import prepared_statements, sql
from audiences.delivery.fold import EARLIEST_NS, Entry, Held, disbelieve
from audiences.delivery.leases import (
    GAP,
    REJECTED_BY_ODP,
    GapError,
    Lease,
    Ledger,
    Span,
    columns,
    latest_ns,
    latest_ns_of_database,
)
from audiences.models import Membership, Parked

log = structlog.get_logger(__name__)

LAST_PART = 2**31 - 1


class Read(NamedTuple):
    """An event, and what the ledger holds of its customer: three times None when that is nothing."""

    audience_id: int
    sequence: int
    identifier: str
    kind: int
    occurred_ns: int
    forced: bool
    held_is_member: bool | None
    held_ns: int
    held_rejected: bool


class ReceiptOfEvents(NamedTuple):
    receipt_id: int


# Not prepared: a plan that was made while the log was small would be kept when the log is large.
_SQL = sql.beside(__file__)
_READ = _SQL.query("read_events", Read._make)
_READ_RECEIPTS = _SQL.query("read_receipts", ReceiptOfEvents._make)


def read(lease: Lease) -> tuple[dict[int, list[Entry]], Ledger]:
    """The claimed events by audience, and what the ledger holds of their identifiers. Raises ``GapError``."""
    spans = lease.spans
    entries: dict[int, list[Entry]] = {span.audience_id: [] for span in spans}
    ledger: Ledger = {span.audience_id: {} for span in spans}
    ahead: dict[int, set[int]] = {}
    rows = _READ.run(**_places(spans)).all()
    if len(rows) != sum(span.last - span.first + 1 for span in spans):
        # The parts of a span only save time. An older version, which doesn't know them, stores events in the first one.
        rows = _READ.run(**_places([replace(span, low=0, high=LAST_PART) for span in spans])).all()
    latest = latest_ns()
    if any(row.occurred_ns > latest or (row.held_ns or 0) > latest for row in rows):
        latest = max(latest, latest_ns_of_database())
    for row in rows:
        entries[row.audience_id].append(Entry(row.sequence, row.identifier, row.kind, row.occurred_ns, row.forced))
        if row.occurred_ns > latest:
            ahead.setdefault(row.audience_id, set()).add(row.sequence)
        if row.held_is_member is not None:
            # An older version may have stored a time later than that: then any real event decides.
            held_ns = EARLIEST_NS if row.held_ns > latest else row.held_ns
            ledger[row.audience_id][row.identifier] = Held(row.held_is_member, held_ns, row.held_rejected)
    for audience_id, numbers in ahead.items():
        entries[audience_id] = disbelieve(entries[audience_id], numbers, ledger[audience_id])
    gaps = {
        span.audience_id: f"{span.odp_id}: events {span.first}–{span.last} {GAP}"
        for span in spans
        if len(entries[span.audience_id]) != span.last - span.first + 1
    }
    if gaps:
        raise GapError(gaps)
    return entries, ledger


def receipts(lease: Lease) -> list[int]:
    """The calls that brought the claimed events, by their Receipts. Only tracing asks for them."""
    return [row.receipt_id for row in _READ_RECEIPTS.run(**_places(lease.spans)).all()]


def _places(spans: Sequence[Span]) -> dict[str, Any]:
    """The parameters that say which events to read, and from which parts of the log."""
    lows, highs = [span.low for span in spans], [span.high for span in spans]
    return {
        **columns(spans)._asdict(),
        "lows": prepared_statements.numbers(lows),
        "highs": prepared_statements.numbers(highs),
        "lowest": min(lows, default=0),
        "highest": max(highs, default=0),
    }


def rejected_customers(lease: Lease, identifiers: Iterable[str]) -> set[str]:
    """Those of the customers with a rejected change that is still parked."""
    if not lease.has_rejections:
        return set()
    rejected = Parked.objects.filter(install=lease.install, reason=REJECTED_BY_ODP, closed_at=None)
    return set(rejected.filter(identifier__in=set(identifiers)).values_list("identifier", flat=True))


def was_taken(audience_id: int) -> bool:
    """Whether ODP has ever accepted a change of this audience."""
    return Membership.objects.filter(audience_id=audience_id, rejected=False).exists()
