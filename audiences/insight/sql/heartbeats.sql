-- The workers and their heartbeats.

-- name: note_heartbeat
-- Stores that a heartbeat reached a worker, and when the worker last did some work: NULL keeps the stored time.
-- One statement, so that the first heartbeat of a worker and a later one need no lookup before.
INSERT INTO audiences_worker AS worker (name, version, beat_at, worked_at)
VALUES (
    %(name)s, %(version)s, clock_timestamp(), clock_timestamp() - make_interval(secs => %(worked_seconds_ago)s)
)
ON CONFLICT (name) DO UPDATE SET
    version = excluded.version, beat_at = excluded.beat_at,
    worked_at = coalesce(excluded.worked_at, worker.worked_at)
