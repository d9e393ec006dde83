-- The parts of the log: see docs/decisions/0036-parts-of-the-log.md.

-- name: has_parts
-- Whether the log has parts. Until "partition_log" it is one table.
SELECT relkind = 'p' AS has_parts FROM pg_class WHERE oid = to_regclass('audiences_event')

-- name: correct
-- Corrects the times of parts that were opened while the clock was ahead: the next part would be opened, and theirs
-- dropped, that much later.
UPDATE audiences_logpart SET opened_at = clock_timestamp() WHERE opened_at > clock_timestamp()

-- name: newest
-- The part that new events go to, the next one if it is created, and whether it is time to open the next one.
SELECT newest.number, next.number AS next,
    newest.opened_at <= clock_timestamp() - make_interval(days => %(days)s) AS is_due
FROM audiences_logpart AS newest LEFT JOIN audiences_logpart AS next ON next.opened_at IS NULL
WHERE newest.number = newest_part()

-- name: add
-- Creates the next part ahead, if there is none.
SELECT add_part() AS number

-- name: analyze
-- Collects statistics of the whole log, once a day.
SELECT analyze_log() FROM pg_stat_user_tables
WHERE relid = to_regclass('audiences_event')
    AND coalesce(last_analyze, '-infinity') < clock_timestamp() - interval '1 day'

-- name: open
-- Opens a part. Audiences move to it with "move".
UPDATE audiences_logpart SET opened_at = clock_timestamp() WHERE number = %(number)s AND opened_at IS NULL

-- name: behind
-- Locks audiences whose new events go to an earlier part. It waits for no call: an audience in use is left to the next
-- run. A separate statement before "move", which has to see the last number of the moment.
SELECT id FROM audiences_audience WHERE part < %(number)s ORDER BY id LIMIT %(many)s FOR NO KEY UPDATE SKIP LOCKED

-- name: move
-- Moves locked audiences to a part: their later events go to it.
UPDATE audiences_audience AS audience SET part = %(number)s, part_after = audience.last_sequence,
    waiting_part = CASE WHEN lane.delivered_sequence >= audience.last_sequence THEN %(number)s
        ELSE audience.waiting_part END
FROM audiences_lane AS lane
WHERE audience.id = ANY(%(audiences)s::int[]) AND lane.audience_id = audience.id AND audience.part < %(number)s

-- name: caught_up
-- Locks audiences that have delivered all events of the parts before their own.
SELECT audience.id FROM audiences_audience AS audience
JOIN audiences_lane AS lane ON lane.audience_id = audience.id
WHERE audience.waiting_part < audience.part AND lane.delivered_sequence >= audience.part_after
ORDER BY audience.id LIMIT %(many)s FOR NO KEY UPDATE OF audience SKIP LOCKED

-- name: follow
-- Claims of locked audiences look for events in their own part alone.
UPDATE audiences_audience AS audience SET waiting_part = audience.part
FROM audiences_lane AS lane
WHERE audience.id = ANY(%(audiences)s::int[]) AND lane.audience_id = audience.id
    AND lane.delivered_sequence >= audience.part_after

-- name: closed
-- The parts that were closed before the horizon, oldest first.
SELECT number FROM (
    SELECT number, lead(opened_at) OVER (ORDER BY number) AS closed_at FROM audiences_logpart
) AS part
WHERE closed_at < %(horizon)s ORDER BY number

-- name: drop
-- Drops a part, and gives the number of its events, or says why it stays.
SELECT dropped, reason FROM drop_part(%(number)s, %(horizon)s)
