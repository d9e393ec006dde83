"""The part of an audience's log that was received in a time span: found by bisection of the numbers.

An event gets its number a moment after its ``received_at``, and web machines have different clocks, so numbers follow
``received_at`` only approximately. Four bisections, each ``SLACK`` away from an end, give four numbers: all events
between the inner two are in the span, all events outside the outer two are not, and the events between inner and outer
are checked one by one.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from django.db.models import QuerySet

from audiences.models import Event, Horizon

# How far ``received_at`` may decrease from one number to a later one, because a call waited for locks or clocks differ.
# With a larger decrease, a replay could miss events at the ends of its span.
SLACK = timedelta(minutes=5)


@dataclass(frozen=True)
class Stretch:
    """All events of the span lie from ``first`` to ``last``, both included; ``events`` is how many there are."""

    first: int
    last: int
    events: int


def events_between(audience_id: int, first: int, last: int, start: datetime, end: datetime) -> QuerySet[Event]:
    """The events with these numbers that were received from ``start`` on and before ``end``."""
    return Event.objects.filter(
        audience_id=audience_id, sequence__range=(first, last), received_at__gte=start, received_at__lt=end
    )


def find(audience_id: int, start: datetime, end: datetime, *, upto: int) -> Stretch:
    """Where the events of a span of time are, among those numbered up to ``upto`` and above the horizon."""
    pruned_to = Horizon.objects.filter(audience=audience_id).values_list("events_to", flat=True).first() or 0
    search = partial(_bisect, audience_id, pruned_to + 1, max(upto, pruned_to))
    first, sure_from = (search(start + slack) for slack in (-SLACK, SLACK))
    sure_to, beyond = (search(end + slack) for slack in (-SLACK, SLACK))
    edges = [(first, sure_from - 1), (sure_to, beyond - 1)] if sure_from < sure_to else [(first, beyond - 1)]
    at_edges = sum(events_between(audience_id, *edge, start, end).count() for edge in edges)
    # No number is missing between two that are there, so these need no counting.
    return Stretch(first, beyond - 1, at_edges + max(0, sure_to - sure_from))


def _bisect(audience_id: int, first: int, upto: int, at: datetime) -> int:
    """A number received at ``at`` or later whose predecessor was received before it. Pruned events count as before."""
    low, high = first, upto + 1
    while low < high:
        middle = (low + high) // 2
        events = Event.objects.filter(audience_id=audience_id, sequence=middle)
        received_at = events.values_list("received_at", flat=True).first()
        if received_at is not None and received_at >= at:
            high = middle
        else:
            low = middle + 1
    return low
