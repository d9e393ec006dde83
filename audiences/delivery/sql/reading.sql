-- name: read_events
-- The events of the given spans, each with what the ledger holds of its customer: NULLs when it holds nothing.
-- A span lies in the parts of the log from "low" to "high". The planner leaves out the parts that no span lies in, by
-- "lowest" and "highest"; the execution, those that a span doesn't lie in.
-- One statement, so that events and ledger are read in one round trip.
-- The LIMITs never drop rows. They force index look-ups: PostgreSQL's row estimates are too low for tables that grow
-- fast, and the planner would scan the whole log.
SELECT event.audience_id, event.sequence, event.identifier, event.kind, event.occurred_ns, event.forced,
    held.is_member AS held_is_member, held.occurred_ns AS held_ns, held.refused AS held_rejected
FROM unnest(%(audiences)s::int[], %(firsts)s::bigint[], %(lasts)s::bigint[], %(lows)s::int[], %(highs)s::int[])
    AS span(audience_id, first, last, low, high)
CROSS JOIN LATERAL (
    SELECT * FROM audiences_event AS event
    WHERE event.audience_id = span.audience_id AND event.sequence BETWEEN span.first AND span.last
        AND event.part BETWEEN %(lowest)s AND %(highest)s AND event.part BETWEEN span.low AND span.high
    ORDER BY event.sequence LIMIT span.last - span.first + 1
) AS event
LEFT JOIN LATERAL (
    SELECT * FROM audiences_membership AS held
    WHERE held.audience_id = event.audience_id AND held.identifier = event.identifier LIMIT 1
) AS held ON true

-- name: read_receipts
-- The Receipts of the events of the given spans, in the order of their calls.
SELECT DISTINCT event.receipt_id
FROM unnest(%(audiences)s::int[], %(firsts)s::bigint[], %(lasts)s::bigint[], %(lows)s::int[], %(highs)s::int[])
    AS span(audience_id, first, last, low, high)
CROSS JOIN LATERAL (
    -- The LIMIT forces an index look-up, as in read_events.
    SELECT receipt_id FROM audiences_event AS event
    WHERE event.audience_id = span.audience_id AND event.sequence BETWEEN span.first AND span.last
        AND event.part BETWEEN %(lowest)s AND %(highest)s AND event.part BETWEEN span.low AND span.high
    ORDER BY event.sequence LIMIT span.last - span.first + 1
) AS event
WHERE event.receipt_id IS NOT NULL
ORDER BY event.receipt_id
