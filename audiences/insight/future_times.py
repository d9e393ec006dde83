"""Memberships that still have a transition time ahead of the clock: only older versions stored such times.

The customer's next real event decides in spite of it (``fold.disbelieve``). Until then *Now* counts them.
"""

from datetime import datetime
from typing import NamedTuple

from django.db import connection

from audiences.delivery.leases import latest_ns
from lytics import times

# Counted up to this number: *Now* asks with each view.
COUNTED = 10_000
# As the partial index of migration 0026 says it: events stored with a time more than an hour after their call. Smaller
# leads have passed an hour after the upgrade.
_AHEAD_OF_ITS_CALL = "occurred_ns > (extract(epoch FROM received_at AT TIME ZONE 'UTC')::bigint + 3600) * 1000000000"
_STORED = f"""
SELECT count(*), max(held.occurred_ns), min(stored.received_at)
FROM (
    SELECT audience_id, sequence, identifier, received_at FROM audiences_event
    WHERE occurred_ns > %(latest)s AND {_AHEAD_OF_ITS_CALL}
    ORDER BY occurred_ns DESC LIMIT {COUNTED}
) AS stored
JOIN audiences_membership AS held ON held.audience_id = stored.audience_id AND held.identifier = stored.identifier
    AND held.sequence = stored.sequence AND held.occurred_ns > %(latest)s
"""  # noqa: S608


class Stored(NamedTuple):
    memberships: int
    furthest: datetime
    since: datetime


def stored() -> Stored | None:
    """How many memberships have a time ahead of the clock, the furthest of them, and when the first one came."""
    with connection.cursor() as cursor:
        cursor.execute(_STORED, {"latest": latest_ns()})
        memberships, furthest_ns, since = cursor.fetchone()
    return Stored(memberships, times.moment(furthest_ns), since) if memberships else None
