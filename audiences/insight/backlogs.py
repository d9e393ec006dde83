"""The waiting events of every install, in one query whose cost is that of the lanes with waiting events."""

from datetime import datetime
from typing import NamedTuple

from django.db.models import F, Min, OuterRef, Q, Subquery, Sum

from audiences.models import Event, Lane
from audiences.receiving.backlog import CAN_NOT_BE_MADE, HELD


class Backlog(NamedTuple):
    """Waiting events of one install, and when the oldest was received; ``free`` leaves out held audiences."""

    waiting: int = 0
    oldest_at: datetime | None = None
    free: int = 0
    oldest_free_at: datetime | None = None


def by_install() -> dict[int, Backlog]:
    """By install id, without installs that have no waiting events."""
    head = Event.objects.filter(audience=OuterRef("audience"), sequence=OuterRef("delivered_sequence") + 1)
    behind = F("audience__last_sequence") - F("delivered_sequence")
    is_free = ~Q(HELD | CAN_NOT_BE_MADE)
    rows = (
        Lane.objects.filter(audience__last_sequence__gt=F("delivered_sequence"))
        .annotate(head_at=Subquery(head.values("received_at")[:1]))
        .values("audience__install_id")
        .annotate(
            waiting=Sum(behind),
            oldest_at=Min("head_at"),
            free=Sum(behind, filter=is_free, default=0),
            oldest_free_at=Min("head_at", filter=is_free),
        )
        .values_list("audience__install_id", "waiting", "oldest_at", "free", "oldest_free_at")
    )
    return {install_id: Backlog(*values) for install_id, *values in rows}
