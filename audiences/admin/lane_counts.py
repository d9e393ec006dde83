"""Counts of audiences and events by install, read in one query for all installs of a page."""

from collections.abc import Collection
from typing import Any, NamedTuple

from django.db.models import Count, F, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce

from audiences.insight import trials
from audiences.models import Install, Lane
from audiences.receiving import backlog

_UNDELIVERED = F("audience__last_sequence") - F("delivered_sequence")
_WAITING = Sum(_UNDELIVERED)
# The list of audiences leaves out the audience of the test customers, so the count does too.
_OF_LYTICS = ~Q(audience__segment_id=trials.SEGMENT_ID)
_ON_HOLD = Q(Q(audience__hold_failures__gt=0) | backlog.FAULTY, blocked_at=None)


class LaneCounts(NamedTuple):
    """Numbers of audiences, and of undelivered events: all (``backlog``), and without held audiences (``free``)."""

    audiences: int = 0
    backlog: int = 0
    free: int = 0
    blocked: int = 0
    on_hold: int = 0
    paused: int = 0


def of_installs(installs: Collection[Install]) -> dict[int, LaneCounts]:
    """The counts by install id. An install without audiences has zeros."""
    rows = _by_install(Lane.objects.filter(audience__install__in=[install.pk for install in installs])).annotate(
        audiences=Count("pk", filter=_OF_LYTICS),
        backlog=_WAITING,
        free=Coalesce(Sum(_UNDELIVERED, filter=~Q(backlog.HELD | backlog.CAN_NOT_BE_MADE)), 0),
        blocked=Count("pk", filter=backlog.BLOCKED),
        on_hold=Count("pk", filter=_ON_HOLD),
        paused=Count("pk", filter=Q(paused_at__isnull=False)),
    )
    found = {row.pop("audience__install"): LaneCounts(**row) for row in rows}
    return {install.pk: found.get(install.pk, LaneCounts()) for install in installs}


def for_ordering() -> dict[str, Subquery]:
    """Aliases for ordering a list of installs. PostgreSQL computes an alias only for a list that is ordered by it."""
    lanes = _by_install(Lane.objects.filter(audience__install=OuterRef("pk")))
    return {
        "audience_count": Subquery(lanes.filter(_OF_LYTICS).annotate(n=Count("pk")).values("n")),
        "backlog": Subquery(lanes.annotate(n=_WAITING).values("n")),
        "blocked": Subquery(lanes.filter(backlog.BLOCKED).annotate(n=Count("pk")).values("n")),
    }


def _by_install(lanes: QuerySet[Lane]) -> "QuerySet[Lane, Any]":
    return lanes.order_by().values("audience__install")
