-- The rhythm of each install's calls.

-- name: new_pauses
-- For each install and day, the longest pause between two calls that ended on this day, and the day's newest call. It
-- reads at most "calls" calls of each install after the newest one that its Rhythm knows. Test customers don't count.
WITH
-- Each new call with the time since the call before it.
paused AS (
    SELECT rhythm.install_id, call.id, call.received_at, call.received_at - lag(call.received_at, 1, rhythm.called_at)
        OVER (PARTITION BY rhythm.install_id ORDER BY call.id) AS pause
    FROM audiences_rhythm AS rhythm CROSS JOIN LATERAL (
        -- The install is in the order, or PostgreSQL may walk through the calls of all installs.
        SELECT id, received_at FROM audiences_receipt AS receipt
        WHERE receipt.install_id = rhythm.install_id AND receipt.id > rhythm.receipt AND receipt.job <> %(trial)s
        ORDER BY receipt.install_id, receipt.id LIMIT %(calls)s
    ) AS call
)
SELECT install_id, (received_at AT TIME ZONE 'UTC')::date AS day,
    coalesce(extract(epoch FROM max(pause)), 0)::float AS seconds, max(id) AS receipt,
    min(received_at) AS first_at, max(received_at) AS called_at
FROM paused GROUP BY 1, 2 ORDER BY 1, 2
