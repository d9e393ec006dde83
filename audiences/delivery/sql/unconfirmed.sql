-- Reconciling Deliveries that ended without a final response.

-- name: unreconciled_deliveries
-- Deliveries without a final response that closed at least the given seconds ago, oldest first. By then ODP has applied
-- them or never will.
SELECT id FROM audiences_delivery
WHERE affirmed_at IS NULL AND outcome IN ('unknown', 'retry_later')
    AND closed_at <= clock_timestamp() - make_interval(secs => %(seconds)s)
ORDER BY closed_at

-- name: mark_reconciled
-- Marks a Delivery as reconciled. Changes no row when another worker is doing it or has done it.
UPDATE audiences_delivery SET affirmed_at = clock_timestamp() WHERE id = (
    SELECT id FROM audiences_delivery WHERE id = %(delivery)s AND affirmed_at IS NULL FOR UPDATE SKIP LOCKED
)

-- name: overtaken_changes
-- The ledger's present state of each customer in a Delivery for whom ODP has accepted a newer change since. If ODP
-- applies the Delivery late, it replaces that newer change. Audiences that are retired or being retired are left out:
-- events after the end of their log wait for a person.
SELECT DISTINCT ON (held.audience_id, held.identifier)
    held.audience_id, held.identifier, held.is_member, held.occurred_ns, run.delivery_id
FROM audiences_run AS run
-- The LIMIT never drops rows. It forces index look-ups.
CROSS JOIN LATERAL (
    SELECT * FROM audiences_event AS event
    WHERE event.audience_id = run.audience_id AND event.sequence BETWEEN run.first_sequence AND run.last_sequence
    ORDER BY event.sequence LIMIT run.last_sequence - run.first_sequence + 1
) AS event
JOIN audiences_lane AS lane ON lane.audience_id = run.audience_id AND lane.retired_sequence IS NULL
JOIN audiences_membership AS held
    ON held.audience_id = event.audience_id AND held.identifier = event.identifier
WHERE run.delivery_id = %(delivery)s AND held.sequence > run.last_sequence AND NOT held.refused
ORDER BY held.audience_id, held.identifier, run.delivery_id DESC
