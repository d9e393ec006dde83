-- Audiences of one install whose different slugs become the same ODP id.

-- name: audiences_with_suffix
-- The newest audiences whose ODP id differs from the one derived from their slug because another audience with another
-- slug has it, without those that a person confirmed; of one install, or of all where "install" is NULL. PostgreSQL may
-- lower-case letters outside a–z differently from Python. Both turn them into underscores, and the Python module
-- compares the rows again.
SELECT audience.id FROM audiences_audience AS audience JOIN audiences_install AS install ON install.id = install_id
CROSS JOIN LATERAL (
    SELECT install.odp_prefix || regexp_replace(lower(slug), '[^a-z0-9_]+', '_', 'g') AS odp_id
) AS plain
WHERE slug_settled_at IS NULL AND (%(install)s::bigint IS NULL OR install_id = %(install)s)
    -- Nearly all slugs are plain, and this costs less than the regular expression.
    AND audience.odp_id <> install.odp_prefix || replace(lower(slug), '-', '_')
    AND audience.odp_id <> plain.odp_id
    AND (octet_length(slug) > length(slug) OR EXISTS (
        SELECT FROM audiences_audience AS holder
        WHERE holder.install_id = audience.install_id AND holder.odp_id = plain.odp_id
            AND holder.slug <> audience.slug AND holder.latest_slug <> audience.latest_slug))
ORDER BY audience.id DESC LIMIT %(compared)s
