"""The doctor's check of retention: what is kept, and whether deleting old rows keeps up."""

from django.conf import settings

from audiences.operations import overdue, parts
from audiences.operations.doctor.case import Case
from audiences.operations.doctor.registry import Found, check, good, warning
from audiences.operations.doctor.service import OURS


@check(OURS, "Retention")
def retention(case: Case) -> Found:
    """How long events stay, and whether old rows are deleted as fast as they become old."""
    days, found = settings.EVENTS_KEEP_DAYS, overdue.overdue()
    if found.kinds:
        return warning(f"{overdue.late(found.kinds)}.", overdue.LATE_CURE)
    if days <= 0:
        return good("The log is kept completely, because EVENTS_KEEP_DAYS is 0. Other old rows are deleted on time.")
    if not parts.has_parts():
        cure = f"Run partition_log, see {overdue.PAGE}. Old events are then dropped at once."
        return warning("Old events are deleted row by row, because the log is one table.", cure)
    if found.parts:
        return warning(f"{overdue.held(found.parts)}.", overdue.HELD_CURE)
    return good(f"Events are deleted after {days:,} days. Old rows are deleted on time.")
