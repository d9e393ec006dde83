-- Conditions that several statements of this folder share. The names lane, audience and install are those of the
-- tables audiences_lane, audiences_audience and audiences_install in the statement.

-- fragment: lane_is_free
-- Nothing on the lane itself prevents a claim: no person paused it, ODP did not block it, no worker has a lease on it,
-- and its pause after an unexpected error of this service is over.
lane.paused_at IS NULL AND lane.blocked_at IS NULL
    AND (lane.lease_expires_at IS NULL OR lane.lease_expires_at <= clock_timestamp())
    AND (lane.fault_until_at IS NULL OR lane.fault_until_at <= clock_timestamp())

-- fragment: audience_is_made
-- The audience exists in ODP. After somebody asked to look at it there, deliveries wait until the look succeeded or
-- failed, and at most look_seconds.
audience.provisioned_at IS NOT NULL AND (audience.look_asked_at IS NULL OR audience.hold_failures > 0
    OR audience.look_asked_at <= clock_timestamp() - make_interval(secs => %(look_seconds)s))

-- fragment: last_to_send
-- The number of the audience's last event that may be sent. Later events of a retired audience are held. least()
-- ignores NULL.
least(audience.last_sequence, lane.retired_sequence)

-- fragment: end_of_last_run
-- The last number of the newest Run of the lane "fitting"; 0 without one.
coalesce((SELECT run.last_sequence FROM audiences_run AS run WHERE run.audience_id = fitting.audience_id
    ORDER BY run.id DESC LIMIT 1), 0)

-- fragment: audience_is_to_make
-- The audience has to be created or checked in ODP now: it has events or a check was requested, it isn't retired, no
-- worker is creating it, and its backoff has ended.
(audience.provisioned_at IS NULL AND least(audience.last_sequence, lane.retired_sequence) > lane.delivered_sequence
    OR audience.look_asked_at IS NOT NULL)
AND lane.retired_at IS NULL AND lane.paused_at IS NULL AND lane.blocked_at IS NULL
AND (audience.hold_until_at IS NULL OR audience.hold_until_at <= clock_timestamp())
AND (audience.making_until_at IS NULL OR audience.making_until_at <= clock_timestamp())

-- fragment: mechanism_of_audience
-- The mechanism of the audience: the install's, unless a guided change has left the audience with another one.
coalesce(nullif(audience.mechanism, ''), install.mechanism)

-- fragment: install_may_send
-- The install is switched on and not in backoff.
install.enabled AND (install.brake_until_at IS NULL OR install.brake_until_at <= clock_timestamp())

-- fragment: lifted_block_stays
-- The lane was blocked again for the reason that a person lifted, or nothing was delivered.
(moved.block = lane.lifted_reason OR moved.block = '' AND moved.cursor <= lane.delivered_sequence)
