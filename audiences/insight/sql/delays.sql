-- The histogram of the delay of delivered events.

-- name: delays
-- Delivered events from "start" up to "end", by install and bucket of their delay, and the sum of the delays. Bucket 0
-- holds delays below the first of "bounds". One statement, because no event leaves PostgreSQL.
-- The lookups of events are scalar subqueries: unlike a join, they can't be planned as a scan of the whole log.
WITH
-- The delivered Runs, numbered within their install and minute. No event of a Run is in a part of the log before "low".
placed AS (
    SELECT install.public_id, run.audience_id, run.first_sequence, run.last_sequence, run.closed_at,
        CASE WHEN run.first_sequence > audience.part_after THEN audience.part ELSE 0 END AS low,
        row_number() OVER (PARTITION BY install.id, date_trunc('minute', run.closed_at) ORDER BY run.id) AS place,
        count(*) OVER (PARTITION BY install.id, date_trunc('minute', run.closed_at)) AS many
    FROM audiences_run AS run JOIN audiences_audience AS audience ON audience.id = run.audience_id
    JOIN audiences_install AS install ON install.id = audience.install_id
    WHERE run.closed_at >= %(start)s AND run.closed_at < %(end)s AND run.outcome = 'delivered' AND run.sent > 0
),
-- At most "sampled" Runs of each install and minute, evenly spaced. Each also represents Runs that are left out.
sample AS (
    SELECT *, many / (count(*) OVER (PARTITION BY public_id, date_trunc('minute', closed_at)))::float AS stands_for
    FROM placed WHERE place %% ((many + %(sampled)s - 1) / %(sampled)s) = 0
),
-- The delay in seconds of the first and of the last event, each with half of the Run's events. It is NULL for an event
-- that the log no longer has.
timed AS (
    SELECT public_id, (last_sequence - first_sequence + 1) * stands_for / 2 AS events,
        extract(epoch FROM closed_at - (
            SELECT received_at FROM audiences_event AS event
            WHERE event.audience_id = sample.audience_id AND event.sequence = edge.sequence
                AND event.part >= low
        ))::float AS seconds
    FROM sample CROSS JOIN LATERAL (VALUES (first_sequence), (last_sequence)) AS edge(sequence)
)
SELECT public_id, width_bucket(seconds, %(bounds)s::float[]) AS bucket, sum(events)::float AS events,
    sum(events * greatest(0, seconds))::float AS seconds
FROM timed WHERE seconds IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2
