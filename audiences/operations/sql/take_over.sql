-- Audiences that were recreated in Lytics.

-- name: undecided_pairs
-- Audiences with the slug of an older audience of their install, for which no person has chosen yet, oldest first: each
-- with the newest of those older ones, and in each row the number of all. Each audience is read twice, however many
-- there are: with a look-up for each, PostgreSQL would read all audiences of the install for each of them.
WITH
-- Slugs that several audiences of an install have.
shared AS MATERIALIZED (
    SELECT install_id, latest_slug FROM audiences_audience GROUP BY install_id, latest_slug HAVING count(*) > 1
),
-- The audiences with such a slug, each with the one before it.
same AS (
    SELECT id, slug_settled_at, lag(id) OVER (PARTITION BY install_id, latest_slug ORDER BY id) AS older_id
    FROM shared JOIN audiences_audience USING (install_id, latest_slug)
)
SELECT id, older_id, count(*) OVER () AS total FROM same
WHERE older_id IS NOT NULL AND slug_settled_at IS NULL ORDER BY id LIMIT %(limit)s
