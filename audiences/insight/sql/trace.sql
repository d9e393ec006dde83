-- From a webhook call to the requests that carried its events to ODP, and back.

-- name: deliveries_of_receipt
-- Deliveries that carried events of a call, oldest first, among the first Runs of its install that were opened in a
-- time span.
SELECT DISTINCT run.delivery_id
FROM (
    -- The LIMIT keeps the search short for an install that delivers a thousand Runs a minute.
    SELECT run.* FROM audiences_run AS run JOIN audiences_audience AS audience ON audience.id = run.audience_id
    WHERE audience.install_id = %(install)s AND run.delivery_id IS NOT NULL
        AND run.opened_at BETWEEN %(opened_from)s AND %(opened_to)s
    ORDER BY run.opened_at LIMIT %(runs)s
) AS run
-- The LIMIT forces an index look-up for each Run. Otherwise PostgreSQL may read the Runs once for each part of the log.
CROSS JOIN LATERAL (
    SELECT 1 FROM audiences_event AS event
    WHERE event.audience_id = run.audience_id AND event.receipt_id = %(receipt)s
        AND event.sequence BETWEEN run.first_sequence AND run.last_sequence
    LIMIT 1
) AS brought
ORDER BY run.delivery_id LIMIT %(shown)s

-- name: receipts_of_delivery
-- Calls that brought the events of a Delivery, oldest first.
SELECT DISTINCT event.receipt_id
FROM audiences_run AS run
-- The LIMIT never drops rows. It forces index look-ups.
CROSS JOIN LATERAL (
    SELECT * FROM audiences_event AS event
    WHERE event.audience_id = run.audience_id AND event.sequence BETWEEN run.first_sequence AND run.last_sequence
    ORDER BY event.sequence LIMIT run.last_sequence - run.first_sequence + 1
) AS event
WHERE run.delivery_id = %(delivery)s AND event.receipt_id IS NOT NULL
ORDER BY event.receipt_id LIMIT %(shown)s
