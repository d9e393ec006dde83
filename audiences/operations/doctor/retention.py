"""The doctor's check of retention: what is kept, and whether deleting old rows keeps up."""

from datetime import timedelta

from django.conf import settings
from django.utils.timezone import now

from audiences.insight.horizons import KINDS
from audiences.models import Pruning
from audiences.operations import parts
from audiences.operations.doctor.case import Case
from audiences.operations.doctor.registry import Found, check, good, warning
from audiences.operations.doctor.service import OURS

# A pass begins at midnight in UTC, when the horizon moves, and usually takes minutes.
PASS_LATE = timedelta(hours=12)
# Events that something needs leave a part two days after the horizon has passed it, and waiting ones after a week.
PART_LATE = timedelta(days=9)
PAGE = "docs/retention.md"


@check(OURS, "Retention")
def retention(case: Case) -> Found:
    """How long events stay, and whether old rows are deleted as fast as they become old."""
    at, days = now(), settings.EVENTS_KEEP_DAYS
    late = []
    for row in Pruning.objects.exclude(horizon_at=None).order_by("kind"):
        kept: int = getattr(settings, KINDS.get(row.kind, ""), 0)
        assert row.horizon_at is not None
        began_at = row.horizon_at + timedelta(days=kept)
        if kept > 0 and at - began_at > (timedelta(days=1) if row.is_done else timedelta(0)) + PASS_LATE:
            late.append(row.kind)
    if late:
        cure = f"Look at beat and the workers, and at the log lines of workers.tasks.prune. {PAGE} has the steps."
        return warning(f"Deleting old rows is late: {', '.join(late)}.", cure)
    if days <= 0:
        return good("The log is kept completely, because EVENTS_KEEP_DAYS is 0. Other old rows are deleted on time.")
    if not parts.has_parts():
        cure = f"Run partition_log, see {PAGE}. Old events are then dropped at once."
        return warning("Old events are deleted row by row, because the log is one table.", cure)
    if held := parts.closed(at - timedelta(days=days) - PART_LATE):
        cure = "Look for audiences that have been blocked or paused for long, and for unfinished replays and audits."
        return warning(f"{len(held)} old parts of the log stay, because something needs their events.", cure)
    return good(f"Events are deleted after {days:,} days. Old rows are deleted on time.")
