"""The waiting events of installs, in one query whose cost is that of the lanes with waiting events."""

from datetime import datetime
from typing import NamedTuple

from django.db.models import BooleanField, ExpressionWrapper, F, Min, OuterRef, Q, Subquery, Sum

from audiences.models import Event, Lane
from audiences.receiving.backlog import CAN_NOT_BE_MADE, HELD


class Backlog(NamedTuple):
    """Waiting events of one install, and when the oldest was received; ``free`` leaves out held audiences."""

    waiting: int = 0
    oldest_at: datetime | None = None
    free: int = 0
    oldest_free_at: datetime | None = None


def by_install(install_id: int | None = None) -> dict[int, Backlog]:
    """By install id, of one install or of all, without installs that have no waiting events."""
    head = Event.objects.filter(
        audience=OuterRef("audience"),
        sequence=OuterRef("delivered_sequence") + 1,
        part__range=(OuterRef("audience__waiting_part"), OuterRef("audience__part")),
    )
    # Grouped by free and held, because two minima of a subquery in one row would look up each event twice.
    of_install = Q() if install_id is None else Q(audience__install=install_id)
    rows = (
        Lane.objects.filter(of_install, audience__last_sequence__gt=F("delivered_sequence"))
        .annotate(
            head_at=Subquery(head.values("received_at")[:1]),
            is_free=ExpressionWrapper(~Q(HELD | CAN_NOT_BE_MADE), output_field=BooleanField()),
        )
        .values("audience__install_id", "is_free")
        .annotate(waiting=Sum(F("audience__last_sequence") - F("delivered_sequence")), oldest_at=Min("head_at"))
        .values_list("audience__install_id", "is_free", "waiting", "oldest_at")
    )
    found: dict[int, Backlog] = {}
    for install_id, is_free, waiting, oldest_at in rows:
        other = found.get(install_id, Backlog())
        times = [at for at in (other.oldest_at, oldest_at) if at is not None]
        total = other._replace(waiting=other.waiting + waiting, oldest_at=min(times, default=None))
        if is_free:
            total = total._replace(free=other.free + waiting, oldest_free_at=oldest_at)
        found[install_id] = total
    return found
