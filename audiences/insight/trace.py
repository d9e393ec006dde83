"""Finds the Deliveries that carried the events of a call, and the calls whose events a Delivery carried."""

from datetime import timedelta
from typing import NamedTuple

from audiences import sql
from audiences.models import Delivery, Receipt

# Runs that were opened later than this after a call are not searched. Events usually leave within a second.
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
    """Ids of Deliveries that carried events of a call, among the first Runs after it: ``SHOWN``, or one more."""
    carriers = _DELIVERIES.run(
        receipt=receipt.pk,
        install=receipt.install_id,
        opened_from=receipt.received_at,
        opened_to=receipt.received_at + WITHIN,
        runs=RUNS,
        shown=SHOWN + 1,
    )
    return [carrier.delivery_id for carrier in carriers.all()]


def receipts_of(delivery: Delivery) -> list[int]:
    """Ids of calls that brought the events of a Delivery: ``SHOWN`` at most, or one more."""
    return [origin.receipt_id for origin in _RECEIPTS.run(delivery=delivery.pk, shown=SHOWN + 1).all()]
