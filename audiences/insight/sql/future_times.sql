-- Memberships with a transition time ahead of the clock.

-- name: stored_future_times
-- The number of such memberships, the latest of their times, and when the first of their events was received.
SELECT count(*) AS memberships, max(held.occurred_ns) AS furthest_ns, min(stored.received_at) AS since
FROM (
    -- Events with such a time. The second condition is the one of the partial index of migration 0026: a time more than
    -- an hour after the call. Smaller leads have passed an hour after the upgrade.
    SELECT audience_id, sequence, identifier, received_at FROM audiences_event
    WHERE occurred_ns > %(latest_ns)s
        AND occurred_ns > (extract(epoch FROM received_at AT TIME ZONE 'UTC')::bigint + 3600) * 1000000000
    ORDER BY occurred_ns DESC LIMIT %(counted)s
) AS stored
-- The ledger row, as long as that event still decides it.
JOIN audiences_membership AS held ON held.audience_id = stored.audience_id AND held.identifier = stored.identifier
    AND held.sequence = stored.sequence AND held.occurred_ns > %(latest_ns)s
