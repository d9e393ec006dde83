-- The record of each request to ODP.

-- name: open_delivery
-- Stores a Delivery and its Runs as open, before the request starts. Gives the id of the Delivery, or no row when this
-- worker has lost the lease on one of the lanes.
--
-- Step 1  renewed: renew the lease.
-- Step 2  delivery: if the lease on every lane was renewed, store the Delivery.
-- Step 3  runs: if the Delivery was stored, store a Run for each lane in the request.
--
-- One statement, so that no row is stored without the lease, in one round trip.
WITH
-- An expired lease is not renewed: claims no longer count it, and another request may have its place by now.
renewed AS (
    UPDATE audiences_lane SET lease_expires_at = clock_timestamp() + make_interval(secs => %(lease_seconds)s)
    WHERE audience_id = ANY(%(leased)s::int[]) AND lease_token = %(token)s AND lease_expires_at > clock_timestamp()
    RETURNING 1
),
-- The Delivery, only if the number of renewed lanes is the number of leased lanes.
delivery AS (
    INSERT INTO audiences_delivery
        (install_id, endpoint, opened_at, outcome, items, bytes, reason, answer, request, worker, version)
    SELECT %(install)s, %(endpoint)s, statement_timestamp(), '', %(items)s, %(bytes)s, '', '', %(request)s::bytea,
        %(worker)s, %(version)s
    WHERE (SELECT count(*) FROM renewed) = %(leased_count)s
    RETURNING id
),
-- A Run for each lane in the request; none if there is no Delivery.
runs AS (
    INSERT INTO audiences_run
        (audience_id, delivery_id, first_sequence, last_sequence, sent, folded, opened_at, outcome)
    SELECT run.audience_id, delivery.id, run.first, run.last, run.sent, run.folded, statement_timestamp(), ''
    FROM delivery CROSS JOIN unnest(
        %(audiences)s::int[], %(firsts)s::bigint[], %(lasts)s::bigint[], %(sent)s::int[], %(folded)s::int[]
    ) AS run(audience_id, first, last, sent, folded)
)
SELECT id FROM delivery

-- name: close_delivery
-- Stores the response of ODP in the Delivery and closes it with its Runs. Changes nothing when it is closed already.
-- One statement, so that a Delivery and its Runs close together in one round trip.
WITH
-- The Delivery. A request that was never sent can't be applied late, so it needs no reconciling.
closed AS (
    UPDATE audiences_delivery SET
        closed_at = statement_timestamp(), outcome = %(outcome)s, status = %(status)s::smallint,
        latency_ms = %(latency_ms)s::int, reason = %(reason)s, answer = %(answer)s,
        affirmed_at = CASE WHEN %(sent)s::boolean THEN affirmed_at ELSE statement_timestamp() END
    WHERE id = %(delivery)s AND closed_at IS NULL RETURNING id
)
UPDATE audiences_run AS run SET closed_at = statement_timestamp(), outcome = %(outcome)s
FROM closed WHERE run.delivery_id = closed.id AND run.closed_at IS NULL
