-- Reasons of differences that come from identifier fields with lists.

-- name: explain
-- Gives differences with Lytics the reason "left_list" or "merged". A difference for which neither is known keeps its
-- reason. The differences are given as arrays, because the planner knows the lengths of arrays; of the rows that were
-- just stored, it would expect only one.
WITH
-- The people who differ: members here who aren't in Lytics, or the reverse.
differing AS MATERIALIZED (
    SELECT * FROM unnest(%(ids)s::bigint[], %(identifiers)s::text[], %(are_members)s::boolean[])
        AS one(id, identifier, is_member)
),
-- The events that decided the state of these people, if calls of Lytics brought them.
deciding AS MATERIALIZED (
    SELECT differing.id, differing.identifier, differing.is_member, event.sequence, event.kind, event.occurred_ns,
        event.receipt_id
    FROM differing
    JOIN audiences_membership AS held
        ON held.audience_id = %(audience)s AND held.identifier = differing.identifier
    JOIN audiences_event AS event
        ON event.audience_id = %(audience)s AND event.sequence = held.sequence AND event.receipt_id IS NOT NULL
),
-- Members in Lytics who left here although the newest list of their profile has the identifier: an exit of another
-- profile, or the shorter list of another profile, was newer. The list of a profile that left is empty.
lost AS (
    SELECT deciding.id
    FROM deciding
    JOIN audiences_scannedmember AS scanned
        ON scanned.audit_id = %(audit)s AND scanned.identifier = deciding.identifier
    JOIN audiences_profile AS known ON known.audience_id = %(audience)s AND known.profile = scanned.profile
    WHERE NOT deciding.is_member AND known.occurred_ns <= deciding.occurred_ns
        AND known.identifiers @> to_jsonb(deciding.identifier)
),
-- Members here who aren't in Lytics' scan, and the profile whose newest list has the identifier.
listed AS MATERIALIZED (
    SELECT differing.id, known.profile, known.identifiers
    FROM audiences_profile AS known
    CROSS JOIN LATERAL jsonb_array_elements_text(known.identifiers) AS one(identifier)
    JOIN differing ON differing.identifier = one.identifier
    WHERE known.audience_id = %(audience)s AND differing.is_member
),
-- The profile is still a member, without the identifier.
shortened AS (
    SELECT id FROM listed
    WHERE profile IN (SELECT profile FROM audiences_scannedmember WHERE audit_id = %(audit)s)
),
-- The profile isn't a member any more, and other identifiers of its list are on another profile.
joined AS (
    SELECT listed.id
    FROM listed
    CROSS JOIN LATERAL jsonb_array_elements_text(listed.identifiers) AS other(identifier)
    JOIN audiences_scannedmember AS scanned
        ON scanned.audit_id = %(audit)s AND scanned.identifier = other.identifier
),
-- Without a stored list: members here whose deciding message named other identifiers too, which are all on one profile
-- in Lytics' scan. Events of one message have one call, time and kind, and stand together in the log. With more events
-- than a list can have, several profiles share the time, and nothing is known.
companions AS (
    SELECT deciding.id
    FROM deciding
    JOIN audiences_event AS other ON other.audience_id = %(audience)s
        AND other.sequence BETWEEN deciding.sequence - %(longest)s AND deciding.sequence + %(longest)s
        AND other.receipt_id = deciding.receipt_id AND other.occurred_ns = deciding.occurred_ns
        AND other.kind = deciding.kind AND other.identifier <> deciding.identifier
    LEFT JOIN audiences_scannedmember AS scanned
        ON scanned.audit_id = %(audit)s AND scanned.identifier = other.identifier
    WHERE deciding.is_member AND NOT EXISTS (SELECT FROM listed WHERE listed.id = deciding.id)
    GROUP BY deciding.id
    HAVING count(DISTINCT nullif(scanned.profile, '')) = 1 AND count(DISTINCT other.identifier) < %(longest)s
)
UPDATE audiences_difference AS difference
SET why = CASE WHEN found.is_left THEN %(left_list)s ELSE %(merged)s END
FROM (
    SELECT id, bool_or(is_left) AS is_left
    FROM (
        SELECT id, true AS is_left FROM shortened
        UNION ALL SELECT id, true FROM companions
        UNION ALL SELECT id, false FROM joined
        UNION ALL SELECT id, false FROM lost
    ) AS reason
    GROUP BY id
) AS found
WHERE difference.id = found.id
