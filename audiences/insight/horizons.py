"""From which age old rows are deleted, in words, for everything that shows the younger rows alone."""

from datetime import date

from django.conf import settings

from audiences.models import Pruning

# The name of each kind of rows on pages, and the setting of its days.
_NAMES = {
    "receipts": ("Calls", "RECEIPTS_KEEP_DAYS"),
    "requests": ("Request bodies", "REQUESTS_KEEP_DAYS"),
    "deliveries": ("Deliveries", "DELIVERIES_KEEP_DAYS"),
    "runs": ("Runs", "RUNS_KEEP_DAYS"),
    "parked": ("Items closed", "PARKED_KEEP_DAYS"),
    "audits": ("Audits", "AUDITS_KEEP_DAYS"),
    "events": ("Events", "EVENTS_KEEP_DAYS"),
    "troubles": ("Troubles resolved", "TROUBLES_KEEP_DAYS"),
}


def day(kind: str) -> date | None:
    """The first day that is kept completely; None while nothing is deleted, and for an empty ``kind``."""
    if not kind:
        return None
    at = Pruning.objects.filter(kind=kind).values_list("horizon_at", flat=True).first()
    return at.date() if at else None


def words(kind: str) -> str:
    """One sentence, such as "Calls before 30 August 2026 are deleted after 90 days."; empty without a horizon."""
    first = day(kind)
    if first is None:
        return ""
    name, setting = _NAMES[kind]
    days: int = getattr(settings, setting)
    how = f"are deleted after {days:,} day{'' if days == 1 else 's'}" if days > 0 else "were deleted"
    return f"{name} before {first.day} {first:%B %Y} {how}."


def all_words(*kinds: str) -> list[str]:
    """The sentences of those of ``kinds`` that have a horizon."""
    return [text for text in map(words, kinds) if text]
