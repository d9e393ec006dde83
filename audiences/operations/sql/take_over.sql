-- Audiences that were recreated in Lytics.

-- name: undecided_pairs
-- Audiences with the slug of an older audience of their install, before a person has decided, oldest first; of one
-- install, or of all where "install" is NULL. Each row has the audience, the newest older audience, and the number of
-- all rows.
WITH
-- Slugs that several audiences of an install may have: of two, at least one is among these.
shared AS MATERIALIZED (
    SELECT DISTINCT install_id, latest_slug FROM audiences_audience
    WHERE {{id_is_unusual}} AND (%(install)s::bigint IS NULL OR install_id = %(install)s)
),
-- The audiences with such a slug, each with the one before it.
same AS (
    SELECT id, slug_settled_at, lag(id) OVER (PARTITION BY install_id, latest_slug ORDER BY id) AS older_id
    FROM shared JOIN audiences_audience USING (install_id, latest_slug)
)
SELECT id, older_id, count(*) OVER () AS total FROM same
WHERE older_id IS NOT NULL AND slug_settled_at IS NULL ORDER BY id LIMIT %(limit)s
