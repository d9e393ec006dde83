"""Finding requests without a final response, which ODP may have applied, and their changes that are outdated."""

from collections.abc import Collection
from typing import NamedTuple

from django.db.models import Q

from audiences import sql
from audiences.models import Delivery
from odp.outcomes import Outcome


class Unreconciled(NamedTuple):
    id: int


class Overtaken(NamedTuple):
    """The ledger's present state of a customer, and the Delivery that may still replace it in ODP."""

    audience_id: int
    identifier: str
    is_member: bool
    occurred_ns: int
    delivery_id: int


_SQL = sql.beside(__file__)
_DOUBTFUL = _SQL.query("unreconciled_deliveries", Unreconciled._make)
_MARK = _SQL.command("mark_reconciled")
_OVERTAKEN = _SQL.query("overtaken_changes", Overtaken._make)


def doubtful(*, seconds: float) -> list[int]:
    """Deliveries without a final response that closed at least ``seconds`` ago and aren't reconciled, oldest first."""
    return [row.id for row in _DOUBTFUL.run(seconds=seconds).all()]


def may_be_applied(delivery_ids: Collection[int]) -> bool:
    """Whether ODP may still apply one of these Deliveries: it has no final response, and isn't reconciled."""
    unanswered = Q(closed_at=None) | Q(outcome__in=[Outcome.UNKNOWN, Outcome.RETRY_LATER])
    return Delivery.objects.filter(unanswered, pk__in=delivery_ids, reconciled_at=None).exists()


def mark(delivery_id: int) -> bool:
    """Mark a Delivery without a final response as reconciled, in the transaction that appends what it may replace.

    False when another worker does so, or has done it.
    """
    return bool(_MARK.run(delivery=delivery_id).changed)


def overtaken(delivery_id: int) -> list[Overtaken]:
    """The present state of each customer of the Delivery for whom ODP has accepted a newer change since."""
    return _OVERTAKEN.run(delivery=delivery_id).all()
