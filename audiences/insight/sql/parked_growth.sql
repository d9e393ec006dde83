-- How fast parked items come.

-- name: growing
-- The installs of which more items than the limit were parked within an hour. One look per install into the index
-- parked_of_an_install, which reads as many rows as the limit: the item after that many is younger than an hour.
SELECT install.id AS install, item.parked_at AS since_at
FROM audiences_install AS install
CROSS JOIN LATERAL (
    -- A range and no equality: with an equality, PostgreSQL may read all items in the order of their ids, once for each
    -- install with few items.
    SELECT parked_at FROM audiences_parked WHERE install_id >= install.id AND install_id <= install.id
    ORDER BY install_id, id DESC OFFSET install.parked_limit_per_hour LIMIT 1
) AS item
WHERE install.parked_limit_per_hour > 0 AND item.parked_at > now() - interval '1 hour'
