-- Audiences of one install whose different slugs become the same ODP id.

-- name: audiences_with_suffix
-- The newest audiences whose ODP id differs from the one derived from their slug because another audience with another
-- slug has it, without those that a person confirmed; of one install, or of all where "install" is NULL. PostgreSQL may
-- lower-case letters outside a–z differently from Python. Both turn them into underscores, and the Python module
-- compares the rows again.
WITH
-- The audiences that can have a suffix, by an index where the install has the usual prefix.
candidate AS (
    SELECT id FROM audiences_audience WHERE {{id_is_unusual}}
    UNION
    SELECT audience.id FROM audiences_install AS install JOIN audiences_audience AS audience ON install_id = install.id
    WHERE odp_prefix <> 'lytics_'
)
SELECT audience.id FROM candidate JOIN audiences_audience AS audience ON audience.id = candidate.id
JOIN audiences_install AS install ON install.id = install_id
CROSS JOIN LATERAL (
    SELECT install.odp_prefix || regexp_replace(lower(slug), '[^a-z0-9_]+', '_', 'g') AS odp_id
) AS plain
WHERE slug_settled_at IS NULL AND (%(install)s::bigint IS NULL OR install_id = %(install)s)
    -- Most slugs of an install with its own prefix are plain, and this costs less than the regular expression.
    AND audience.odp_id <> install.odp_prefix || replace(lower(slug), '-', '_')
    AND audience.odp_id <> plain.odp_id
    AND (octet_length(slug) > length(slug) OR EXISTS (
        SELECT FROM audiences_audience AS holder
        WHERE holder.install_id = audience.install_id AND holder.odp_id = plain.odp_id
            AND holder.slug <> audience.slug AND holder.latest_slug <> audience.latest_slug))
ORDER BY audience.id DESC LIMIT %(compared)s
