-- Finding and locking the audiences that a call names.

-- name: find_audiences
-- The stored audiences of an install with one of the given segment ids.
SELECT id, segment_id, latest_slug FROM audiences_audience
WHERE install_id = %(install)s AND segment_id = ANY(%(segments)s::text[])

-- name: lock_audiences
-- Locks audiences in ascending order of id, so that two calls that share audiences cannot deadlock.
-- A statement without an update, because one that locks and updates can see a stale version of a row and deadlock.
SELECT id FROM audiences_audience WHERE id = ANY(%(audiences)s::int[]) ORDER BY id FOR NO KEY UPDATE
