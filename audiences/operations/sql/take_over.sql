-- Audiences that were recreated in Lytics.

-- name: undecided_pairs
-- Audiences with the slug of an older audience of their install, before a person has decided, oldest first; of one
-- install, or of all where "install" is NULL. Each row has the audience, the newest older audience, and the number of
-- all rows. Each audience is read twice in total; with a subquery per audience, PostgreSQL would read all audiences of
-- the install for each of them.
WITH
-- Slugs that several audiences of an install have.
shared AS MATERIALIZED (
    SELECT install_id, latest_slug FROM audiences_audience
    WHERE %(install)s::bigint IS NULL OR install_id = %(install)s
    GROUP BY install_id, latest_slug HAVING count(*) > 1
),
-- The audiences with such a slug, each with the one before it.
same AS (
    SELECT id, slug_settled_at, lag(id) OVER (PARTITION BY install_id, latest_slug ORDER BY id) AS older_id
    FROM shared JOIN audiences_audience USING (install_id, latest_slug)
)
SELECT id, older_id, count(*) OVER () AS total FROM same
WHERE older_id IS NOT NULL AND slug_settled_at IS NULL ORDER BY id LIMIT %(limit)s
