-- Filters of the lists in the admin that the ORM cannot express.

-- name: newest_runs
-- The newest Runs of each audience of an install, "runs" of each at most.
-- One index lookup per audience. Runs don't name their install, so reading back from the newest Run of all would read
-- the whole table for an install that has none. The audience is part of the order, and its condition a range, so that
-- PostgreSQL doesn't walk the primary key through all Runs of the period once per audience.
SELECT newest.id FROM audiences_audience AS audience
CROSS JOIN LATERAL (
    SELECT id FROM audiences_run
    WHERE audience_id >= audience.id AND audience_id <= audience.id AND {{run_is_in_period}}
    ORDER BY audience_id, id DESC LIMIT %(runs)s
) AS newest
WHERE audience.install_id = %(install)s

-- name: oldest_runs
-- The oldest Runs of each audience of an install, "runs" of each at most.
SELECT oldest.id FROM audiences_audience AS audience
CROSS JOIN LATERAL (
    SELECT id FROM audiences_run
    WHERE audience_id >= audience.id AND audience_id <= audience.id AND {{run_is_in_period}}
    ORDER BY audience_id DESC, id LIMIT %(runs)s
) AS oldest
WHERE audience.install_id = %(install)s

-- name: count_runs
-- The number of Runs of an install, "bound" at most. The search ends at this number.
SELECT count(*) AS rows FROM (
    SELECT FROM audiences_audience AS audience
    CROSS JOIN LATERAL (
        SELECT id FROM audiences_run
        WHERE audience_id >= audience.id AND audience_id <= audience.id AND {{run_is_in_period}}
        ORDER BY audience_id, id DESC LIMIT %(bound)s
    ) AS of_audience
    WHERE audience.install_id = %(install)s
    LIMIT %(bound)s
) AS found
