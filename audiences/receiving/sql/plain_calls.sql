-- Storing plain calls, which only have events of known audiences.

-- name: lock_named
-- Locks the audiences that calls name, in ascending order of id, so that two transactions that share audiences cannot
-- deadlock. A separate statement before store_named: one that locks and updates can see a stale version of a row.
WITH
-- Limits the wait for each lock of this transaction, in milliseconds; with NULL, the present limit stays. As a
-- condition without a column it is evaluated first, in any plan: so the limit holds for the first row, and when there
-- is no row, for the table that the next statement may wait for.
lock_wait AS MATERIALIZED (
    SELECT set_config('lock_timeout', coalesce(%(lock_milliseconds)s, current_setting('lock_timeout')), true) AS limit
)
SELECT audience.id FROM audiences_audience AS audience
WHERE audience.install_id = %(install)s AND audience.segment_id = ANY(%(segments)s::text[])
    AND (SELECT lock_wait.limit FROM lock_wait) IS NOT NULL
ORDER BY audience.id FOR NO KEY UPDATE OF audience

-- name: store_named
-- Stores calls of one install, whose events name their audiences by segment id and slug. It stores nothing when a name
-- finds no audience, for example because its slug is not the latest, or when a token of "tokens" isn't live or the
-- install is not as the calls were read.
WITH
-- One row, if all tokens are live, of an install that is switched on and has the settings by which all calls were read.
allowed AS (
    SELECT 1
    FROM audiences_token AS token JOIN audiences_install AS install ON install.id = token.install_id
    WHERE token.id = ANY(%(tokens)s::bigint[]) AND install.id = %(install)s::bigint
        AND token.revoked_at IS NULL AND (token.expires_at IS NULL OR token.expires_at > statement_timestamp())
        AND install.enabled AND NOT install.forget_missing_identifiers
        AND install.name = ALL(%(install_names)s::text[])
        AND install.identifier_field = ALL(%(identifier_fields)s::text[])
        AND install.allow_top_level_identifier::int = ALL(%(top_levels)s::int[])
    HAVING count(*) = cardinality(%(tokens)s::bigint[])
),
-- The audiences by their names.
grown AS MATERIALIZED (
    SELECT audience.id, number, by, ahead
    FROM unnest(%(segments)s::text[], %(slugs)s::text[], %(counts)s::int[], %(ahead)s::int[])
        WITH ORDINALITY AS named(segment_id, slug, by, ahead, number)
    JOIN audiences_audience AS audience ON audience.install_id = %(install)s::bigint
        AND audience.segment_id = named.segment_id AND named.slug IN ('', audience.latest_slug)
),
{{store_calls}}
