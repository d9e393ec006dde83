"""The waiting events of installs, in one query whose cost is that of the lanes with waiting events."""

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from django.db.models import BooleanField, ExpressionWrapper, F, Max, Min, OuterRef, Q, Subquery, Sum
from django.db.models.functions import Least, Now

from audiences.models import Event, Lane
from audiences.receiving.backlog import CAN_NOT_BE_MADE, HELD

# Lanes with events to send that no person, block, retirement or hold of the audience stops.
_READY = Q(
    Q(audience__provisioned_at__isnull=False) | Q(audience__hold_until_at=None) | Q(audience__hold_until_at__lte=Now()),
    until__gt=F("delivered_sequence"),
    retired_at=None,
    paused_at=None,
    blocked_at=None,
)


class Backlog(NamedTuple):
    """Waiting events of one install, and when the oldest was received; ``free`` leaves out held audiences.

    ``has_ready`` is true if an audience could be delivered unless the install is off or in backoff. ``ready_at`` is
    when the oldest event of these audiences was received or a hold of them ended. It is None if the log lacks them.
    """

    waiting: int = 0
    oldest_at: datetime | None = None
    free: int = 0
    oldest_free_at: datetime | None = None
    has_ready: bool = False
    ready_at: datetime | None = None


def by_install(installs: Collection[int] | None = None) -> dict[int, Backlog]:
    """By install id, of these installs or of all, without installs that have no waiting events."""
    head = Event.objects.filter(
        audience=OuterRef("audience"),
        sequence=OuterRef("delivered_sequence") + 1,
        part__range=(OuterRef("audience__waiting_part"), OuterRef("audience__part")),
    )
    of_installs = Q() if installs is None else Q(audience__install__in=installs)
    # Grouped by what is asked, because minima of a subquery with conditions would look up each event several times.
    rows = (
        Lane.objects.filter(of_installs, audience__last_sequence__gt=F("delivered_sequence"))
        .annotate(
            head_at=Subquery(head.values("received_at")[:1]),
            until=Least("audience__last_sequence", "retired_sequence"),
            is_free=ExpressionWrapper(~Q(HELD | CAN_NOT_BE_MADE), output_field=BooleanField()),
            is_ready=ExpressionWrapper(_READY, output_field=BooleanField()),
        )
        .values("audience__install_id", "is_free", "is_ready")
        .annotate(
            waiting=Sum(F("audience__last_sequence") - F("delivered_sequence")),
            oldest_at=Min("head_at"),
            held_until_at=Max("audience__hold_until_at", filter=Q(audience__provisioned_at=None)),
        )
        .values_list("audience__install_id", "is_free", "is_ready", "waiting", "oldest_at", "held_until_at")
    )
    found: dict[int, Backlog] = {}
    for install_id, is_free, is_ready, waiting, oldest_at, held_until_at in rows:
        total = found.get(install_id, Backlog())
        total = total._replace(waiting=total.waiting + waiting, oldest_at=_first(total.oldest_at, oldest_at))
        if is_free:
            first_at = _first(total.oldest_free_at, oldest_at)
            total = total._replace(free=total.free + waiting, oldest_free_at=first_at)
        if is_ready:
            since = max((at for at in (oldest_at, held_until_at) if at is not None), default=None)
            total = total._replace(has_ready=True, ready_at=_first(total.ready_at, since))
        found[install_id] = total
    return found


def _first(*times: datetime | None) -> datetime | None:
    return min((at for at in times if at is not None), default=None)
