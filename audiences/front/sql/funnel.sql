-- How far the events of one install came, from its Minutes.

-- name: progress
-- Events delivered in a range of time ("went"), those of them that were folded, so that ODP needed no change, and those
-- delivered before the time "proven". "folded" is NULL if only an older version counted them.
SELECT coalesce(sum(delivered + again), 0)::bigint AS went,
    sum(greatest(delivered + again - sent, 0)) FILTER (WHERE sent IS NOT NULL)::bigint AS folded,
    coalesce(sum(delivered + again) FILTER (WHERE minute + interval '1 minute' <= %(proven)s), 0)::bigint AS confirmed
FROM audiences_minute
WHERE minute >= %(start)s AND minute < %(end)s AND install_id = %(install)s
