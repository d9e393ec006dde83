-- Making audiences in ODP.

-- name: lock_install
-- Locks the install, so that two workers don't both take its last free place. Gives nothing that is read. A separate
-- statement, because claim_audience has to see what was committed while this one waited.
SELECT id FROM audiences_install WHERE id = %(install)s FOR NO KEY UPDATE

-- name: claim_audience
-- Takes the next audience to make, if the install has a free place. Gives its id, and whether others wait too.
-- One statement, so that the audience that was chosen is the one that is marked.
WITH
-- All audiences that have to be made now; none if enough of the install are being made.
waiting AS MATERIALIZED (
    SELECT audience.id, audience.hold_failures, audience.hold_until_at
    FROM audiences_audience AS audience
    JOIN audiences_lane AS lane ON lane.audience_id = audience.id
    JOIN audiences_install AS install ON install.id = audience.install_id
    WHERE install.id = %(install)s AND {{install_may_send}} AND {{audience_is_to_make}}
        AND (SELECT count(*) FROM audiences_audience WHERE install_id = %(install)s
            AND making_until_at > clock_timestamp()) < %(making_at_once)s
),
-- The audience with the fewest failures, so that one that fails for hours doesn't take the place of a new one.
chosen AS (
    SELECT id FROM waiting
    WHERE NOT %(skips_locked)s::boolean OR id IN (
        SELECT id FROM audiences_audience WHERE id IN (SELECT id FROM waiting) FOR NO KEY UPDATE SKIP LOCKED)
    ORDER BY hold_failures, hold_until_at NULLS FIRST, id LIMIT 1
)
UPDATE audiences_audience AS audience SET
    making_token = %(token)s, making_until_at = clock_timestamp() + make_interval(secs => %(lease_seconds)s)
FROM chosen WHERE audience.id = chosen.id
    -- A deletion in ODP may have taken the lease since the audience was chosen.
    AND (audience.making_until_at IS NULL OR audience.making_until_at <= clock_timestamp())
RETURNING audience.id AS audience_id, (SELECT count(*) FROM waiting) > 1 AS more

-- name: hold_audience
-- Gives an audience back after a failure, to be tried again after the given seconds. Changes no row when another worker
-- has taken the audience over.
UPDATE audiences_audience SET
    making_token = NULL, making_until_at = NULL, hold_failures = hold_failures + 1, hold_reason = %(reason)s,
    hold_since_at = coalesce(hold_since_at, clock_timestamp()),
    hold_until_at = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE id = %(audience)s AND making_token = %(token)s

-- name: end_making
-- Stores how the making ended. Changes no row when another worker has taken the audience over. A look that somebody
-- asked for while the making was under way stays asked for.
UPDATE audiences_audience SET
    making_token = NULL, making_until_at = NULL,
    hold_failures = 0, hold_reason = '', hold_since_at = NULL, hold_until_at = NULL,
    look_asked_at = CASE WHEN look_asked_at <= %(look_asked_at)s THEN NULL ELSE look_asked_at END,
    provisioned_at = CASE WHEN %(made)s THEN clock_timestamp() ELSE provisioned_at END,
    foreign_definition = %(foreign_definition)s,
    replaced_definition = CASE WHEN %(made)s THEN '' ELSE replaced_definition END
WHERE id = %(audience)s AND making_token = %(token)s
