-- The figures of the charts, from the Minutes of one install, or of all where the parameter "install" is NULL.

-- name: points
-- Events received, parked, delivered and sent again, and the delays, by point of "step" minutes. The median of
-- several minutes or installs is their mean, weighted by delivered events; of their 99th percentiles, the largest.
SELECT date_bin(make_interval(mins => %(step)s), minute, 'epoch') AS at,
    sum(received)::bigint AS received, sum(parked)::bigint AS parked, sum(delivered)::bigint AS delivered,
    (sum(delay_p50_ms * delivered) / nullif(sum(delivered) FILTER (WHERE delay_p50_ms IS NOT NULL), 0))::float AS p50,
    max(delay_p99_ms)::float AS p99, sum(again)::bigint AS again
FROM audiences_minute
WHERE minute >= %(start)s AND minute < %(end)s AND (%(install)s::bigint IS NULL OR install_id = %(install)s)
GROUP BY 1

-- name: arrivals
-- Delivered events by point of their arrival. Events from before the chart are an earlier backlog, counted at the point
-- of their delivery. Rows of an older version don't have the minute of arrival: the minute of delivery replaces it.
SELECT date_bin(make_interval(mins => %(step)s), CASE WHEN came < %(start)s THEN minute ELSE came END, 'epoch') AS at,
    came < %(start)s AS is_earlier, sum(events)::bigint AS events
FROM audiences_minute CROSS JOIN LATERAL (
    SELECT to_timestamp(key::bigint) AS came, value::bigint AS events FROM jsonb_each_text(
        coalesce(arrived, jsonb_build_object(extract(epoch FROM minute)::bigint, delivered))
    )
) AS arrival
WHERE minute >= %(start)s AND minute < %(end)s AND (%(install)s::bigint IS NULL OR install_id = %(install)s)
GROUP BY 1, 2
