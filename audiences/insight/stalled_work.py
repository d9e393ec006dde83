"""Whether deliverable work moves, judged by deliveries and not by heartbeats."""

from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.db import connection

from audiences.delivery import backoff, provision

# Work is ready when the install is enabled and not in a backoff, and the audience is not paused, blocked, on hold or
# being checked in ODP. A backoff for an error of this service doesn't excuse waiting work. Ready work moves when a
# request of the install gets a response or one of its audiences is created. The time restarts when an operator presses
# a button, or when a backoff or a pause ends.
_STUCK = """
WITH waiting AS (
    SELECT install.id, install.name, install.brake_reason,
        CASE WHEN audience.provisioned_at IS NULL THEN audience.hold_until_at END AS hold_until_at,
        CASE WHEN install.brake_reason LIKE %(unexpected)s THEN NULL ELSE install.brake_until_at END AS held_until,
        (SELECT received_at FROM audiences_event AS event
            WHERE event.audience_id = audience.id AND event.sequence = lane.delivered_sequence + 1) AS head_at
    FROM audiences_lane AS lane
    JOIN audiences_audience AS audience ON audience.id = lane.audience_id
    JOIN audiences_install AS install ON install.id = audience.install_id
    WHERE install.enabled AND audience.last_sequence > lane.delivered_sequence
        AND lane.paused_at IS NULL AND lane.blocked_at IS NULL
        AND (audience.provisioned_at IS NOT NULL OR audience.hold_until_at IS NULL
            OR audience.hold_until_at <= clock_timestamp())
), ready AS (
    SELECT id, name, max(brake_reason) AS reason,
        greatest(min(head_at), max(held_until), max(hold_until_at)) AS since, max(held_until) AS held_until
    FROM waiting GROUP BY id, name
), moved AS (
    SELECT ready.*, greatest(since,
        (SELECT max(closed_at) FROM (SELECT closed_at FROM audiences_delivery AS delivery
            WHERE delivery.install_id = ready.id AND closed_at IS NOT NULL
                AND outcome NOT IN ('', 'unknown', 'retry_later')
            ORDER BY id DESC LIMIT 1) AS last),
        (SELECT max(provisioned_at) FROM audiences_audience AS audience WHERE audience.install_id = ready.id),
        (SELECT action_time FROM django_admin_log ORDER BY id DESC LIMIT 1)) AS moved_at
    FROM ready WHERE held_until IS NULL OR held_until <= clock_timestamp()
)
SELECT name, moved_at, reason FROM moved
WHERE moved_at < clock_timestamp() - make_interval(secs => %(seconds)s)
ORDER BY moved_at LIMIT 1
"""

# An audience with ready work that keeps failing with an error of this service while other audiences of its install
# continue. Failures of ODP, blocks and pauses don't count.
_FAULTY = """
WITH faulty AS (
    SELECT audience.install_id, lane.fault_since_at AS since, lane.fault_reason AS reason
    FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
    WHERE lane.fault_since_at IS NOT NULL AND audience.last_sequence > lane.delivered_sequence
        AND lane.paused_at IS NULL AND lane.blocked_at IS NULL
    UNION ALL
    SELECT audience.install_id, audience.hold_since_at, audience.hold_reason
    FROM audiences_audience AS audience JOIN audiences_lane AS lane ON audience.id = lane.audience_id
    WHERE audience.hold_reason LIKE %(unexpected_making)s AND audience.provisioned_at IS NULL
        AND audience.last_sequence > lane.delivered_sequence
        AND lane.paused_at IS NULL AND lane.blocked_at IS NULL
), held AS (
    SELECT install.name, reason,
        greatest(since, CASE WHEN brake_reason NOT LIKE %(unexpected)s THEN brake_until_at END) AS since
    FROM faulty JOIN audiences_install AS install ON install.id = install_id WHERE install.enabled
)
SELECT name, since, reason FROM held WHERE since < clock_timestamp() - make_interval(secs => %(seconds)s)
ORDER BY since LIMIT 1
"""


@dataclass(frozen=True)
class Stuck:
    """An install whose ready work doesn't move, and since when; ``why`` if an error of this service is known.

    ``in_part`` is true when only some of its audiences are affected.
    """

    install: str
    since: datetime
    why: str
    in_part: bool

    @property
    def words(self) -> str:
        """For anybody: without the name of an install."""
        return f"ready work has not moved since {self.since:%Y-%m-%d %H:%M:%S} UTC"


def stuck() -> Stuck | None:
    """Audiences held by an error of this service, or else installs, without progress for ``WORK_STUCK_SECONDS``."""
    values: dict[str, str | float] = {
        "unexpected": backoff.UNEXPECTED + "%",
        "unexpected_making": provision.UNEXPECTED + "%",
        "seconds": settings.WORK_STUCK_SECONDS,
    }
    with connection.cursor() as cursor:
        for statement in (_FAULTY, _STUCK):
            cursor.execute(statement, values)
            if row := cursor.fetchone():
                return Stuck(row[0], row[1], row[2], statement is _FAULTY)
    return None
