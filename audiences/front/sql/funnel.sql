-- The steps of an install's events, from its Minutes.

-- name: progress
-- The numbers of events delivered in a range of time ("went"), of folded events among them, which needed no change in
-- ODP, and of those delivered before the time "proven". "folded" is NULL if only an older version counted the minutes.
SELECT coalesce(sum(delivered + again), 0)::bigint AS went,
    sum(greatest(delivered + again - sent, 0)) FILTER (WHERE sent IS NOT NULL)::bigint AS folded,
    coalesce(sum(delivered + again) FILTER (WHERE minute + interval '1 minute' <= %(proven)s), 0)::bigint AS confirmed
FROM audiences_minute
WHERE minute >= %(start)s AND minute < %(end)s AND install_id = %(install)s
