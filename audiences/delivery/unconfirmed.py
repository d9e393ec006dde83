"""Requests without a final answer, which ODP may have applied: found, and what they said that is no longer true."""

from django.db import connection

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
