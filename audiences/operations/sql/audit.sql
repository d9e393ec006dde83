-- The invariants that no constraint can hold, because they span rows. Each statement gives the violations of one: the
-- ODP id of the audience and the values found.

-- name: gaps
-- Audiences whose events are not numbered from 1 to the last number without a gap. Events up to the horizon may be
-- deleted. A number is unique in each part of the log; in all of it, if no part begins before the one before it ends.
WITH
-- The numbers of each audience in each part. Part 0 has the oldest: events that survived their part.
part AS (
    SELECT event.audience_id, event.part, count(*) AS events, min(event.sequence) AS first, max(event.sequence) AS last
    FROM audiences_event AS event
    LEFT JOIN audiences_horizon AS horizon ON horizon.audience_id = event.audience_id
    WHERE event.sequence > coalesce(horizon.events_to, 0)
    GROUP BY event.audience_id, event.part
),
-- The same by audience. "disorder" is the first number that isn't behind those of the parts before.
numbers AS (
    SELECT audience_id, sum(events) AS events, min(first) AS first, max(last) AS last, min(first) FILTER (
        WHERE first <= before) AS disorder
    FROM (
        SELECT *, max(last) OVER (
            PARTITION BY audience_id ORDER BY part ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
        FROM part
    ) AS part
    GROUP BY audience_id
)
SELECT audience.odp_id AS audience, concat(numbers.events, ' events from ', numbers.first, ' to ', numbers.last,
    ', last number ', audience.last_sequence, ', not in order of the parts: ' || numbers.disorder) AS seen
FROM audiences_audience AS audience
LEFT JOIN audiences_horizon AS horizon ON horizon.audience_id = audience.id
JOIN numbers ON numbers.audience_id = audience.id
WHERE numbers.last <> audience.last_sequence
    OR numbers.events <> numbers.last - numbers.first + 1
    OR numbers.first <> coalesce(horizon.events_to, 0) + 1
    OR numbers.disorder IS NOT NULL
UNION ALL
SELECT audience.odp_id, concat('no events, last number ', audience.last_sequence)
FROM audiences_audience AS audience
LEFT JOIN audiences_horizon AS horizon ON horizon.audience_id = audience.id
WHERE audience.last_sequence > coalesce(horizon.events_to, 0)
    AND audience.id NOT IN (SELECT audience_id FROM numbers)

-- name: cursors
-- Lanes whose cursor is past the last event of the log, or whose horizon is past the cursor.
SELECT audience.odp_id AS audience,
    concat('cursor ', lane.delivered_sequence, ', last number ', audience.last_sequence,
        ', events deleted up to ', horizon.events_to, ', runs up to ', horizon.runs_to) AS seen
FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
LEFT JOIN audiences_horizon AS horizon ON horizon.audience_id = audience.id
WHERE lane.delivered_sequence > audience.last_sequence
    OR greatest(horizon.events_to, horizon.runs_to) > lane.delivered_sequence

-- name: ledger
-- Customers whose ledger row is not the fold of their delivered events.
-- A partly accepted request leaves the ledger ahead of the cursor by the events that its rows name. Skipped events are
-- in the log and not in the ledger, except those that ODP had accepted before the skip. An event that an older version
-- stored with a future time decides only until the next real event.
WITH
-- The numbers of each audience that a person skipped.
skipped AS MATERIALIZED (
    SELECT audience_id, range_agg(int8range(first_sequence, last_sequence, '[]')) AS numbers
    FROM audiences_run WHERE outcome = 'skipped' GROUP BY audience_id
),
-- The fold: the last transition of each customer among the delivered events; at the same time an exit wins.
decided AS (
    SELECT DISTINCT ON (event.audience_id, event.identifier)
        event.audience_id, event.identifier, event.kind <> 0 AS is_member, event.occurred_ns
    FROM audiences_event AS event
    JOIN audiences_lane AS lane ON lane.audience_id = event.audience_id
    LEFT JOIN audiences_membership AS held
        ON held.audience_id = event.audience_id AND held.identifier = event.identifier
    LEFT JOIN skipped ON skipped.audience_id = event.audience_id
    WHERE NOT starts_with(event.identifier, %(forgotten)s) AND (event.sequence = held.sequence
        OR (event.sequence <= lane.delivered_sequence
        AND NOT coalesce(skipped.numbers @> event.sequence, false)
        AND event.occurred_ns <= (extract(epoch FROM event.received_at) + %(tolerance_seconds)s) * 1000000000))
    ORDER BY event.audience_id, event.identifier, event.occurred_ns DESC, (event.kind = 0) DESC
)
SELECT audience.odp_id AS audience, concat(coalesce(decided.identifier, held.identifier),
    ': the log says ', decided.is_member, ' at ', decided.occurred_ns,
    ', the ledger ', held.is_member, ' at ', held.occurred_ns) AS seen
FROM decided FULL JOIN audiences_membership AS held
    ON held.audience_id = decided.audience_id AND held.identifier = decided.identifier
JOIN audiences_audience AS audience ON audience.id = coalesce(decided.audience_id, held.audience_id)
WHERE decided.is_member IS DISTINCT FROM held.is_member OR decided.occurred_ns IS DISTINCT FROM held.occurred_ns

-- name: members
-- Lanes whose number of members is not the number of members in the ledger.
SELECT audience.odp_id AS audience,
    concat(lane.member_count, ' members counted, ', count(held.identifier), ' in the ledger') AS seen
FROM audiences_lane AS lane
JOIN audiences_audience AS audience ON audience.id = lane.audience_id
LEFT JOIN audiences_membership AS held ON held.audience_id = lane.audience_id AND held.is_member
GROUP BY audience.id, lane.audience_id
HAVING lane.member_count <> count(held.identifier)

-- name: history
-- Lanes with a number up to the cursor that no Run with a known outcome covers. Runs up to the horizon may be deleted.
WITH
-- The numbers of each audience that such Runs cover.
covered AS (
    SELECT run.audience_id, range_agg(int8range(run.first_sequence, run.last_sequence, '[]')) AS numbers
    FROM audiences_run AS run WHERE run.outcome IN ('delivered', 'refused', 'skipped') GROUP BY run.audience_id
)
SELECT audience.odp_id AS audience,
    concat('runs cover ', covered.numbers, ', the cursor is at ', lane.delivered_sequence) AS seen
FROM audiences_lane AS lane
JOIN audiences_audience AS audience ON audience.id = lane.audience_id
LEFT JOIN covered ON covered.audience_id = lane.audience_id
LEFT JOIN audiences_horizon AS horizon ON horizon.audience_id = lane.audience_id
WHERE lane.delivered_sequence > coalesce(horizon.runs_to, 0) AND NOT coalesce(
    covered.numbers @> int8range(coalesce(horizon.runs_to, 0) + 1, lane.delivered_sequence, '[]'), false)

-- name: rejected
-- Customers with an open parked item that ODP rejected, whose ledger row doesn't say so.
SELECT audience.odp_id AS audience,
    concat(parked.identifier, ' is parked as rejected and the ledger does not say so') AS seen
FROM audiences_parked AS parked
JOIN audiences_audience AS audience ON audience.id = parked.audience_id
LEFT JOIN audiences_membership AS held
    ON held.audience_id = parked.audience_id AND held.identifier = parked.identifier
WHERE parked.closed_at IS NULL AND parked.sequence IS NOT NULL AND held.refused IS DISTINCT FROM true

-- name: ahead
-- Customers whose ledger row has a time ahead of the clock. Only an older version stored such a time. The next real
-- event of the customer corrects it.
SELECT audience.odp_id AS audience, concat(held.identifier, ': the ledger is at ', held.occurred_ns, ', ',
    round(held.occurred_ns / 1000000000.0 - extract(epoch FROM clock_timestamp())), ' s ahead of the clock') AS seen
FROM audiences_membership AS held JOIN audiences_audience AS audience ON audience.id = held.audience_id
WHERE held.occurred_ns > (extract(epoch FROM clock_timestamp()) + %(tolerance_seconds)s) * 1000000000
