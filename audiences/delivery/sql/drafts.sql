-- Deleting installs.

-- name: keep_installs
-- Keeps these installs from being deleted until the transaction ends. Gives the ids of those that still exist.
SELECT id AS install_id FROM audiences_install WHERE id = ANY(%(installs)s) ORDER BY id FOR KEY SHARE
