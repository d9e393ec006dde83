-- The roll-up of Receipts and Runs into Minutes.

-- name: store_minutes
-- Computes the Minutes of each install from "start" up to "end" and stores them; a Minute that is stored already is
-- replaced. One statement, because one snapshot gives figures that fit each other, and no event leaves PostgreSQL.
-- It has three steps:
-- 1. Count what arrived: events received and parked.
-- 2. Count what was delivered, by the minute of arrival, and how much of it this service had sent again. Bisected Runs
--    have several rows over the same events, so events are counted once over the span of a lane's Runs in a minute. A
--    span is halved until all events of a part arrived in the same minute. That takes two log lookups per part, because
--    an audience's events are numbered in order of arrival. The lookups are scalar subqueries: unlike a join, they
--    can't be planned as a scan of the whole log.
-- 3. Measure the delay from arrival to delivery on a sample of the Runs, by the first and the last event of each.
WITH RECURSIVE
-- Step 1: events received and parked, by install and minute.
came AS (
    SELECT install_id, date_trunc('minute', received_at) AS minute, sum(queued) AS received, sum(parked) AS parked
    FROM audiences_receipt WHERE received_at >= %(start)s AND received_at < %(end)s
    GROUP BY 1, 2
),
-- Step 2: the delivered Runs. Materialized, because step 3 reads them too. No event of a Run is in a part of the log
-- before "low".
gone AS MATERIALIZED (
    SELECT audience.install_id, date_trunc('minute', run.closed_at) AS minute, run.id, run.audience_id,
        run.first_sequence, run.last_sequence, run.sent, run.closed_at,
        CASE WHEN run.first_sequence > audience.part_after THEN audience.part ELSE 0 END AS low
    FROM audiences_run AS run JOIN audiences_audience AS audience ON audience.id = run.audience_id
    WHERE run.closed_at >= %(start)s AND run.closed_at < %(end)s AND run.outcome = 'delivered'
),
-- The numbers that the Runs of an audience cover in a minute.
span AS (
    SELECT install_id, minute, audience_id, min(first_sequence) AS first, max(last_sequence) AS last, min(low) AS low
    FROM gone GROUP BY install_id, minute, audience_id
),
-- The spans and their halves, each with the minutes in which its first and last event arrived. An event that the log no
-- longer has counts as having arrived when it was delivered.
part AS (
    SELECT span.*,
        coalesce(date_trunc('minute', (SELECT received_at FROM audiences_event AS event
            WHERE event.audience_id = span.audience_id AND event.sequence = first
                AND event.part >= low)), minute) AS came_first,
        coalesce(date_trunc('minute', (SELECT received_at FROM audiences_event AS event
            WHERE event.audience_id = span.audience_id AND event.sequence = last
                AND event.part >= low)), minute) AS came_last
    FROM span
    UNION ALL
    SELECT install_id, minute, audience_id, half.first, half.last, low,
        coalesce(date_trunc('minute', (SELECT received_at FROM audiences_event AS event
            WHERE event.audience_id = part.audience_id AND event.sequence = half.first
                AND event.part >= low)), minute),
        coalesce(date_trunc('minute', (SELECT received_at FROM audiences_event AS event
            WHERE event.audience_id = part.audience_id AND event.sequence = half.last
                AND event.part >= low)), minute)
    FROM part CROSS JOIN LATERAL (
        VALUES (part.first, (part.first + part.last) / 2), ((part.first + part.last) / 2 + 1, part.last)
    ) AS half(first, last)
    WHERE part.first < part.last AND came_first <> came_last
),
-- The parts that need no further halving, with the number of their events and of those that were sent again.
lane AS (
    SELECT install_id, minute, came_first AS came, last - first + 1 AS events, (
        SELECT coalesce(sum(least(range.last_sequence, last) - greatest(range.first_sequence, first) + 1), 0)
        FROM audiences_again AS range WHERE range.audience_id = part.audience_id
            AND range.last_sequence >= first AND range.first_sequence <= last
    ) AS again
    FROM part WHERE first = last OR came_first = came_last
),
-- The same by install, minute of delivery and minute of arrival.
by_arrival AS (
    SELECT install_id, minute, came, sum(events - again) AS delivered, sum(again) AS again
    FROM lane GROUP BY 1, 2, 3
),
-- The same by install and minute of delivery. "arrived" has the delivered events by minute of arrival, as JSON.
went AS (
    SELECT install_id, minute, sum(delivered) AS delivered, sum(again) AS again, coalesce(
        jsonb_object_agg(extract(epoch FROM came)::bigint, delivered) FILTER (WHERE delivered > 0), '{}'
    ) AS arrived
    FROM by_arrival GROUP BY 1, 2
),
-- The changes that ODP accepted, by install and minute.
changed AS (
    SELECT install_id, minute, sum(sent) AS sent FROM gone GROUP BY 1, 2
),
-- Step 3: the Runs that sent something, numbered within their install and minute.
placed AS (
    SELECT *, row_number() OVER (PARTITION BY install_id, minute ORDER BY id) AS place,
        count(*) OVER (PARTITION BY install_id, minute) AS many
    FROM gone WHERE sent > 0
),
-- At most "sampled" Runs of each install and minute, evenly spaced, with the delay of their first and last event. The
-- weight of a delay is the number of the Run's events.
timed AS (
    SELECT install_id, minute, last_sequence - first_sequence + 1 AS weight,
        1000 * extract(epoch FROM closed_at - (
            SELECT received_at FROM audiences_event AS event
            WHERE event.audience_id = placed.audience_id AND event.sequence = edge.sequence
                AND event.part >= low
        )) AS ms
    FROM placed CROSS JOIN LATERAL (VALUES (first_sequence), (last_sequence)) AS edge(sequence)
    WHERE place %% ((many + %(sampled)s - 1) / %(sampled)s) = 0
),
-- The delays from shortest to longest. "upto" is the running total of the weights.
ranked AS (
    SELECT install_id, minute, greatest(ms, 0) AS ms,
        sum(weight) OVER (PARTITION BY install_id, minute ORDER BY ms) AS upto,
        sum(weight) OVER (PARTITION BY install_id, minute) AS total
    FROM timed WHERE ms IS NOT NULL
),
-- The median and the 99th percentile of the delay.
took AS (
    SELECT install_id, minute, min(ms) FILTER (WHERE upto >= 0.5 * total) AS p50,
        min(ms) FILTER (WHERE upto >= 0.99 * total) AS p99
    FROM ranked GROUP BY 1, 2
)
INSERT INTO audiences_minute
    (install_id, minute, received, parked, delivered, again, sent, arrived, delay_p50_ms, delay_p99_ms)
SELECT install_id, minute, coalesce(received, 0), coalesce(parked, 0), coalesce(delivered, 0), coalesce(again, 0),
    coalesce(sent, 0), coalesce(arrived, '{}'), p50, p99
FROM came FULL JOIN went USING (install_id, minute) LEFT JOIN changed USING (install_id, minute)
    LEFT JOIN took USING (install_id, minute)
ON CONFLICT (minute, install_id) DO UPDATE SET
    received = excluded.received, parked = excluded.parked, delivered = excluded.delivered, again = excluded.again,
    sent = excluded.sent, arrived = excluded.arrived,
    delay_p50_ms = excluded.delay_p50_ms, delay_p99_ms = excluded.delay_p99_ms
