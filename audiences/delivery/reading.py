"""What a lease is about: its events, what the ledger holds of their customers, and what ODP refused of them."""

from collections.abc import Iterable

import structlog
from django.db import connection

from audiences.delivery.fold import EARLIEST_NS, Entry, Held, disbelieve
from audiences.delivery.leases import REFUSED_BY_ODP, GapError, Lease, Ledger, arrays, latest_ns
from audiences.models import Membership, Parked

log = structlog.get_logger(__name__)

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


def read(lease: Lease) -> tuple[dict[int, list[Entry]], Ledger]:
    """The claimed events by audience, and what the ledger holds of their identifiers. Raises ``GapError``."""
    spans = lease.spans
    entries: dict[int, list[Entry]] = {span.audience_id: [] for span in spans}
    ledger: Ledger = {span.audience_id: {} for span in spans}
    # Not prepared: a plan that was made while the log was small would be kept when it no longer is.
    with connection.cursor() as cursor:
        cursor.execute(_READ, arrays(spans))
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


def refused_customers(lease: Lease, identifiers: Iterable[str]) -> set[str]:
    """Those of them of whom ODP has refused something that is still parked."""
    if not lease.has_refusals:
        return set()
    refused = Parked.objects.filter(install=lease.install, reason=REFUSED_BY_ODP, closed_at=None)
    return set(refused.filter(identifier__in=set(identifiers)).values_list("identifier", flat=True))


def was_taken(audience_id: int) -> bool:
    """Whether ODP has ever taken anything of this audience."""
    return Membership.objects.filter(audience_id=audience_id, refused=False).exists()
