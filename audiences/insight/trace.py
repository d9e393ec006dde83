"""From a webhook call to the requests that carried its events to ODP, and back."""

from datetime import timedelta
from typing import NamedTuple

from audiences import sql
from audiences.models import Delivery, Receipt

# A call's events usually leave within a second. Runs opened later than this after a call are not looked through.
WITHIN = timedelta(minutes=10)
RUNS = 500
SHOWN = 20


class Carrier(NamedTuple):
    delivery_id: int


class Origin(NamedTuple):
    receipt_id: int


_SQL = sql.beside(__file__)
_DELIVERIES = _SQL.query("deliveries_of_receipt", Carrier._make)
_RECEIPTS = _SQL.query("receipts_of_delivery", Origin._make)


def deliveries_of(receipt: Receipt) -> list[int]:
    """Ids of up to ``SHOWN`` Deliveries that carried events of a call, among the Runs opened soon after it."""
    carriers = _DELIVERIES.run(
        receipt=receipt.pk,
        install=receipt.install_id,
        opened_from=receipt.received_at,
        opened_to=receipt.received_at + WITHIN,
        runs=RUNS,
        shown=SHOWN,
    )
    return [carrier.delivery_id for carrier in carriers.all()]


def receipts_of(delivery: Delivery) -> list[int]:
    """Ids of up to ``SHOWN`` calls that brought the events of a Delivery."""
    return [origin.receipt_id for origin in _RECEIPTS.run(delivery=delivery.pk, shown=SHOWN).all()]
