-- Parts that several statements of pruning.sql share. {{name}} inserts one.

-- fragment: how_far
-- The progress of a step that looked at rows with the time "at": the last id, and whether the pass is done. It is done
-- when no row is from before the horizon, because ids follow the time closely enough.
max(id) AS position, coalesce(bool_and(at >= %(horizon)s), true) AS is_done FROM looked

-- fragment: run_is_needed
-- The Run has undelivered events, or it is the newest Run of its lane, whose events a claim takes at least. A Run of
-- skipped events is needed as long as these events, because only the Run says that they were skipped.
(run.last_sequence > lane.delivered_sequence
    OR NOT EXISTS (SELECT FROM audiences_run AS newer WHERE newer.audience_id = run.audience_id AND newer.id > run.id)
    OR run.outcome = 'skipped' AND run.last_sequence > coalesce(
        (SELECT events_to FROM audiences_horizon AS horizon WHERE horizon.audience_id = run.audience_id), 0))

-- fragment: delivery_is_empty
-- The Delivery has no body and no text of ODP, so it names no customer.
(delivery.request IS NULL AND delivery.answer = '' AND delivery.reason = '')

-- fragment: audit_is_old
-- The audit has ended before the horizon, isn't the newest of its audience, and no repair works on it.
(audit.ended_at < %(horizon)s AND NOT audit.is_newest AND NOT EXISTS (
    SELECT FROM audiences_resend AS repair
    WHERE repair.audience_id = audit.audience_id AND repair.kind = 'repair' AND repair.ended_at IS NULL
        AND repair.upto = audit.id))
