-- Choosing the people about whom ODP is asked.

-- name: next_people
-- The next people of an audience's ledger in the order of their identifiers. Of a sample, those whose hash with the
-- audit's number is below the share: the same people after a restart. "is_moving" says that a later event has decided
-- about them since the audit began.
SELECT identifier, is_member, refused, sequence > %(before)s AS is_moving
FROM audiences_membership
WHERE audience_id = %(audience)s AND identifier > %(after)s
    AND (%(share)s >= 1 OR ('x' || left(md5(identifier || %(audit)s), 8))::bit(32)::bigint < %(share)s * 4294967296)
ORDER BY identifier LIMIT %(size)s

-- name: still
-- Of these people, those of whom the ledger says the same as before, and for whom no event waits.
SELECT held.identifier
FROM audiences_membership AS held
JOIN unnest(%(identifiers)s::text[], %(members)s::boolean[]) AS asked(identifier, is_member) USING (identifier)
WHERE held.audience_id = %(audience)s AND held.sequence <= %(before)s AND held.is_member = asked.is_member
    AND NOT EXISTS (
        SELECT FROM audiences_event AS event
        WHERE event.audience_id = %(audience)s AND event.sequence > %(cursor)s AND event.identifier = held.identifier)
