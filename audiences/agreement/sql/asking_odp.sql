-- Choosing the people about whom ODP is asked.

-- name: next_people
-- The next people in an audience's ledger, in the order of their identifiers. A sample has the people whose hash with
-- the audit's number is below the share, so it has the same people after a restart; and those who differed in the
-- audit "earlier", because a sample would hardly meet them again. "is_moving": an event that came after the audit began
-- has decided the person's state. "is_parked": ODP rejected that state, and the parked item of it is open.
SELECT identifier, is_member, sequence > %(before)s AS is_moving,
    refused AND EXISTS (
        SELECT FROM audiences_parked AS item
        WHERE item.audience_id = %(audience)s AND item.identifier = held.identifier
            AND item.closed_at IS NULL AND item.sequence IS NOT NULL
    ) AS is_parked
FROM audiences_membership AS held
WHERE audience_id = %(audience)s AND identifier > %(after)s
    AND (
        %(share)s >= 1
        OR ('x' || left(md5(identifier || %(audit)s), 8))::bit(32)::bigint < %(share)s * 4294967296
        OR identifier IN (SELECT identifier FROM audiences_difference WHERE audit_id = %(earlier)s)
    )
ORDER BY identifier LIMIT %(size)s

-- name: still
-- The given people whose row in the ledger is unchanged, and who have no waiting event.
SELECT held.identifier
FROM audiences_membership AS held
JOIN unnest(%(identifiers)s::text[], %(members)s::boolean[]) AS asked(identifier, is_member) USING (identifier)
WHERE held.audience_id = %(audience)s AND held.sequence <= %(before)s AND held.is_member = asked.is_member
    AND NOT EXISTS (
        SELECT FROM audiences_event AS event
        WHERE event.audience_id = %(audience)s AND event.sequence > %(cursor)s AND event.identifier = held.identifier)
