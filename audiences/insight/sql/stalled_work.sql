-- Work that could be sent and isn't: at most "most" installs, or all of them if that is NULL; only the one of the
-- parameter "install" if that isn't NULL.

-- name: stuck_installs
-- Installs with ready work and without progress for the given seconds, and the reason of the last backoff of each.
-- Work is ready when the install is enabled and not in backoff, and the audience is not paused, blocked or on hold. A
-- backoff for an error of this service doesn't excuse waiting work. Ready work moves when a request of the install gets
-- a response or one of its audiences is made in ODP. The time restarts when an operator presses a button of an
-- install, an audience, a parked item or a resend, or when a backoff or a hold ends.
-- One statement, because the installs and their work must be read at the same moment.
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
-- Installs that are on, with the time of their last response, and the end of a backoff that excuses waiting work.
answered AS (
    SELECT install.id, install.name, install.brake_reason AS reason,
        CASE WHEN install.brake_reason LIKE %(unexpected)s THEN NULL ELSE install.brake_until_at END AS held_until,
        (SELECT closed_at FROM audiences_delivery AS delivery
            WHERE delivery.install_id = install.id AND closed_at IS NOT NULL
                AND outcome NOT IN ('', 'unknown', 'retry_later')
            ORDER BY id DESC LIMIT 1) AS answered_at
    FROM audiences_install AS install
    WHERE install.enabled AND (%(install)s::bigint IS NULL OR install.id = %(install)s)
),
-- Installs that are not in backoff and got no response in the given seconds. Only their lanes are read: with many
-- lanes, that saves nearly all of the time while deliveries succeed.
silent AS MATERIALIZED (
    SELECT id, name, reason, held_until, greatest(answered_at, (SELECT max(action_time) FROM pressed)) AS moved_at
    FROM answered
    WHERE answered_at >= clock_timestamp() - make_interval(secs => %(seconds)s) IS NOT TRUE
        AND (held_until IS NULL OR held_until <= clock_timestamp())
),
-- Their lanes with events to send that no person, block, retirement or hold of the audience stops.
waiting AS MATERIALIZED (
    SELECT silent.id, audience.id AS audience_id, delivered_sequence + 1 AS head, waiting_part, part,
        CASE WHEN audience.provisioned_at IS NULL THEN audience.hold_until_at END AS hold_until_at
    FROM audiences_lane AS lane
    JOIN audiences_audience AS audience ON audience.id = lane.audience_id
    JOIN silent ON silent.id = audience.install_id
    WHERE least(audience.last_sequence, lane.retired_sequence) > lane.delivered_sequence
        AND lane.retired_at IS NULL AND lane.paused_at IS NULL AND lane.blocked_at IS NULL
        AND (audience.provisioned_at IS NOT NULL OR audience.hold_until_at IS NULL
            OR audience.hold_until_at <= clock_timestamp())
),
-- The longest without a response or button comes first. What follows is read for one install after the other, in this
-- order, until work of one has waited.
first AS MATERIALIZED (
    SELECT * FROM silent WHERE id IN (SELECT id FROM waiting) ORDER BY moved_at NULLS FIRST, id
),
-- When the last audience of each was made in ODP: one pass, because an install may have hundreds.
made AS MATERIALIZED (
    SELECT install_id, max(provisioned_at) AS made_at FROM audiences_audience
    WHERE install_id IN (SELECT id FROM first) GROUP BY install_id
)
SELECT name, greatest(moved_at, held_until, ready_at, made_at) AS since, reason
FROM first JOIN made ON made.install_id = first.id
-- Since when its work is ready: when the oldest event of those to send next arrived, or a hold ended.
CROSS JOIN LATERAL (
    SELECT greatest(
        min((SELECT received_at FROM audiences_event AS event
            WHERE event.audience_id = waiting.audience_id AND event.sequence = waiting.head
                AND event.part BETWEEN waiting.waiting_part AND waiting.part)),
        max(hold_until_at)) AS ready_at
    FROM waiting WHERE waiting.id = first.id
) AS ready
WHERE greatest(moved_at, held_until, ready_at, made_at) < clock_timestamp() - make_interval(secs => %(seconds)s)
ORDER BY moved_at NULLS FIRST, first.id LIMIT %(most)s::bigint

-- name: installs_with_faulty_audiences
-- Installs with an audience whose ready work has failed for the given seconds because of an error of this service, and
-- the error that has lasted longest. Other audiences of the install may make progress. Errors of ODP, blocks, pauses
-- and retired audiences don't count.
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
    SELECT install.name, reason,
        greatest(since, CASE WHEN brake_reason NOT LIKE %(unexpected)s THEN brake_until_at END) AS since
    FROM faulty JOIN audiences_install AS install ON install.id = install_id
    WHERE install.enabled AND (%(install)s::bigint IS NULL OR install.id = %(install)s)
)
SELECT name, min(since) AS since, (array_agg(reason ORDER BY since))[1] AS reason
FROM held WHERE since < clock_timestamp() - make_interval(secs => %(seconds)s)
GROUP BY name ORDER BY min(since) LIMIT %(most)s::bigint
