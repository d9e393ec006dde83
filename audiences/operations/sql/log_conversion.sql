-- Converting a log of one table: the table becomes the first part. See docs/retention.md.

-- name: progress
-- The log as it is: whether it has parts, PostgreSQL's estimate of its events, its size with indexes, and whether the
-- constraint of the conversion is there and validated; NULL: it isn't there. There is no estimate after a restore, for
-- example, until the table is analyzed.
SELECT log.relkind = 'p' AS has_parts, nullif(log.reltuples, -1)::bigint AS events,
    pg_total_relation_size(log.oid) AS bytes, checked.convalidated AS is_validated
FROM pg_class AS log
LEFT JOIN pg_constraint AS checked ON checked.conrelid = log.oid AND checked.conname = 'event_is_in_first_part'
WHERE log.oid = to_regclass('audiences_event')

-- name: add_check
-- Constrains new events to the first part. It reads no row, and locks the log for an instant.
ALTER TABLE audiences_event ADD CONSTRAINT event_is_in_first_part CHECK (part = 1) NOT VALID

-- name: validate
-- Validates the constraint for all stored events, which reads the log. Calls, claims and settles continue meanwhile.
ALTER TABLE audiences_event VALIDATE CONSTRAINT event_is_in_first_part

-- name: make_first_part
-- Makes the log the first part. It reads no row, and locks the log for an instant.
SELECT partition_log() AS is_done

-- name: analyze
-- Statistics of the whole log, which PostgreSQL doesn't update by itself.
ANALYZE audiences_event
