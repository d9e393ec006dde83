-- Removing one person from the tables. All statements run in one transaction, and change nothing before the lanes are
-- locked.

-- name: follow_index
-- Makes PostgreSQL find the events by the index on identifiers. The planner underestimates that index and would read
-- the whole log.
SELECT set_config('enable_seqscan', 'off', true)

-- name: events
-- The events of the person in the install: audience, number and transition time of each.
WITH
-- The events in all installs. Materialized, because PostgreSQL would join first and read all events of the install.
found AS MATERIALIZED (
    SELECT audience_id, sequence, occurred_ns FROM audiences_event WHERE identifier = %(identifier)s
)
SELECT found.audience_id, found.sequence, found.occurred_ns
FROM found JOIN audiences_audience AS audience ON audience.id = found.audience_id
WHERE audience.install_id = %(install)s

-- name: later_events
-- The events of the person among the given ranges of numbers, one range for each audience.
-- The LIMIT never drops rows. It forces index look-ups.
SELECT event.audience_id, event.sequence, event.occurred_ns
FROM unnest(%(audiences)s::int[], %(after)s::bigint[], %(last)s::bigint[]) AS range(audience_id, after, last)
CROSS JOIN LATERAL (
    SELECT * FROM audiences_event AS event
    WHERE event.audience_id = range.audience_id AND event.sequence > range.after AND event.sequence <= range.last
    ORDER BY event.sequence LIMIT range.last - range.after
) AS event
WHERE event.identifier = %(identifier)s

-- name: clear_answers
-- Replaces the identifier in ODP's answers to the given Deliveries.
UPDATE audiences_delivery SET answer = regexp_replace(answer, %(pattern)s, %(token)s, 'gi'),
    reason = regexp_replace(reason, %(pattern)s, %(token)s, 'gi')
WHERE id = ANY(%(deliveries)s::bigint[]) AND concat(answer, ' ', reason) ~* %(pattern)s

-- name: clear_lanes
-- Replaces the identifier in the reasons of blocks and errors of the install's lanes.
UPDATE audiences_lane AS lane SET block_reason = regexp_replace(block_reason, %(pattern)s, %(token)s, 'gi'),
    lifted_reason = regexp_replace(lifted_reason, %(pattern)s, %(token)s, 'gi'),
    fault_reason = regexp_replace(fault_reason, %(pattern)s, %(token)s, 'gi')
FROM audiences_audience AS audience
WHERE audience.id = lane.audience_id AND audience.install_id = %(install)s
    AND concat(block_reason, ' ', lifted_reason, ' ', fault_reason) ~* %(pattern)s

-- name: clear_audiences
-- Replaces the identifier in the reasons for which ODP didn't create the install's audiences.
UPDATE audiences_audience SET hold_reason = regexp_replace(hold_reason, %(pattern)s, %(token)s, 'gi')
WHERE install_id = %(install)s AND hold_reason ~* %(pattern)s

-- name: clear_install
-- Replaces the identifier in the reason of the install's backoff.
UPDATE audiences_install SET brake_reason = regexp_replace(brake_reason, %(pattern)s, %(token)s, 'gi')
WHERE id = %(install)s AND brake_reason ~* %(pattern)s

-- name: clear_changes
-- Replaces the identifier in the reasons for which guided changes of the install waited or ended.
UPDATE audiences_guidedchange SET problem = regexp_replace(problem, %(pattern)s, %(token)s, 'gi'),
    waits_for = regexp_replace(waits_for, %(pattern)s, %(token)s, 'gi')
WHERE install_id = %(install)s AND concat(problem, ' ', waits_for) ~* %(pattern)s

-- name: clear_twins
-- Replaces the identifier in the reasons for which looks at the install's audiences in ODP failed.
UPDATE audiences_twin AS twin SET problem = regexp_replace(problem, %(pattern)s, %(token)s, 'gi')
FROM audiences_audience AS audience
WHERE audience.id = twin.audience_id AND audience.install_id = %(install)s AND problem ~* %(pattern)s

-- name: take_out
-- Replaces the identifier by the token in the given events, and removes the person from the ledger and from the member
-- counts. Gives the numbers of rows. The function belongs to the owner of the tables, because the role of the processes
-- can't change the log.
SELECT events, memberships
FROM forget_customer(%(install)s, %(identifier)s, %(token)s, %(audiences)s::int[], %(sequences)s::bigint[])

-- name: drop_profiles
-- Deletes the profiles that are the person's own or have no other identifier in their list.
DELETE FROM audiences_profile AS profile USING audiences_audience AS audience
WHERE audience.id = profile.audience_id AND audience.install_id = %(install)s
    AND (profile.profile = %(identifier)s OR profile.identifiers = jsonb_build_array(%(identifier)s::text))

-- name: shorten_profiles
-- Removes the identifier from the lists of the other profiles. Without its list, the other identifiers of a profile
-- would stay members when Lytics sends a list without them.
UPDATE audiences_profile AS profile SET identifiers = profile.identifiers - %(identifier)s::text
FROM audiences_audience AS audience
WHERE audience.id = profile.audience_id AND audience.install_id = %(install)s
    AND profile.identifiers @> to_jsonb(%(identifier)s::text)

-- name: drop_differences
-- Deletes the person from the reports of audits. The counts stay.
DELETE FROM audiences_difference AS difference USING audiences_audit AS audit
WHERE audit.id = difference.audit_id AND audit.install_id = %(install)s AND difference.identifier = %(identifier)s

-- name: clear_list_profiles
-- Removes the person as the Lytics ID of a profile from audits of identifier fields that hold lists.
WITH
-- The members of scans under way. They stay, because an audit takes a member who is missing for one who left.
scanned AS (
    UPDATE audiences_scannedmember AS scanned SET profile = '' FROM audiences_audit AS audit
    WHERE audit.id = scanned.audit_id AND audit.install_id = %(install)s AND scanned.profile = %(identifier)s
)
UPDATE audiences_difference AS difference SET profile = '' FROM audiences_audit AS audit
WHERE audit.id = difference.audit_id AND audit.install_id = %(install)s AND difference.profile = %(identifier)s

-- name: drop_scanned
-- Deletes the person from the members of a scan under way.
DELETE FROM audiences_scannedmember AS scanned USING audiences_audit AS audit
WHERE audit.id = scanned.audit_id AND audit.install_id = %(install)s AND scanned.identifier = %(identifier)s

-- name: move_cursors
-- Replaces the identifier by the token where it is the cursor of a resend. A resync under way may send some people
-- twice.
UPDATE audiences_resend SET after_identifier = ''
WHERE install_id = %(install)s AND after_identifier = %(identifier)s

-- name: move_audit_cursors
-- Replaces the identifier where it is the cursor of an audit.
UPDATE audiences_audit SET after_identifier = ''
WHERE install_id = %(install)s AND after_identifier = %(identifier)s

-- name: move_retirement_cursors
-- Replaces the identifier where it is the cursor of a retirement. A retirement under way may send an exit twice.
UPDATE audiences_retirement AS retirement SET after_identifier = '' FROM audiences_audience AS audience
WHERE audience.id = retirement.audience_id AND audience.install_id = %(install)s AND after_identifier = %(identifier)s
