-- Skipping what an install has not sent yet. The three statements run in one transaction, in this order.

-- name: close_open_deliveries
-- Closes the open Deliveries of an install with their Runs, as unknown.
-- One statement, so that exactly the Runs of these Deliveries are closed.
WITH
-- The open Deliveries.
closed AS (
    UPDATE audiences_delivery SET closed_at = clock_timestamp(), outcome = 'unknown'
    WHERE install_id = %(install)s AND closed_at IS NULL RETURNING id
)
UPDATE audiences_run AS run SET closed_at = clock_timestamp(), outcome = 'unknown'
FROM closed WHERE run.delivery_id = closed.id AND run.closed_at IS NULL

-- name: skip_reconciling
-- Marks the Deliveries without a final response as reconciled, so that nothing is sent again because of them.
UPDATE audiences_delivery SET affirmed_at = clock_timestamp()
WHERE install_id = %(install)s AND affirmed_at IS NULL AND outcome IN ('unknown', 'retry_later')

-- name: skip_events
-- Moves each cursor to the end of its log and records a Run. Gives the ODP id of each audience and the number of events
-- skipped. One statement, because the cursors that are read must be those that are moved.
WITH
-- Lanes with events to skip. A lane with a lease is not touched: its worker may have a request in flight.
behind AS (
    SELECT lane.audience_id, lane.delivered_sequence AS cursor, audience.last_sequence AS last
    FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
    WHERE audience.install_id = %(install)s AND audience.last_sequence > lane.delivered_sequence
        AND (lane.lease_expires_at IS NULL OR lane.lease_expires_at <= clock_timestamp())
    FOR NO KEY UPDATE OF lane
),
-- The same lanes with their cursors moved, without an expired lease and without a pause after an error.
moved AS (
    UPDATE audiences_lane AS lane SET delivered_sequence = behind.last, lease_token = NULL, lease_expires_at = NULL,
        fault_since_at = NULL, fault_until_at = NULL, fault_reason = ''
    FROM behind WHERE lane.audience_id = behind.audience_id
    RETURNING lane.audience_id, behind.cursor, behind.last
),
-- A Run for each moved lane: history says where its events went.
runs AS (
    INSERT INTO audiences_run
        (audience_id, first_sequence, last_sequence, sent, folded, opened_at, closed_at, outcome, skip_id)
    SELECT audience_id, cursor + 1, last, 0, 0, clock_timestamp(), clock_timestamp(), 'skipped', %(skip)s FROM moved
)
SELECT audience.odp_id, moved.last - moved.cursor AS events
FROM moved JOIN audiences_audience AS audience ON audience.id = moved.audience_id ORDER BY audience.odp_id
