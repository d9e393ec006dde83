"""An old log that is pruned during a soak: the delivered events of a second install, all received 100 days ago.

They are in parts of their own, which are dropped as soon as the install's audiences have moved to the newest part.
"""

from tests.chaos.house import House

NAME = "old"
# Of the log alone. Each other setting has its default, which is lower than the age of these rows.
SETTINGS = {"EVENTS_KEEP_DAYS": "90"}
AUDIENCES = 20
PARTS = 4
EVENTS_PER_CALL = 300

# Switched off, so that the bridge doesn't look for its audiences in ODP.
_SWITCH_OFF = "UPDATE audiences_install SET enabled = false WHERE name = %s RETURNING id"
_AUDIENCES = """
INSERT INTO audiences_audience (install_id, segment_id, slug, latest_slug, odp_id, last_sequence, created_at,
    provisioned_at)
SELECT %s, 'old' || n, 'old_' || n, 'old_' || n, 'lytics_old_' || n, %s, now() - interval '100 days',
    now() - interval '100 days'
FROM generate_series(1, %s) AS n RETURNING id
"""
_LANES = """
INSERT INTO audiences_lane (audience_id, delivered_sequence, member_count, paused_by, pause_reason, block_reason)
SELECT id, last_sequence, 0, '', '', '' FROM audiences_audience WHERE id = ANY(%s) RETURNING audience_id
"""
_CALLS = """
WITH made AS (INSERT INTO audiences_receipt (install_id, received_at, job, bytes, messages, queued, parked, skipped,
    parked_reasons)
SELECT %s, now() - interval '100 days', 'old', 100000, %s, %s, 0, 0, '{}' FROM generate_series(1, %s) RETURNING 1)
SELECT count(*) FROM made
"""
_EVENTS = """
WITH made AS (INSERT INTO audiences_event (audience_id, sequence, part, identifier, kind, occurred_ns, received_at,
    forced)
SELECT audience, n, newest_part(), md5(n::text || audience), n %% 2, 1772442900000000000 + n,
    now() - interval '100 days', false
FROM generate_series(%s::bigint, %s::bigint) AS n CROSS JOIN unnest(%s) AS audience RETURNING 1)
SELECT count(*) FROM made
"""
# The audiences move to the part that is open, as the service would have moved them.
_MOVE = """
UPDATE audiences_audience SET part = newest_part(), waiting_part = newest_part(), part_after = %s
WHERE id = ANY(%s) RETURNING id
"""
# Both run in each place: beat may have created the next part already.
_NEXT_PART = "SELECT add_part()"
_OPEN = """
UPDATE audiences_logpart SET opened_at = now() - interval '95 days' WHERE opened_at IS NULL RETURNING number
"""
_CLOSE_FIRST = "UPDATE audiences_logpart SET opened_at = now() - interval '100 days' RETURNING number"
# Events per audience and statement, so that no transaction takes minutes.
_AT_ONCE = 10_000
# A pass may have ended before these rows existed, and the next one would begin tomorrow.
_NEW_PASS = "WITH gone AS (DELETE FROM audiences_pruning RETURNING 1) SELECT count(*) FROM gone"
# A part is partition audiences_event_N of the log.
_PART_TABLES = "SELECT 'audiences_event_' || number FROM audiences_logpart WHERE number < newest_part()"
_LEFT = "SELECT count(*) FROM audiences_event WHERE audience_id = ANY(%s)"


class OldLog:
    def __init__(self, house: House, *, events: int) -> None:
        """Fill the log of the install ``NAME`` with about ``events`` events."""
        self._house = house
        install = house.sql(_SWITCH_OFF, NAME)[0][0]
        each = max(PARTS, events // AUDIENCES)
        self.events = each * AUDIENCES
        self._audiences = [one for (one,) in house.sql(_AUDIENCES, install, each, AUDIENCES)]
        house.sql(_LANES, self._audiences)
        house.sql(_CALLS, install, EVENTS_PER_CALL, EVENTS_PER_CALL, -(-self.events // EVENTS_PER_CALL))
        house.sql(_CLOSE_FIRST)
        for part in range(PARTS):
            self._fill_part(each * part // PARTS + 1, each * (part + 1) // PARTS)
        self.part_tables = [table for (table,) in house.sql(_PART_TABLES)]
        house.sql(_NEW_PASS)

    def _fill_part(self, first: int, last: int) -> None:
        """Store the events with these numbers of each audience, and open the next part."""
        for begin in range(first, last + 1, _AT_ONCE):
            self._house.sql(_EVENTS, begin, min(last, begin + _AT_ONCE - 1), self._audiences)
        self._house.sql(_NEXT_PART)
        self._house.sql(_OPEN)
        self._house.sql(_MOVE, last, self._audiences)

    def pruned(self) -> int:
        """The number of its events that have been deleted. Some are while it is filled, before the new pass."""
        return self.events - int(self._house.sql(_LEFT, self._audiences)[0][0])
