-- The rows that may name one customer in a text.

-- name: deliveries
-- The Deliveries whose requests may name the person: those of all Runs that cover one of the given events.
-- Attempts begin at the cursor, and the cursor never moves back. So these Runs have the nearest start at or below.
SELECT DISTINCT run.delivery_id AS id
FROM unnest(%(audiences)s::int[], %(sequences)s::bigint[]) AS asked(audience_id, sequence)
CROSS JOIN LATERAL (
    SELECT first_sequence FROM audiences_run
    WHERE audience_id = asked.audience_id AND first_sequence <= asked.sequence
    ORDER BY first_sequence DESC LIMIT 1
) AS nearest
JOIN audiences_run AS run ON run.audience_id = asked.audience_id AND run.first_sequence = nearest.first_sequence
    AND run.last_sequence >= asked.sequence
WHERE run.delivery_id IS NOT NULL
