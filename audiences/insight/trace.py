"""From a webhook call to the requests that carried its events to ODP, and back."""

from datetime import timedelta
from typing import Any

from django.db import connection

from audiences.models import Delivery, Receipt

# A call's events usually leave within a second. Runs opened later than this after a call are not looked through.
WITHIN = timedelta(minutes=10)
RUNS = 500
SHOWN = 20

# The LIMIT keeps the search small for an install that delivers a thousand Runs a minute.
_DELIVERIES = """
SELECT DISTINCT run.delivery_id
FROM (
    SELECT run.* FROM audiences_run AS run JOIN audiences_audience AS audience ON audience.id = run.audience_id
    WHERE audience.install_id = %(install)s AND run.delivery_id IS NOT NULL
        AND run.opened_at BETWEEN %(from)s AND %(to)s
    ORDER BY run.opened_at LIMIT %(runs)s
) AS run
WHERE EXISTS (
    SELECT 1 FROM audiences_event AS event
    WHERE event.audience_id = run.audience_id AND event.receipt_id = %(receipt)s
        AND event.sequence BETWEEN run.first_sequence AND run.last_sequence
)
ORDER BY run.delivery_id LIMIT %(shown)s
"""
_RECEIPTS = """
SELECT DISTINCT event.receipt_id
FROM audiences_run AS run
JOIN audiences_event AS event ON event.audience_id = run.audience_id
    AND event.sequence BETWEEN run.first_sequence AND run.last_sequence
WHERE run.delivery_id = %(delivery)s AND event.receipt_id IS NOT NULL
ORDER BY event.receipt_id LIMIT %(shown)s
"""


def deliveries_of(receipt: Receipt) -> list[int]:
    """Ids of up to ``SHOWN`` Deliveries that carried events of a call, among the Runs opened soon after it."""
    return _ids(
        _DELIVERIES,
        {
            "receipt": receipt.pk,
            "install": receipt.install_id,
            "from": receipt.received_at,
            "to": receipt.received_at + WITHIN,
            "runs": RUNS,
            "shown": SHOWN,
        },
    )


def receipts_of(delivery: Delivery) -> list[int]:
    """Ids of up to ``SHOWN`` calls that brought the events of a Delivery."""
    return _ids(_RECEIPTS, {"delivery": delivery.pk, "shown": SHOWN})


def _ids(statement: str, values: dict[str, Any]) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return [row[0] for row in cursor.fetchall()]
