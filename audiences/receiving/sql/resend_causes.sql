-- The ranges of the log that this service appended, with their causes, and the Runs that delivered them.
-- The ranges of an audience don't overlap. Those that overlap a span are therefore among the first ones that end at or
-- after its start.

-- name: ranges_of_runs
-- The ranges that overlap the given Runs, with the Run's id as "run_id", in the order of the log.
SELECT run.id AS run_id, near.* FROM audiences_run AS run
CROSS JOIN LATERAL (
    -- The LIMIT keeps an old Run from reading all later ranges. A Run has no more sent events than a request.
    SELECT * FROM audiences_again AS later
    WHERE later.audience_id = run.audience_id AND later.last_sequence >= run.first_sequence
    ORDER BY later.last_sequence LIMIT 600
) AS near
WHERE run.id = ANY(%(runs)s::bigint[]) AND near.first_sequence <= run.last_sequence
ORDER BY run.id, near.last_sequence

-- name: runs_of_deliveries
-- The first Runs of each given Delivery, "runs" of each at most.
-- A range and no equality: with an equality, PostgreSQL may read all Runs in the order of their ids, once for each
-- Delivery without Runs.
SELECT near.* FROM unnest(%(deliveries)s::bigint[]) AS wanted(id)
CROSS JOIN LATERAL (
    SELECT * FROM audiences_run WHERE delivery_id >= wanted.id AND delivery_id <= wanted.id
    ORDER BY delivery_id, id LIMIT %(runs)s
) AS near

-- name: ranges_of_events
-- The range that each given event is in, with the event as "of_audience" and "of_sequence". Nothing for an event that a
-- call of Lytics brought.
SELECT wanted.audience_id AS of_audience, wanted.sequence AS of_sequence, near.*
FROM unnest(%(audiences)s::int[], %(sequences)s::bigint[]) AS wanted(audience_id, sequence)
CROSS JOIN LATERAL (
    SELECT * FROM audiences_again AS later
    WHERE later.audience_id = wanted.audience_id AND later.last_sequence >= wanted.sequence
    ORDER BY later.last_sequence LIMIT 1
) AS near
WHERE near.first_sequence <= wanted.sequence

-- name: runs_of_cause
-- Runs with events of the newest ranges of a cause, newest first.
-- One statement, because each of a thousand ranges takes two index lookups.
SELECT DISTINCT run.id
FROM (
    SELECT * FROM audiences_again WHERE cause = %(cause)s ORDER BY id DESC LIMIT %(ranges)s
) AS newest
CROSS JOIN LATERAL (
    -- Runs that begin in the range.
    (SELECT id FROM audiences_run AS inside WHERE inside.audience_id = newest.audience_id
        AND inside.first_sequence BETWEEN newest.first_sequence AND newest.last_sequence
        ORDER BY inside.first_sequence LIMIT %(runs)s)
    UNION ALL
    -- Runs that begin before the range and end in it or after it. They are among the nearest ones before it.
    (SELECT id FROM (
        SELECT id, last_sequence FROM audiences_run AS before WHERE before.audience_id = newest.audience_id
            AND before.first_sequence < newest.first_sequence
        ORDER BY before.first_sequence DESC, before.id DESC LIMIT 5
    ) AS near WHERE near.last_sequence >= newest.first_sequence)
) AS run
ORDER BY run.id DESC LIMIT %(runs)s

-- name: run_has_cause
-- Whether a range of a cause overlaps a Run.
SELECT EXISTS (SELECT {{runs_with_cause}} AND run.id = %(run)s)

-- name: delivery_has_cause
-- Whether a range of a cause overlaps a Run of a Delivery.
SELECT EXISTS (SELECT {{runs_with_cause}} AND run.delivery_id = %(delivery)s)
