-- Audiences that don't deliver, grouped by install and reason. Each row has the audience that has been in this state
-- longest, the group's numbers of audiences and of waiting events, and the numbers of all groups and of all audiences.
-- Only one install is read, or all where the parameter "install" is NULL.

-- name: blocked_audiences
-- Blocked audiences that no person has set aside, by cause, the largest groups first.
WITH
-- The blocked audiences, each with the cause of its block: the reason without the audience's own names, the longest of
-- them first, so that one fault in ODP is one cause.
stopped AS (
    SELECT lane.audience_id, audience.install_id, audience.last_sequence - lane.delivered_sequence AS waiting,
        coalesce(lane.lifted_since_at, lane.blocked_at) AS since, cause.words
    FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
    CROSS JOIN LATERAL (
        SELECT array_agg(name ORDER BY length(name) DESC) AS longest
        FROM (VALUES (audience.odp_id), (audience.latest_slug), (audience.slug)) AS each(name)
    ) AS names
    CROSS JOIN LATERAL (
        SELECT replace(replace(replace(lane.block_reason, longest[1], '…'), longest[2], '…'), longest[3], '…') AS words
    ) AS cause
    WHERE lane.blocked_at IS NOT NULL AND (lane.paused_at IS NULL OR lane.paused_at < lane.blocked_at)
        AND (%(install)s::bigint IS NULL OR audience.install_id = %(install)s)
)
SELECT (array_agg(audience_id ORDER BY since, audience_id))[1] AS audience_id, count(*) AS lanes,
    sum(waiting)::bigint AS waiting, count(*) OVER () AS groups, (sum(count(*)) OVER ())::bigint AS all_lanes
FROM stopped GROUP BY install_id, words ORDER BY lanes DESC, min(since) LIMIT %(read)s

-- name: audiences_on_hold
-- Audiences that can't be created or checked in ODP and are not retired, blocked or paused, by reason, longest on hold
-- first. While an install is off, none of its audiences is tried.
SELECT (array_agg(audience.id ORDER BY audience.hold_since_at, audience.id))[1] AS audience_id, count(*) AS lanes,
    sum(audience.last_sequence - lane.delivered_sequence)::bigint AS waiting, count(*) OVER () AS groups,
    (sum(count(*)) OVER ())::bigint AS all_lanes
FROM audiences_audience AS audience JOIN audiences_lane AS lane ON lane.audience_id = audience.id
JOIN audiences_install AS install ON install.id = audience.install_id
WHERE install.enabled AND audience.hold_failures > 0
    AND lane.retired_at IS NULL AND lane.blocked_at IS NULL AND lane.paused_at IS NULL
    AND (%(install)s::bigint IS NULL OR audience.install_id = %(install)s)
GROUP BY audience.install_id, audience.provisioned_at IS NULL, audience.hold_reason
ORDER BY min(audience.hold_since_at) LIMIT %(read)s
