-- The newest list of identifiers of each profile and audience.

-- name: read_lists
-- The stored lists of the given profiles, each in its audience.
SELECT known.audience_id, known.profile, known.occurred_ns, known.has_left, known.identifiers
FROM jsonb_to_recordset(%(asked)s::jsonb) AS asked(audience_id int, profile text)
JOIN audiences_profile AS known USING (audience_id, profile)

-- name: write_lists
-- Stores lists, each in place of the one before. The caller holds the locks of the audiences, so no list is newer.
INSERT INTO audiences_profile (audience_id, profile, occurred_ns, has_left, identifiers)
SELECT * FROM jsonb_to_recordset(%(lists)s::jsonb)
    AS list(audience_id int, profile text, occurred_ns bigint, has_left boolean, identifiers jsonb)
ON CONFLICT (audience_id, profile) DO UPDATE SET
    occurred_ns = excluded.occurred_ns, has_left = excluded.has_left, identifiers = excluded.identifiers
