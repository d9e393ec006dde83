-- What a process needs of the database.

-- name: applied_migrations
-- The migrations that the database has.
SELECT app, name FROM django_migrations

-- name: existing_columns
-- The columns of the tables of this application.
SELECT attrelid::regclass::text AS table_name, attname AS column_name
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
WHERE relkind IN ('r', 'p') AND relname LIKE 'audiences%%' AND attnum > 0 AND NOT attisdropped

-- name: stored_secrets
-- The secrets that receiving and delivery need, encrypted, and what each is. Without parked items: they may be many and
-- large.
SELECT 'the API key of the install ' || name AS whose, odp_api_key AS hidden FROM audiences_install
UNION ALL
SELECT 'a token of the install ' || install.name, token.secret
FROM audiences_token AS token JOIN audiences_install AS install ON install.id = token.install_id
WHERE token.revoked_at IS NULL
