-- The steps of a settle. They run in one transaction.

-- name: move_cursors
-- Moves the cursors of the leased lanes, gives the lanes back, and blocks those that have a reason for it. The number
-- of changed rows is less than the number of leased lanes when the lease was lost.
-- One statement for all lanes, because it runs for every request.
-- lifted_since_at and lifted_reason stay when the block that a person lifted came back, or when nothing was delivered.
UPDATE audiences_lane AS lane SET
    delivered_sequence = greatest(lane.delivered_sequence, moved.cursor),
    member_count = lane.member_count + moved.joined,
    lease_token = NULL,
    lease_expires_at = NULL,
    blocked_at = CASE WHEN moved.block = '' THEN lane.blocked_at ELSE clock_timestamp() END,
    block_reason = CASE WHEN moved.block = '' THEN lane.block_reason ELSE moved.block END,
    lifted_since_at = CASE WHEN {{lifted_block_stays}} THEN lane.lifted_since_at END,
    lifted_reason = CASE WHEN {{lifted_block_stays}} THEN lane.lifted_reason ELSE '' END,
    fault_since_at = NULL,
    fault_until_at = NULL,
    fault_reason = ''
FROM unnest(%(audiences)s::int[], %(cursors)s::bigint[], %(joined)s::int[], %(blocks)s::text[])
    AS moved(audience_id, cursor, joined, block)
WHERE lane.audience_id = moved.audience_id AND lane.lease_token = %(token)s

-- name: copy_new_members
-- Inserts ledger rows of customers whom the ledger doesn't know in these audiences. The lease holder knows which are
-- new, and COPY writes less WAL than INSERT. The primary key rejects a customer that is there after all.
COPY audiences_membership (audience_id, occurred_ns, sequence, is_member, refused, identifier) FROM STDIN

-- name: update_ledger
-- Updates ledger rows of known customers. A row never goes back to an older transition; at the same time an exit wins
-- over an enter. A held time further ahead of PostgreSQL's clock than the tolerance isn't believed, so any transition
-- wins. The worker's own clock may be behind that of the process that stored the time.
UPDATE audiences_membership AS held SET
    is_member = new.is_member, occurred_ns = new.occurred_ns, sequence = new.sequence, refused = new.rejected
FROM unnest(
    %(audiences)s::int[], %(identifiers)s::text[], %(is_member)s::boolean[], %(occurred_ns)s::bigint[],
    %(sequences)s::bigint[], %(rejected)s::boolean[]
) AS new(audience_id, identifier, is_member, occurred_ns, sequence, rejected)
WHERE held.audience_id = new.audience_id AND held.identifier = new.identifier AND (
    (new.occurred_ns, NOT new.is_member) >= (held.occurred_ns, NOT held.is_member)
    OR held.occurred_ns > (SELECT (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint + %(tolerance_ns)s)
)

-- name: park_rejections
-- Parks changes that ODP rejected. A customer has at most one such open item per audience, which a newer one replaces.
INSERT INTO audiences_parked
    (install_id, audience_id, delivery_id, sequence, identifier, reason, detail, parked_at, closed_by, resolution)
SELECT %(install)s, audience_id, delivery_id, sequence, identifier, %(reason)s, detail, clock_timestamp(), '', ''
FROM jsonb_to_recordset(%(rejections)s::jsonb)
    AS rejection(audience_id int, delivery_id bigint, sequence bigint, identifier text, detail text)
ON CONFLICT (audience_id, identifier) WHERE closed_at IS NULL AND sequence IS NOT NULL
DO UPDATE SET sequence = excluded.sequence, detail = excluded.detail, delivery_id = excluded.delivery_id

-- name: supersede_rejections
-- Closes parked changes of customers for whom ODP has accepted a newer change.
UPDATE audiences_parked AS parked SET closed_at = clock_timestamp(), resolution = 'superseded'
FROM jsonb_to_recordset(%(accepted)s::jsonb) AS accepted(audience_id int, identifier text)
WHERE parked.audience_id = accepted.audience_id AND parked.identifier = accepted.identifier
    AND parked.closed_at IS NULL AND parked.sequence IS NOT NULL
