-- Tokens of webhook calls.

-- name: install_with_tokens
-- The install with a public id, in a row per valid token; in one row with a NULL token if it has none.
-- One statement, because each call runs it, and its duration must not depend on whether the install exists.
SELECT token.id AS token_id, token.digest, {{install_columns}}
FROM audiences_install AS install
LEFT JOIN audiences_token AS token ON token.install_id = install.id
    AND token.revoked_at IS NULL AND (token.expires_at IS NULL OR token.expires_at > statement_timestamp())
WHERE install.public_id = %(public_id)s::text
