-- Which installs and lanes are ready, and leasing lanes.

-- name: due_installs
-- The installs with events to send or an audience to create that may send now. Installs whose backoff has ended come
-- last, the longest wait first: few of them may hold a slot at once, so each gets its turn.
SELECT audience.install_id
FROM audiences_lane AS lane
JOIN audiences_audience AS audience ON audience.id = lane.audience_id
JOIN audiences_install AS install ON install.id = audience.install_id
WHERE {{install_may_send}} AND (
    {{last_to_send}} > lane.delivered_sequence AND {{lane_is_free}} AND {{audience_is_made}}
    OR {{audience_is_to_make}}
)
GROUP BY audience.install_id, install.brake_until_at
ORDER BY install.brake_until_at NULLS FIRST

-- name: work_of_install
-- One row: the install, whether one of its audiences may be created in ODP now, the number of events that may be
-- claimed, and the mechanism of the least recently served ready lane. One statement, because a worker asks this before
-- each claim, and each round trip delays the delivery. {{install_columns_but_key}}: decrypting odp_api_key is slow, and
-- this caller doesn't need it.
SELECT lanes.unprovisioned, lanes.ready, coalesce(lanes.mechanism, install.mechanism), {{install_columns_but_key}}
FROM audiences_install AS install CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE to_make) > 0
            AND count(*) FILTER (WHERE making_until_at > clock_timestamp()) < %(making_at_once)s AS unprovisioned,
        coalesce(sum(behind) FILTER (WHERE made AND {{lane_is_free}}), 0)::bigint AS ready,
        (array_agg(mechanism ORDER BY last_served_at NULLS FIRST, audience_id)
            FILTER (WHERE behind > 0 AND made AND {{lane_is_free}}))[1] AS mechanism
    FROM (
        SELECT lane.*, audience.making_until_at, {{last_to_send}} - lane.delivered_sequence AS behind,
            {{audience_is_made}} AS made, {{audience_is_to_make}} AS to_make, {{mechanism_of_audience}} AS mechanism
        FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
        -- A parameter and not install.id: for a value unknown at planning time, PostgreSQL assumes an average install
        -- and reads all lanes of all installs.
        WHERE audience.install_id = %(install)s
    ) AS lane
) AS lanes
WHERE install.id = %(install)s

-- name: lock_install
-- The install, and whether ODP rejected changes of it that are still parked. No row when the install may not send.
-- The lock lets one worker at a time claim lanes of an install. Receiving takes no lock that conflicts with this one.
-- A separate statement before claim_lanes, because claim_lanes has to see what was committed while this one waited.
SELECT EXISTS (
        SELECT 1 FROM audiences_parked AS parked
        WHERE parked.install_id = install.id AND parked.reason = 'refused_by_odp' AND parked.closed_at IS NULL
    ) AS has_rejections,
    {{install_columns}}
FROM audiences_install AS install WHERE id = %(install)s AND {{install_may_send}} FOR NO KEY UPDATE

-- name: claim_lanes
-- Leases lanes of one mechanism, least recently served first, until one request is full. Gives the span of each leased
-- lane.
--
-- Step 1  lane, ready: the lanes that have events to send and may be claimed.
-- Step 2  chosen: the ready lanes that may share a request, with a running total of their events.
-- Step 3  room, packed: the free places of the install, and how far into each lane the request reaches.
-- Step 4  the UPDATE: the lease, on each lane that is still as it was read.
--
-- One statement, so that PostgreSQL leases the lanes in the same round trip that chose them.
WITH
-- All lanes of the install. Materialized, because the steps below read it several times.
lane AS MATERIALIZED (
    SELECT lane.*, audience.odp_id, {{last_to_send}} AS last, {{audience_is_made}} AS made,
        {{mechanism_of_audience}} AS mechanism, audience.waiting_part AS low, audience.part AS high
    FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
    JOIN audiences_install AS install ON install.id = audience.install_id
    WHERE audience.install_id = %(install)s
),
-- Lanes with events to send. A lane whose last delivery ended in an unexpected error of this service has its own
-- value of "alone": it is claimed without other lanes, so that the error affects no other lane.
ready AS (
    SELECT audience_id, odp_id, delivered_sequence AS cursor, last, last_served_at, mechanism, low, high,
        CASE WHEN fault_since_at IS NOT NULL THEN audience_id END AS alone
    FROM lane WHERE made AND last > delivered_sequence AND {{lane_is_free}}
),
-- The least recently served lane of the mechanism, and the lanes that may share its request. "upto" is the running
-- total of events.
chosen AS (
    SELECT audience_id, odp_id, cursor, last, low, high,
        (sum(last - cursor) OVER (ORDER BY last_served_at NULLS FIRST, audience_id))::bigint AS upto
    FROM ready WHERE mechanism = %(mechanism)s AND alone IS NOT DISTINCT FROM (
        SELECT alone FROM ready WHERE mechanism = %(mechanism)s
        ORDER BY last_served_at NULLS FIRST, audience_id LIMIT 1)
),
-- The number of further requests that the install may have in flight. In backoff only one request tries whether ODP
-- works again.
room AS (
    SELECT %(capacity)s::bigint AS capacity, CASE WHEN brake_failures > 0 THEN 1 ELSE max_in_flight END
        - (SELECT count(DISTINCT lane.lease_token) FROM lane WHERE lease_expires_at > clock_timestamp()) AS requests
    FROM audiences_install AS install WHERE id = %(install)s AND {{install_may_send}}
),
-- The lanes that fit, the last one possibly in part. A failed request may have been applied by ODP. If the next one
-- held fewer events of a lane, it would fold to an older state than ODP has. So a lane is claimed at least as far as
-- its last Run went, or not at all. The first lane is claimed as far even if less fits into a request by now.
packed AS (
    SELECT audience_id, odp_id, cursor, least(last, CASE WHEN room = capacity
        THEN greatest(cursor + room, {{end_of_last_run}}) ELSE cursor + room END) AS last, capacity, low, high
    FROM (
        SELECT chosen.*, capacity, capacity - (upto - (last - cursor)) AS room FROM chosen, room WHERE requests > 0
    ) AS fitting
    WHERE room > 0 AND (room = capacity OR cursor + room >= last OR cursor + room >= {{end_of_last_run}})
)
-- A lane whose cursor a late settle has moved since it was read stays for the next claim.
UPDATE audiences_lane AS lane SET
    lease_token = %(token)s,
    lease_expires_at = clock_timestamp() + make_interval(secs => %(lease_seconds)s),
    last_served_at = clock_timestamp()
FROM packed
WHERE lane.audience_id = packed.audience_id AND lane.delivered_sequence = packed.cursor AND {{lane_is_free}}
RETURNING packed.audience_id, packed.odp_id, packed.cursor + 1 AS first, packed.last, packed.low, packed.high,
    -- more: other events were ready and did not fit.
    (SELECT sum(last - cursor) FROM ready) > (SELECT least(max(upto), packed.capacity) FROM chosen) AS more,
    -- has_abandoned: a worker that died left a Run of this lane open, or a Delivery of the install for a whole lease.
    EXISTS (SELECT 1 FROM audiences_run WHERE audience_id = packed.audience_id AND closed_at IS NULL)
        OR (SELECT min(opened_at) FROM audiences_delivery WHERE install_id = %(install)s AND closed_at IS NULL)
            <= clock_timestamp() - make_interval(secs => %(lease_seconds)s) AS has_abandoned
