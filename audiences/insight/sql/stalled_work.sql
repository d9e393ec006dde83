-- Work that could be sent and isn't: at most "most" installs, or all of them if that is NULL.

-- name: stuck_installs
-- Those of the given installs that are without progress for the given seconds, each with the reason of its last
-- backoff. "ready_at" says for each since when it has ready work; NULL doesn't limit the time. Ready work moves when a
-- request of the install gets a response or one of its audiences is made in ODP. The time restarts when an operator
-- presses a button of an install, an audience, a parked item or a resend, or when a backoff ends. A backoff for an
-- error of this service doesn't excuse waiting work.
WITH
-- The buttons among the newest entries of "Who did what" that may change what is sent. Searches for customers are
-- entries too, and may be nearly all of them, so the LIMIT bounds the search.
pressed AS (
    SELECT action_time FROM (
        SELECT action_time, content_type_id FROM django_admin_log ORDER BY id DESC LIMIT 100
    ) AS entry
    JOIN django_content_type AS kind ON kind.id = entry.content_type_id
    WHERE kind.app_label = 'audiences' AND kind.model IN ('install', 'audience', 'parked', 'resend')
),
-- The installs that are on, with the end of a backoff that excuses waiting work, and the time of their last response.
answered AS (
    SELECT install.id, install.name, install.brake_reason AS reason, ready_at,
        CASE WHEN install.brake_reason LIKE %(unexpected)s THEN NULL ELSE install.brake_until_at END AS held_until,
        (SELECT closed_at FROM audiences_delivery AS delivery
            WHERE delivery.install_id = install.id AND closed_at IS NOT NULL
                AND outcome NOT IN ('', 'unknown', 'retry_later')
            ORDER BY id DESC LIMIT 1) AS answered_at
    FROM unnest(%(installs)s::bigint[], %(ready_at)s::timestamptz[]) AS work (install_id, ready_at)
    JOIN audiences_install AS install ON install.id = install_id
    WHERE install.enabled
),
-- Those without a response for the given seconds and not in backoff. While deliveries succeed, there are none, and no
-- audience is read.
silent AS MATERIALIZED (
    SELECT id, name, reason,
        greatest(answered_at, held_until, ready_at, (SELECT max(action_time) FROM pressed),
            (SELECT max(provisioned_at) FROM audiences_audience AS audience WHERE audience.install_id = answered.id)
        ) AS moved_at
    FROM answered
    WHERE answered_at >= clock_timestamp() - make_interval(secs => %(seconds)s) IS NOT TRUE
        AND (held_until IS NULL OR held_until <= clock_timestamp())
)
SELECT id, name, moved_at AS since, reason FROM silent
WHERE moved_at < clock_timestamp() - make_interval(secs => %(seconds)s)
ORDER BY moved_at, id LIMIT %(most)s::bigint

-- name: installs_with_faulty_audiences
-- Installs with an audience whose ready work has failed for the given seconds because of an error of this service, and
-- the error that has lasted longest; of one install, or of all where "install" is NULL. Other audiences of the install
-- may make progress. Errors of ODP, blocks, pauses and retired audiences don't count.
WITH
-- Audiences whose deliveries fail, and audiences that can't be made, with the time of the first error.
faulty AS (
    SELECT audience.install_id, lane.fault_since_at AS since, lane.fault_reason AS reason
    FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
    WHERE lane.fault_since_at IS NOT NULL AND audience.last_sequence > lane.delivered_sequence
        AND lane.paused_at IS NULL AND lane.blocked_at IS NULL
    UNION ALL
    SELECT audience.install_id, audience.hold_since_at, audience.hold_reason
    FROM audiences_audience AS audience JOIN audiences_lane AS lane ON audience.id = lane.audience_id
    WHERE audience.hold_failures > 0 AND audience.hold_reason LIKE %(unexpected_making)s
        AND audience.provisioned_at IS NULL
        AND audience.last_sequence > lane.delivered_sequence
        AND lane.retired_at IS NULL AND lane.paused_at IS NULL AND lane.blocked_at IS NULL
),
-- The same of installs that are on. The time doesn't count while ODP held the install in backoff.
held AS (
    SELECT install.id, install.name, reason,
        greatest(since, CASE WHEN brake_reason NOT LIKE %(unexpected)s THEN brake_until_at END) AS since
    FROM faulty JOIN audiences_install AS install ON install.id = install_id
    WHERE install.enabled AND (%(install)s::bigint IS NULL OR install.id = %(install)s)
)
SELECT id, name, min(since) AS since, (array_agg(reason ORDER BY since))[1] AS reason
FROM held WHERE since < clock_timestamp() - make_interval(secs => %(seconds)s)
GROUP BY id, name ORDER BY min(since) LIMIT %(most)s::bigint
