-- Which audiences and identifiers the ledger has, by index lookups alone.

-- name: audiences_with_membership
-- The audiences whose ledger has a row for an identifier.
-- One index lookup per audience. The LIMIT never drops rows; it keeps PostgreSQL from scanning the ledger.
SELECT audience.id AS audience FROM audiences_audience AS audience
CROSS JOIN LATERAL (
    SELECT FROM audiences_membership
    WHERE audience_id = audience.id AND identifier = %(identifier)s
    LIMIT 1
) AS membership

-- name: identifiers_with_membership
-- Those of the given identifiers for which the ledger has a row.
-- Index lookups per audience; the LIMIT, the number of identifiers, never drops rows.
SELECT DISTINCT membership.identifier FROM audiences_audience AS audience
CROSS JOIN LATERAL (
    SELECT identifier FROM audiences_membership
    WHERE audience_id = audience.id AND identifier = ANY(%(identifiers)s)
    LIMIT %(many)s
) AS membership
