-- The rate limit of an install and endpoint. {{column}} is the schedule that the statement is about, and {{other}} is
-- the other one of the same row. gate_at is the start of the next request, line_at the next place in the queue.

-- name: take
-- Takes the next moment of the schedule, unless it is further away than "patience". Gives the moment after it as
-- "taken" (NULL if none was taken), whether the install is in backoff, and the seconds until the next moment as it was
-- before.
-- One statement, because all workers take moments of one row at the same time: the lock of the row puts them in order,
-- and clock_timestamp() on conflict is read under the lock.
WITH
-- The schedule moved by one interval. No row, if the install is in backoff or the next moment is too far away. A moment
-- further ahead than "furthest" was written before PostgreSQL's clock was set back, and is replaced. "unused" is what
-- the schedule became when this worker took a moment that it didn't use: while nobody has taken the one after it, this
-- worker may take that one without waiting.
taken AS (
    INSERT INTO audiences_pace AS pace (install_id, endpoint, {{column}}, {{other}}, passed, arrived)
    SELECT id, %(endpoint)s, clock_timestamp() + %(interval)s, clock_timestamp(), 0, '{}'
    FROM audiences_install
    WHERE id = %(install)s AND (brake_until_at IS NULL OR brake_until_at <= clock_timestamp())
    ON CONFLICT (install_id, endpoint) DO UPDATE SET {{column}} = %(interval)s + greatest(
        least(pace.{{column}}, clock_timestamp() + %(patience)s), clock_timestamp() - %(catch_up)s::interval)
    WHERE pace.{{column}} NOT BETWEEN clock_timestamp() + %(patience)s AND clock_timestamp() + %(furthest)s
        OR pace.{{column}} = %(unused)s::timestamptz
    RETURNING {{column}} AS next_at
)
SELECT taken.next_at AS taken, coalesce(install.brake_until_at > clock_timestamp(), false) AS on_hold, coalesce(extract(
    epoch FROM coalesce(taken.next_at - %(interval)s, pace.{{column}}) - clock_timestamp()), 0)::float8 AS seconds
FROM audiences_install AS install LEFT JOIN taken ON true
LEFT JOIN audiences_pace AS pace ON pace.install_id = install.id AND pace.endpoint = %(endpoint)s
WHERE install.id = %(install)s
