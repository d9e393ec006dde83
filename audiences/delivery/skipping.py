"""Moving the cursors of an install over events that are not to be sent."""

from django.db import connection
from django.db.models.functions import Now

from audiences.models import Lane

# In one statement, because the cursors that are read have to be those that are moved. No lane with a lease is touched:
# the worker that holds it may have a request under way.
_SKIP = """
WITH behind AS (
    SELECT lane.audience_id, lane.delivered_sequence AS cursor, audience.last_sequence AS last
    FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
    WHERE audience.install_id = %(install)s AND audience.last_sequence > lane.delivered_sequence
        AND (lane.lease_expires_at IS NULL OR lane.lease_expires_at <= clock_timestamp())
    FOR NO KEY UPDATE OF lane
), moved AS (
    UPDATE audiences_lane AS lane SET delivered_sequence = behind.last, lease_token = NULL, lease_expires_at = NULL,
        fault_since_at = NULL, fault_until_at = NULL, fault_reason = ''
    FROM behind WHERE lane.audience_id = behind.audience_id
    RETURNING lane.audience_id, behind.cursor, behind.last
), runs AS (
    INSERT INTO audiences_run
        (audience_id, first_sequence, last_sequence, sent, folded, opened_at, closed_at, outcome, skip_id)
    SELECT audience_id, cursor + 1, last, 0, 0, clock_timestamp(), clock_timestamp(), 'skipped', %(skip)s FROM moved
)
SELECT audience.odp_id, moved.last - moved.cursor
FROM moved JOIN audiences_audience AS audience ON audience.id = moved.audience_id ORDER BY audience.odp_id
"""

_LEAVE_IN_DOUBT = """
UPDATE audiences_delivery SET affirmed_at = clock_timestamp()
WHERE install_id = %(install)s AND affirmed_at IS NULL AND outcome IN ('unknown', 'retry_later')
"""

_CLOSE_OPEN = """
WITH closed AS (
    UPDATE audiences_delivery SET closed_at = clock_timestamp(), outcome = 'unknown'
    WHERE install_id = %(install)s AND closed_at IS NULL RETURNING id
)
UPDATE audiences_run AS run SET closed_at = clock_timestamp(), outcome = 'unknown'
FROM closed WHERE run.delivery_id = closed.id AND run.closed_at IS NULL
"""


def leased(install_id: int) -> bool:
    """Whether a worker holds any lane of the install now."""
    held = Lane.objects.filter(audience__install=install_id, lease_expires_at__gt=Now())
    return held.exists()


def skip(install_id: int, *, skip_id: int) -> list[tuple[str, int]]:
    """Move every cursor to the end of its log without sending: ODP ids and how many events each. In a transaction.

    Requests that were under way or had failed are left as they are: nothing is sent again because of them.
    """
    values = {"install": install_id, "skip": skip_id}
    with connection.cursor() as cursor:
        for statement in (_CLOSE_OPEN, _LEAVE_IN_DOUBT, _SKIP):
            cursor.execute(statement, values)
        return [(odp_id, int(events)) for odp_id, events in cursor.fetchall()]
