"""What retention should have deleted by now: for the doctor and the page *Now*."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.utils.timezone import now

from audiences.insight.horizons import KINDS, name
from audiences.models import Pruning
from audiences.operations import parts

# A pass begins at midnight in UTC, when the horizon moves, and usually takes minutes. After a setting was lowered it
# begins at any time of the day and takes longer. So a pass is late when the next one has been due for twelve hours.
DAY = timedelta(days=1)
PASS_LATE = timedelta(hours=12)
# Events that something needs leave a part two days after the horizon has passed it, and waiting ones after a week.
PART_LATE = timedelta(days=9)
PAGE = "docs/retention.md"
LATE_CURE = f"Look at beat and the workers, and at the log lines of workers.tasks.prune. {PAGE} has the steps."
HELD_CURE = (
    "Look for audiences that have been blocked or paused for long, for retired ones with held events, and for"
    " unfinished replays and audits."
)


@dataclass(frozen=True)
class Overdue:
    """``kinds`` are those whose pass is late, ``since_at`` when the first of the next passes was due, and ``parts`` the
    number of old parts of the log that something holds back.
    """

    kinds: tuple[str, ...] = ()
    since_at: datetime | None = None
    parts: int = 0


def overdue() -> Overdue:
    at = now()
    due = {row.kind: due_at for row in Pruning.objects.order_by("kind") if (due_at := _due_at(row))}
    late = {kind: due_at for kind, due_at in due.items() if at - due_at > PASS_LATE}
    days = settings.EVENTS_KEEP_DAYS
    old = parts.closed(at - timedelta(days=days) - PART_LATE) if days > 0 else []
    return Overdue(tuple(late), min(late.values(), default=None), len(old))


def _due_at(row: Pruning) -> datetime | None:
    """When the pass after the present one is due; None while nothing of this kind is deleted."""
    kept: int = getattr(settings, KINDS.get(row.kind, ""), 0)
    if row.horizon_at is None or kept <= 0:
        return None
    return row.horizon_at + timedelta(days=kept) + DAY


def late(kinds: Iterable[str]) -> str:
    return f"Deleting old rows is late: {', '.join(name(kind).lower() for kind in kinds)}"


def held(many: int) -> str:
    how_many = f"{many} old parts of the log stay" if many > 1 else "An old part of the log stays"
    return f"{how_many}, because something needs {'their' if many > 1 else 'its'} events"
