-- Open parked items by install and reason, each counted up to "bound".
--
-- These statements run inside index_order(). They sort by install and reason and compare rows in their conditions, so
-- that only the index parked_and_open provides the order. With equalities, PostgreSQL may scan the index by id, closed
-- items included.

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
CROSS JOIN LATERAL (
    SELECT count(*) AS rows FROM (
        SELECT FROM audiences_parked
        WHERE closed_at IS NULL AND (install_id, reason) >= (found.install_id, found.reason)
            AND (install_id, reason) <= (found.install_id, found.reason)
        ORDER BY install_id, reason, id DESC LIMIT %(bound)s
    ) AS items
) AS counted
CROSS JOIN LATERAL (
    SELECT parked_at FROM audiences_parked
    WHERE closed_at IS NULL AND (install_id, reason) >= (found.install_id, found.reason)
        AND (install_id, reason) <= (found.install_id, found.reason)
    ORDER BY install_id DESC, reason DESC, id LIMIT 1
) AS oldest
CROSS JOIN LATERAL (
    SELECT id FROM audiences_parked
    WHERE closed_at IS NULL AND (install_id, reason) >= (found.install_id, found.reason)
        AND (install_id, reason) <= (found.install_id, found.reason)
    ORDER BY install_id, reason, id DESC LIMIT 1
) AS newest
ORDER BY counted.rows DESC, found.install_id, found.reason

-- name: group
-- The open items of one group up to an id: their number, at most "bound", and the newest one; NULL if there are none.
SELECT count(*) AS rows, max(id) AS newest FROM (
    SELECT id FROM audiences_parked
    WHERE closed_at IS NULL AND (install_id, reason) >= (%(install)s, %(reason)s)
        AND (install_id, reason) <= (%(install)s, %(reason)s) AND id <= %(upto)s
    ORDER BY install_id, reason, id DESC LIMIT %(bound)s
) AS items

-- name: by_install
-- One row per install with open items: their number, at most "bound".
WITH RECURSIVE
-- Jumps from install to install in the index parked_and_open.
found AS (
    (SELECT install_id FROM audiences_parked WHERE closed_at IS NULL ORDER BY install_id, reason LIMIT 1)
    UNION ALL
    SELECT following.install_id FROM found
    CROSS JOIN LATERAL (
        SELECT install_id FROM audiences_parked
        WHERE closed_at IS NULL AND install_id > found.install_id
        ORDER BY install_id, reason LIMIT 1
    ) AS following
)
SELECT found.install_id AS install, counted.rows
FROM found
CROSS JOIN LATERAL (
    SELECT count(*) AS rows FROM (
        SELECT FROM audiences_parked
        WHERE closed_at IS NULL AND install_id >= found.install_id AND install_id <= found.install_id
        ORDER BY install_id, reason LIMIT %(bound)s
    ) AS items
) AS counted
