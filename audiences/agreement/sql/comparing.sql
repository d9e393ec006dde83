-- Comparing the members in Lytics' scan with the ledger.

-- name: compare
-- Stores the people who differ, and gives the number of people compared, of people who differ, and of people left out
-- because they have an event since the audit began. One statement, so that it sees one state of the ledger.
-- Nobody is compared when the audit isn't in this phase any more: its scan is deleted when it ends.
WITH
-- One row, if the audit is in this phase.
going AS MATERIALIZED (
    SELECT 1 FROM audiences_audit WHERE id = %(audit)s AND ended_at IS NULL AND phase = 'compare'
),
-- The people with an event since the audit began. The scan may have read them before that event.
moving AS MATERIALIZED (
    SELECT DISTINCT identifier FROM audiences_event
    WHERE audience_id = %(audience)s AND sequence > %(before)s
),
-- The people in the scan or in the ledger.
everybody AS MATERIALIZED (
    SELECT identifier, scanned.audit_id IS NOT NULL AS in_lytics, held.identifier IS NOT NULL AS is_known,
        coalesce(held.is_member, false) AS is_member, coalesce(scanned.profile, '') AS profile
    FROM (SELECT * FROM audiences_scannedmember WHERE audit_id = %(audit)s) AS scanned
    FULL JOIN (SELECT * FROM audiences_membership WHERE audience_id = %(audience)s) AS held USING (identifier)
),
-- The same without the people with an event since the audit began.
compared AS MATERIALIZED (
    SELECT * FROM everybody WHERE EXISTS (SELECT FROM going)
        AND NOT EXISTS (SELECT FROM moving WHERE moving.identifier = everybody.identifier)
),
-- The people of open parked items of the audience.
waiting AS MATERIALIZED (
    SELECT DISTINCT ON (identifier) identifier, reason, sequence IS NOT NULL AS is_rejection FROM audiences_parked
    WHERE audience_id = %(audience)s AND identifier <> '' AND closed_at IS NULL
    ORDER BY identifier, is_rejection DESC
),
-- The people who differ, each with the reason. Those whom a repair can't correct come last.
differing AS (
    INSERT INTO audiences_difference (audit_id, identifier, kind, profile, why, is_explained)
    SELECT %(audit)s, identifier, CASE WHEN in_lytics THEN 'not_here' ELSE 'not_lytics' END, profile,
        CASE WHEN waiting.is_rejection THEN %(refused)s
            WHEN waiting.reason IS NOT NULL THEN concat('Parked: ', waiting.reason)
            WHEN in_lytics AND NOT is_known THEN %(never_sent)s
            WHEN in_lytics THEN %(entry_not_sent)s
            ELSE %(exit_not_sent)s END,
        true
    FROM compared LEFT JOIN waiting USING (identifier)
    WHERE in_lytics <> is_member
    ORDER BY waiting.reason IS NOT NULL, identifier LIMIT %(most)s
    ON CONFLICT DO NOTHING
)
SELECT (SELECT count(*) FROM compared) AS compared,
    (SELECT count(*) FROM compared WHERE in_lytics <> is_member) AS differing,
    (SELECT count(*) FROM everybody) - (SELECT count(*) FROM compared) AS moving
