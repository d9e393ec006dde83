-- Storing calls.

-- name: limit_lock_wait
-- Limits the wait for each lock of this transaction, in milliseconds.
SELECT set_config('lock_timeout', %(milliseconds)s, true)

-- name: lock_named
-- Locks the audiences that calls name, in ascending order of id, so that two transactions that share audiences cannot
-- deadlock. A separate statement before store_named: one that locks and updates can see a stale version of a row.
SELECT id FROM audiences_audience
WHERE install_id = %(install)s AND segment_id = ANY(%(segments)s::text[])
ORDER BY id FOR NO KEY UPDATE

-- name: store_named
-- Stores calls of one install, whose events name their audiences by segment id and slug. It stores nothing when a name
-- finds no audience, for example because its slug is not the latest.
WITH
-- The audiences by their names.
grown AS MATERIALIZED (
    SELECT audience.id, number, by, ahead
    FROM unnest(%(segments)s::text[], %(slugs)s::text[], %(counts)s::int[], %(ahead)s::int[])
        WITH ORDINALITY AS told(segment_id, slug, by, ahead, number)
    JOIN audiences_audience AS audience ON audience.install_id = %(install)s::bigint
        AND audience.segment_id = told.segment_id AND told.slug IN ('', audience.latest_slug)
),
{{store_calls}}

-- name: store
-- Stores events that name their audiences by id, with the Receipt of their call or without one.
WITH
-- The audiences by their ids.
grown AS MATERIALIZED (
    SELECT audience.id, number, by, ahead
    FROM unnest(%(audiences)s::int[], %(counts)s::int[], %(ahead)s::int[])
        WITH ORDINALITY AS told(audience_id, by, ahead, number)
    JOIN audiences_audience AS audience ON audience.id = told.audience_id
),
{{store_calls}}
