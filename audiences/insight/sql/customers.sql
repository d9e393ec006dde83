-- The attempts to deliver the events of one customer.

-- name: runs_of_events
-- Runs that tried to deliver the given events, the newest ones of each event, with the number of the event as "covers".
-- All events in one statement, because a customer may have a thousand; each costs one index lookup.
-- Attempts begin at the cursor, and the cursor never moves back. So the run that moved it past an event is the latest
-- of those with the nearest start at or below the event's number.
SELECT run.*, asked.sequence AS covers
FROM unnest(%(audiences)s::int[], %(sequences)s::bigint[]) AS asked(audience_id, sequence)
CROSS JOIN LATERAL (
    SELECT first_sequence FROM audiences_run
    WHERE audience_id = asked.audience_id AND first_sequence <= asked.sequence
    ORDER BY first_sequence DESC LIMIT 1
) AS nearest
CROSS JOIN LATERAL (
    SELECT * FROM audiences_run
    WHERE audience_id = asked.audience_id AND first_sequence = nearest.first_sequence
        AND last_sequence >= asked.sequence
    ORDER BY id DESC LIMIT %(attempts)s
) AS run
