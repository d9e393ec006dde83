-- name: commit_without_waiting
-- Lets the commit of this transaction not wait for the disk. If PostgreSQL crashes, a claim or a settle may be lost;
-- its events are sent again.
SELECT set_config('synchronous_commit', 'off', true)

-- name: clock
-- PostgreSQL's time in nanoseconds.
SELECT (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint AS now_ns
