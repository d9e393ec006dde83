-- Deleting old rows, in steps. Each statement reads the next rows after an id, by the primary key, and deletes those
-- that are older than the horizon and not needed. It gives the number of rows deleted, the last id done, and whether
-- the pass is done. SKIP LOCKED leaves a row that is in use to the next pass.

-- name: horizon
-- The beginning of the day in UTC, the given number of days ago, by the database's clock.
SELECT date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - make_interval(days => %(days)s) AS at

-- name: oldest_waiting
-- The installs with undelivered events from before the horizon, and the time at which the oldest one was received.
-- Those of retired audiences don't count.
SELECT audience.install_id, min(event.received_at) AS received_at
FROM audiences_lane AS lane
JOIN audiences_audience AS audience ON audience.id = lane.audience_id
CROSS JOIN LATERAL (
    SELECT received_at FROM audiences_event
    WHERE audience_id = lane.audience_id AND sequence = lane.delivered_sequence + 1 LIMIT 1
) AS event
WHERE least(audience.last_sequence, lane.retired_sequence) > lane.delivered_sequence AND lane.retired_at IS NULL
    AND event.received_at < %(horizon)s
GROUP BY audience.install_id

-- name: last_calls
-- The newest call of each install, without calls of test customers. The statement sorts by install and compares it by a
-- range, so that PostgreSQL uses the index by install.
SELECT last.id
FROM audiences_install AS install
CROSS JOIN LATERAL (
    SELECT id FROM audiences_receipt AS receipt
    WHERE receipt.install_id >= install.id AND receipt.install_id <= install.id AND receipt.job <> %(test_job)s
    ORDER BY receipt.install_id, receipt.id DESC LIMIT 1
) AS last

-- name: receipts
-- Calls without parked items, received before the oldest undelivered event of their install, except its last call. The
-- limit has five minutes of slack, because event numbers follow the time of receipt only approximately.
WITH
-- The next rows, by id.
looked AS MATERIALIZED (
    SELECT id, received_at AS at FROM audiences_receipt WHERE id > %(after)s ORDER BY id LIMIT %(rows)s
),
-- The rows among them that are old and not needed.
chosen AS MATERIALIZED (
    SELECT receipt.id FROM looked JOIN audiences_receipt AS receipt ON receipt.id = looked.id
    WHERE receipt.received_at < %(horizon)s AND receipt.id <> ALL(%(last_calls)s::bigint[])
        AND NOT EXISTS (SELECT FROM audiences_parked AS parked WHERE parked.receipt_id = receipt.id)
        AND NOT EXISTS (
            SELECT FROM unnest(%(installs)s::bigint[], %(waiting)s::timestamptz[]) AS waits(install_id, received_at)
            WHERE waits.install_id = receipt.install_id
                AND receipt.received_at >= waits.received_at - interval '5 minutes'
        )
    FOR UPDATE OF receipt SKIP LOCKED
),
-- The deletion of the chosen rows.
gone AS (SELECT prune_rows('receipts', (SELECT array_agg(id) FROM chosen)) AS pruned)
SELECT (SELECT pruned FROM gone) AS pruned, {{how_far}}

-- name: requests
-- Bodies of requests. Each pass continues where the previous one ended, so a step ends before a body whose row is
-- locked: the last id done is the one before it.
WITH
-- The next rows, by id.
looked AS MATERIALIZED (
    SELECT id, opened_at, request IS NOT NULL AND opened_at < %(horizon)s AS is_old
    FROM audiences_delivery WHERE id > %(after)s ORDER BY id LIMIT %(rows)s
),
-- The rows among them that are old and not needed.
chosen AS MATERIALIZED (
    SELECT delivery.id FROM looked JOIN audiences_delivery AS delivery ON delivery.id = looked.id
    WHERE looked.is_old FOR UPDATE OF delivery SKIP LOCKED
),
-- The deletion of the bodies of the chosen rows.
gone AS (
    UPDATE audiences_delivery AS delivery SET request = NULL FROM chosen WHERE delivery.id = chosen.id RETURNING 1
)
SELECT (SELECT count(*) FROM gone) AS pruned,
    coalesce(min(id) FILTER (WHERE stays) - 1, max(id) FILTER (WHERE opened_at < %(horizon)s)) AS position,
    coalesce(bool_or(stays) OR bool_and(opened_at >= %(horizon)s), true) AS is_done
FROM (
    SELECT looked.*, is_old AND NOT EXISTS (SELECT FROM chosen WHERE chosen.id = looked.id) AS stays FROM looked
) AS done

-- name: deliveries
-- Closed Deliveries with a final response or reconciled. A Delivery to which a parked item or a needed Run refers stays
-- without its body and ODP's response. A Run stays as long as its Delivery has either of these, because forgetting a
-- customer finds them by the Run, and events stay as long as their Run.
WITH
-- The next rows, by id.
looked AS MATERIALIZED (
    SELECT id, opened_at AS at FROM audiences_delivery WHERE id > %(after)s ORDER BY id LIMIT %(rows)s
),
-- The rows among them that are old and not needed.
chosen AS MATERIALIZED (
    SELECT delivery.id,
        EXISTS (SELECT FROM audiences_parked AS parked WHERE parked.delivery_id = delivery.id) OR EXISTS (
            SELECT FROM audiences_run AS run JOIN audiences_lane AS lane ON lane.audience_id = run.audience_id
            WHERE run.delivery_id = delivery.id AND {{run_is_needed}}
        ) AS stays
    FROM looked JOIN audiences_delivery AS delivery ON delivery.id = looked.id
    WHERE delivery.closed_at < %(horizon)s
        AND (delivery.affirmed_at IS NOT NULL OR delivery.outcome NOT IN ('unknown', 'retry_later'))
    FOR UPDATE OF delivery SKIP LOCKED
),
-- The Deliveries that stay, without their contents.
emptied AS (
    UPDATE audiences_delivery AS delivery SET request = NULL, answer = '', reason = ''
    FROM chosen WHERE delivery.id = chosen.id AND chosen.stays AND NOT {{delivery_is_empty}}
),
-- The deletion of the chosen rows.
gone AS (SELECT prune_rows('deliveries', (SELECT array_agg(id) FROM chosen WHERE NOT stays)) AS pruned)
SELECT (SELECT pruned FROM gone) AS pruned, {{how_far}}

-- name: runs
-- Closed Runs that aren't needed and whose Delivery is deleted or empty. Stores the last number deleted per audience.
WITH
-- The next rows, by id.
looked AS MATERIALIZED (
    SELECT id, opened_at AS at FROM audiences_run WHERE id > %(after)s ORDER BY id LIMIT %(rows)s
),
-- The rows among them that are old and not needed.
chosen AS MATERIALIZED (
    SELECT run.id, run.audience_id, run.last_sequence FROM looked JOIN audiences_run AS run ON run.id = looked.id
    JOIN audiences_lane AS lane ON lane.audience_id = run.audience_id
    WHERE run.closed_at < %(horizon)s AND NOT {{run_is_needed}}
        AND NOT EXISTS (
            SELECT FROM audiences_delivery AS delivery
            WHERE delivery.id = run.delivery_id AND (delivery.closed_at IS NULL OR NOT {{delivery_is_empty}}
                OR delivery.affirmed_at IS NULL AND delivery.outcome IN ('unknown', 'retry_later'))
        )
    FOR UPDATE OF run SKIP LOCKED
),
-- The deletion of the chosen rows.
gone AS (SELECT prune_rows('runs', (SELECT array_agg(id) FROM chosen)) AS pruned),
-- The numbers up to which Runs are deleted.
moved AS (
    INSERT INTO audiences_horizon AS horizon (audience_id, runs_to)
    SELECT audience_id, max(last_sequence) FROM chosen GROUP BY audience_id ORDER BY audience_id
    ON CONFLICT (audience_id) DO UPDATE SET runs_to = greatest(horizon.runs_to, excluded.runs_to)
)
SELECT (SELECT pruned FROM gone) AS pruned, {{how_far}}

-- name: parked
-- Closed parked items. The item of a change that ODP rejected stays as long as its event, because only the item has the
-- result of the event.
WITH
-- The next rows, by id.
looked AS MATERIALIZED (
    SELECT id, parked_at AS at FROM audiences_parked WHERE id > %(after)s ORDER BY id LIMIT %(rows)s
),
-- The rows among them that are old and not needed.
chosen AS MATERIALIZED (
    SELECT parked.id FROM looked JOIN audiences_parked AS parked ON parked.id = looked.id
    WHERE parked.closed_at < %(horizon)s AND NOT EXISTS (
        SELECT FROM audiences_event AS event
        WHERE event.audience_id = parked.audience_id AND event.sequence = parked.sequence
    )
    FOR UPDATE OF parked SKIP LOCKED
),
-- The deletion of the chosen rows.
gone AS (SELECT prune_rows('parked', (SELECT array_agg(id) FROM chosen)) AS pruned)
SELECT (SELECT pruned FROM gone) AS pruned, {{how_far}}

-- name: events
-- Events of one audience. The function has the conditions. It belongs to the owner of the tables, because the role of
-- the processes can't delete from the log.
SELECT pruned, reached AS position, is_done FROM prune_events(%(audience)s, %(after)s, %(rows)s, %(horizon)s)

-- name: differences
-- Differences of old audits.
WITH
-- The next rows, by id.
looked AS MATERIALIZED (
    SELECT difference.id, difference.audit_id, audit.asked_at AS at
    FROM audiences_difference AS difference JOIN audiences_audit AS audit ON audit.id = difference.audit_id
    WHERE difference.id > %(after)s ORDER BY difference.id LIMIT %(rows)s
),
-- The rows among them that are old and not needed.
chosen AS MATERIALIZED (
    SELECT difference.id FROM looked JOIN audiences_difference AS difference ON difference.id = looked.id
    JOIN audiences_audit AS audit ON audit.id = looked.audit_id
    WHERE {{audit_is_old}} FOR UPDATE OF difference SKIP LOCKED
),
-- The deletion of the chosen rows.
gone AS (DELETE FROM audiences_difference AS difference USING chosen WHERE difference.id = chosen.id RETURNING 1)
SELECT (SELECT count(*) FROM gone) AS pruned, {{how_far}}

-- name: audits
-- Old audits without differences.
WITH
-- The next rows, by id.
looked AS MATERIALIZED (
    SELECT id, asked_at AS at FROM audiences_audit WHERE id > %(after)s ORDER BY id LIMIT %(rows)s
),
-- The rows among them that are old and not needed.
chosen AS MATERIALIZED (
    SELECT audit.id FROM looked JOIN audiences_audit AS audit ON audit.id = looked.id
    WHERE {{audit_is_old}}
        AND NOT EXISTS (SELECT FROM audiences_difference AS difference WHERE difference.audit_id = audit.id)
    FOR UPDATE OF audit SKIP LOCKED
),
-- The deletion of the chosen rows.
gone AS (DELETE FROM audiences_audit AS audit USING chosen WHERE audit.id = chosen.id RETURNING 1)
SELECT (SELECT count(*) FROM gone) AS pruned, {{how_far}}

-- name: messages
-- Messages that were sent or given up, of resolved troubles, and of tests.
WITH
-- The next rows, by id.
looked AS MATERIALIZED (
    SELECT id, created_at AS at FROM audiences_troublemessage WHERE id > %(after)s ORDER BY id LIMIT %(rows)s
),
-- The rows among them that are old and not needed.
chosen AS MATERIALIZED (
    SELECT message.id FROM looked JOIN audiences_troublemessage AS message ON message.id = looked.id
    LEFT JOIN audiences_trouble AS trouble ON trouble.id = message.trouble_id
    WHERE coalesce(message.sent_at, message.given_up_at) < %(horizon)s
        AND (trouble.id IS NULL OR trouble.resolved_at < %(horizon)s)
    FOR UPDATE OF message SKIP LOCKED
),
-- The deletion of the chosen rows.
gone AS (SELECT prune_rows('messages', (SELECT array_agg(id) FROM chosen)) AS pruned)
SELECT (SELECT pruned FROM gone) AS pruned, {{how_far}}

-- name: troubles
-- Resolved troubles without messages.
WITH
-- The next rows, by id.
looked AS MATERIALIZED (
    SELECT id, first_seen_at AS at FROM audiences_trouble WHERE id > %(after)s ORDER BY id LIMIT %(rows)s
),
-- The rows among them that are old and not needed.
chosen AS MATERIALIZED (
    SELECT trouble.id FROM looked JOIN audiences_trouble AS trouble ON trouble.id = looked.id
    WHERE trouble.resolved_at < %(horizon)s
        AND NOT EXISTS (SELECT FROM audiences_troublemessage AS message WHERE message.trouble_id = trouble.id)
    FOR UPDATE OF trouble SKIP LOCKED
),
-- The deletion of the chosen rows.
gone AS (SELECT prune_rows('troubles', (SELECT array_agg(id) FROM chosen)) AS pruned)
SELECT (SELECT pruned FROM gone) AS pruned, {{how_far}}
