-- Storing events of audiences that have been found or made.

-- name: store
-- Stores events that name their audiences by id, with the Receipt of their call or without one.
WITH
-- One row: the caller has checked that these events may be stored.
allowed AS (
    SELECT 1
),
-- The audiences by their ids.
grown AS MATERIALIZED (
    SELECT audience.id, number, by, ahead
    FROM unnest(%(audiences)s::int[], %(counts)s::int[], %(ahead)s::int[])
        WITH ORDINALITY AS named(audience_id, by, ahead, number)
    JOIN audiences_audience AS audience ON audience.id = named.audience_id
),
{{store_calls}}
