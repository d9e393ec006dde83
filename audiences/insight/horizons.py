"""Sentences about deleted old rows, for pages and exports that show only the newer ones."""

from datetime import date

from django.conf import settings

from audiences.models import Pruning

# The setting with the days of each kind of rows. Rows are deleted in this order: those that refer to a row before it.
KINDS = {
    "requests": "REQUESTS_KEEP_DAYS",
    "parked": "PARKED_KEEP_DAYS",
    "deliveries": "DELIVERIES_KEEP_DAYS",
    "runs": "RUNS_KEEP_DAYS",
    "receipts": "RECEIPTS_KEEP_DAYS",
    "events": "EVENTS_KEEP_DAYS",
    "differences": "AUDITS_KEEP_DAYS",
    "audits": "AUDITS_KEEP_DAYS",
    "messages": "TROUBLES_KEEP_DAYS",
    "troubles": "TROUBLES_KEEP_DAYS",
}
# The names on pages that differ from the kind.
_NAMES = {
    "receipts": "Calls",
    "requests": "Request bodies",
    "parked": "Items closed",
    "troubles": "Troubles resolved",
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
    days: int = getattr(settings, KINDS[kind])
    how = f"are deleted after {days:,} day{'' if days == 1 else 's'}" if days > 0 else "were deleted"
    return f"{name(kind)} before {first.day} {first:%B %Y} {how}."


def name(kind: str) -> str:
    return _NAMES.get(kind, kind.capitalize())


def all_words(*kinds: str) -> list[str]:
    """The sentences of those of ``kinds`` that have a horizon."""
    return [text for text in map(words, kinds) if text]
