-- Who switched installs on or off.

-- name: switched_at_last
-- The last change of "enabled" of each of these installs, among the newest entries of its history. Without one there is
-- no row. Entries are searched one install at a time, by the index of the history of one object.
SELECT install.id AS install, entry.action_time AS at, person.username AS by
FROM unnest(%(installs)s::bigint[]) AS install(id)
CROSS JOIN LATERAL (
    SELECT newest.action_time, newest.user_id FROM (
        SELECT action_time, user_id, change_message FROM django_admin_log
        WHERE content_type_id = %(kind)s AND object_id = install.id::text ORDER BY action_time DESC LIMIT %(entries)s
    ) AS newest
    WHERE position('Enabled' IN newest.change_message) > 0 ORDER BY newest.action_time DESC LIMIT 1
) AS entry
JOIN auth_user AS person ON person.id = entry.user_id
