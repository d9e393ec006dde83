"""What no constraint can hold, because it spans rows: no gap in the log, no cursor ahead of it, the ledger its fold."""

from dataclasses import dataclass

from django.conf import settings
from django.db import connection, transaction


@dataclass(frozen=True)
class Finding:
    """One violated invariant: its name, the audience's ODP id, and the values found."""

    truth: str
    audience: str
    seen: str


_GAPS = """
SELECT audience.odp_id, format('%s events from %s to %s, last number %s',
    count(*), min(event.sequence), max(event.sequence), audience.last_sequence)
FROM audiences_audience AS audience JOIN audiences_event AS event ON event.audience_id = audience.id
GROUP BY audience.id
HAVING max(event.sequence) <> audience.last_sequence
    OR count(*) <> max(event.sequence) - min(event.sequence) + 1
    OR min(event.sequence) <> 1
UNION ALL
SELECT audience.odp_id, format('no events, last number %s', audience.last_sequence)
FROM audiences_audience AS audience
WHERE audience.last_sequence > 0
    AND NOT EXISTS (SELECT FROM audiences_event AS event WHERE event.audience_id = audience.id)
"""

_CURSORS = """
SELECT audience.odp_id, format('cursor %s, last number %s', lane.delivered_sequence, audience.last_sequence)
FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
WHERE lane.delivered_sequence > audience.last_sequence
"""

# A partly accepted request leaves the ledger ahead of the cursor by the events that its rows name. Skipped events are
# in the log and not in the ledger, except those that ODP had accepted before the skip. An event that an older version
# stored with a future time decides only until the next real event.
_LEDGER = """
WITH skipped AS MATERIALIZED (
    SELECT audience_id, range_agg(int8range(first_sequence, last_sequence, '[]')) AS numbers
    FROM audiences_run WHERE outcome = 'skipped' GROUP BY audience_id
), decided AS (
    SELECT DISTINCT ON (event.audience_id, event.identifier)
        event.audience_id, event.identifier, event.kind <> 0 AS is_member, event.occurred_ns
    FROM audiences_event AS event
    JOIN audiences_lane AS lane ON lane.audience_id = event.audience_id
    LEFT JOIN audiences_membership AS held
        ON held.audience_id = event.audience_id AND held.identifier = event.identifier
    LEFT JOIN skipped ON skipped.audience_id = event.audience_id
    WHERE event.sequence = held.sequence OR (event.sequence <= lane.delivered_sequence
        AND NOT coalesce(skipped.numbers @> event.sequence, false)
        AND event.occurred_ns <= (extract(epoch FROM event.received_at) + {tolerance}) * 1000000000)
    ORDER BY event.audience_id, event.identifier, event.occurred_ns DESC, (event.kind = 0) DESC
)
SELECT audience.odp_id, format('%s: the log says %s at %s, the ledger %s at %s',
    coalesce(decided.identifier, held.identifier),
    decided.is_member, decided.occurred_ns, held.is_member, held.occurred_ns)
FROM decided FULL JOIN audiences_membership AS held
    ON held.audience_id = decided.audience_id AND held.identifier = decided.identifier
JOIN audiences_audience AS audience ON audience.id = coalesce(decided.audience_id, held.audience_id)
WHERE decided.is_member IS DISTINCT FROM held.is_member OR decided.occurred_ns IS DISTINCT FROM held.occurred_ns
"""

_MEMBERS = """
SELECT audience.odp_id, format('%s members counted, %s in the ledger', lane.member_count, count(held.identifier))
FROM audiences_lane AS lane
JOIN audiences_audience AS audience ON audience.id = lane.audience_id
LEFT JOIN audiences_membership AS held ON held.audience_id = lane.audience_id AND held.is_member
GROUP BY audience.id, lane.audience_id
HAVING lane.member_count <> count(held.identifier)
"""

# Each number up to the cursor lies in a run with a known outcome.
_HISTORY = """
WITH covered AS (
    SELECT run.audience_id, range_agg(int8range(run.first_sequence, run.last_sequence, '[]')) AS numbers
    FROM audiences_run AS run WHERE run.outcome IN ('delivered', 'refused', 'skipped') GROUP BY run.audience_id
)
SELECT audience.odp_id, format('runs cover %s, the cursor stands at %s', covered.numbers, lane.delivered_sequence)
FROM audiences_lane AS lane
JOIN audiences_audience AS audience ON audience.id = lane.audience_id
LEFT JOIN covered ON covered.audience_id = lane.audience_id
WHERE lane.delivered_sequence > 0
    AND NOT coalesce(covered.numbers @> int8range(1, lane.delivered_sequence, '[]'), false)
"""

_REFUSED = """
SELECT audience.odp_id, format('%s is parked as refused and the ledger does not say so', parked.identifier)
FROM audiences_parked AS parked
JOIN audiences_audience AS audience ON audience.id = parked.audience_id
LEFT JOIN audiences_membership AS held
    ON held.audience_id = parked.audience_id AND held.identifier = parked.identifier
WHERE parked.closed_at IS NULL AND parked.sequence IS NOT NULL AND held.refused IS DISTINCT FROM true
"""

# Only an older version stored such a time. The next real event of the customer sets it right.
_AHEAD = """
SELECT audience.odp_id, format('%s: the ledger is at %s, %s s ahead of the clock', held.identifier, held.occurred_ns,
    round(held.occurred_ns / 1000000000.0 - extract(epoch FROM clock_timestamp())))
FROM audiences_membership AS held JOIN audiences_audience AS audience ON audience.id = held.audience_id
WHERE held.occurred_ns > (extract(epoch FROM clock_timestamp()) + {tolerance}) * 1000000000
"""

TRUTHS = {
    "no gap in a lane": _GAPS,
    "cursor not past the last number": _CURSORS,
    "ledger is the fold of the delivered log": _LEDGER,
    "members counted as in the ledger": _MEMBERS,
    "every delivered event lies in a run": _HISTORY,
    "every refused item is in the ledger as refused": _REFUSED,
    "no membership is ahead of the clock": _AHEAD,
}


def statement_of(truth: str) -> str:
    """A query that lists the violations of one invariant: the audience's ODP id and the values found."""
    return TRUTHS[truth].replace("{tolerance}", f"{settings.CLOCK_TOLERANCE_SECONDS:f}")


def audit() -> list[Finding]:
    """Check every truth on one snapshot of the database; an empty list when all hold. Reads the whole log."""
    findings: list[Finding] = []
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for truth in TRUTHS:
            cursor.execute(statement_of(truth))
            findings.extend(Finding(truth, *row) for row in cursor.fetchall())
    return findings
