-- Open parked items by install and reason.

-- name: groups
-- One row per install and reason with open items: their number, "bound" at most, and the oldest and newest of them.
WITH RECURSIVE
-- Jumps from group to group in the index parked_and_open.
found AS (
    (SELECT install_id, reason FROM audiences_parked WHERE closed_at IS NULL ORDER BY install_id, reason LIMIT 1)
    UNION ALL
    SELECT following.* FROM found
    CROSS JOIN LATERAL (
        SELECT install_id, reason FROM audiences_parked
        WHERE closed_at IS NULL AND (install_id, reason) > (found.install_id, found.reason)
        ORDER BY install_id, reason LIMIT 1
    ) AS following
)
SELECT found.install_id AS install, install.name AS install_name, found.reason, counted.rows, oldest.parked_at AS since,
    newest.id AS newest
FROM found
JOIN audiences_install AS install ON install.id = found.install_id
-- In these, the reason is part of the order and its condition is a range, so that PostgreSQL has to use the same index.
-- With an equality it may walk the index by number through the closed items.
-- The count may still read a whole group: PostgreSQL doesn't know the size of the group when it plans.
CROSS JOIN LATERAL (
    SELECT count(*) AS rows FROM (
        SELECT FROM audiences_parked
        WHERE closed_at IS NULL AND install_id = found.install_id AND reason >= found.reason AND reason <= found.reason
        ORDER BY reason, id DESC LIMIT %(bound)s
    ) AS items
) AS counted
CROSS JOIN LATERAL (
    SELECT parked_at FROM audiences_parked
    WHERE closed_at IS NULL AND install_id = found.install_id AND reason >= found.reason AND reason <= found.reason
    ORDER BY reason DESC, id LIMIT 1
) AS oldest
CROSS JOIN LATERAL (
    SELECT id FROM audiences_parked
    WHERE closed_at IS NULL AND install_id = found.install_id AND reason >= found.reason AND reason <= found.reason
    ORDER BY reason, id DESC LIMIT 1
) AS newest
ORDER BY counted.rows DESC, found.install_id, found.reason
