"""Which profile fields the newest messages have, and whether the identifier field is one of them.

It reads a bounded number of calls and parked items. Only calls since the last change of the identifier field count,
because older calls were read by another field.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from audiences.index_order import index_order
from audiences.insight import trials
from audiences.models import Install, Parked, Receipt
from lytics import reasons

# The number of newest messages to examine, and the most calls and parked items to read for them.
MESSAGES, CALLS, ITEMS = 300, 100, 100
# The most other fields that are named.
FIELDS = 8
# The field is missing or empty. Such items are stored completely, so that another field can be read instead.
WITHOUT = (reasons.NO_IDENTIFIER, reasons.UNUSABLE_IDENTIFIER)
# A value of the field is no identifier. If the field holds a list, another value may be one.
UNFIT = (reasons.PLACEHOLDER, reasons.UNREADABLE_IDENTIFIER, reasons.IDENTIFIER_TOO_LONG)
# The message was parked before its identifier was read.
UNREAD = (
    reasons.NOT_JSON,
    reasons.PACKED_BODY,
    reasons.CUT_OFF_BODY,
    reasons.TEXT_AFTER_JSON,
    reasons.NOT_A_MESSAGE,
    reasons.NOT_A_USER_EVENT,
    reasons.NO_SEGMENT_EVENTS,
    reasons.TOO_MANY_MESSAGES,
)


# A part of the message couldn't be read. If the call has queued events, the rest of the message was read.
IN_PART = (reasons.UNREADABLE_MESSAGE,)


@dataclass(frozen=True)
class Evidence:
    """``found`` of the ``messages`` examined have the identifier field.

    ``others`` counts the fields of messages without it, over ``looked`` parked items.
    """

    messages: int = 0
    found: int = 0
    newest_at: datetime | None = None
    calls: list[Receipt] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    looked: int = 0

    @property
    def other_fields_in_words(self) -> str:
        """Each other field, with the number of messages without the identifier field that have it."""
        if not self.others:
            return ""
        counts = ", ".join(f"{name} in {many:,}" for name, many in self.others.most_common(FIELDS))
        return f"Of the newest {self.looked:,} without it: {counts}."


def of(install: Install) -> Evidence:
    """The evidence of Lytics' newest calls."""
    calls = _calls(install)
    messages = sum(max(0, call.messages - _unread(call)) for call in calls)
    found = sum(map(_found, calls))
    newest = next((call.received_at for call in calls if call.messages), None)
    items = _items(install, calls)
    others: Counter[str] = Counter()
    for detail in items:
        others.update(name for name in fields_seen(detail) if name not in ("segment_events", install.identifier_field))
    return Evidence(messages, found, newest, calls, others, len(items))


def candidates(install_id: int, reason: str) -> list[str]:
    """Fields of the newest items that are parked for a reason, the most frequent ones first."""
    seen: Counter[str] = Counter()
    with index_order():
        details = [*Parked.open_newest_first(install_id, reason).values_list("detail", flat=True)[:ITEMS]]
    for detail in details:
        seen.update(name for name in fields_seen(detail) if name != "segment_events")
    return [name for name, _ in seen.most_common()]


def fields_seen(detail: str) -> list[str]:
    """The names of profile fields listed in an item's detail (written by ``lytics.payload``)."""
    counts = detail.partition("fields seen: ")[2].partition(" (and ")[0].removesuffix(", …")
    return [name for name in counts.split(", ") if name and name != "none"]


def _calls(install: Install) -> list[Receipt]:
    """The newest calls, newest first, until they have ``MESSAGES`` messages."""
    newest = Receipt.objects.filter(install=install).exclude(job=trials.JOB).order_by("-id")[:CALLS]
    taken, messages = [], 0
    # Filtered in Python: with a condition PostgreSQL would read all older calls to find a hundred.
    for call in newest:
        if install.identifier_since_at is not None and call.received_at < install.identifier_since_at:
            break
        taken.append(call)
        messages += call.messages
        if messages >= MESSAGES:
            break
    return taken


def _items(install: Install, calls: list[Receipt]) -> list[str]:
    """Details of the items that these calls parked because they had no identifier."""
    wanting = [call.pk for call in calls if _count(call, WITHOUT)]
    if not wanting:
        return []
    items = Parked.objects.filter(receipt__in=wanting, reason__in=WITHOUT).order_by("-id")
    return [*items.values_list("detail", flat=True)[:ITEMS]]


def _found(call: Receipt) -> int:
    """The number of a call's messages that name a customer.

    A message with an unfit value is counted if the call has queued events, because the field may hold a list with a fit
    value beside it.
    """
    without = _unread(call) + _count(call, WITHOUT) + (0 if call.queued else _count(call, UNFIT))
    return max(0, call.messages - without)


def _unread(call: Receipt) -> int:
    return _count(call, UNREAD) + (0 if call.queued else _count(call, IN_PART))


def _count(call: Receipt, of_reasons: tuple[str, ...]) -> int:
    return sum(int(call.parked_reasons.get(reason, 0)) for reason in of_reasons)
