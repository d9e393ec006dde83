"""One customer: each received event with its status, and the customer's memberships by the ledger.

An event stores no status. It is derived from the cursor of its lane, the run that covers its number, Parked, and the
fold, which is repeated over the events of this customer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum, auto
from itertools import dropwhile, groupby

import structlog
from django.conf import settings
from django.db.models import Count, Q

from audiences import sql
from audiences.annotations import required
from audiences.delivery.fold import EARLIEST_NS, Entry, Held, disbelieve, fold, precedence
from audiences.insight import customer_records
from audiences.insight.customer_records import Place
from audiences.models import SKIPPED, Audience, Event, FutureTime, Membership, Parked, Run
from lytics import times
from lytics.facts import Kind
from odp.outcomes import Outcome

# The number of events on one page, and the number read for it. More are read than shown, because an older event may
# have decided a shown one.
SHOWN = 100
# Attempts shown for one event. A bisection makes about a dozen attempts, a backoff of days makes many more.
ATTEMPTS = 20

log = structlog.get_logger(__name__)

_SQL = sql.beside(__file__)
_ATTEMPTS = _SQL.for_models("runs_of_events")


class End(Enum):
    WAITING = auto()
    SENDING = auto()
    # ODP accepted it; other items of its request are retried.
    TAKEN = auto()
    DELIVERED = auto()
    FOLDED = auto()
    PARKED = auto()
    # A person skipped it; its run has the name and the reason.
    SKIPPED = auto()


@dataclass(frozen=True)
class EventStatus:
    """The status of one event. Its audience and lane are fetched with it.

    ``attempts`` are runs, newest first: those that delivered the event, those that tried to, and for a folded event
    those that may have delivered it before a newer event arrived: without a complete response it is unknown which
    changes of a request ODP applied. ``decided_by`` is the event that decided in place of a folded event: the
    event itself when it changed nothing, None when the log no longer has it.
    """

    event: Event
    end: End
    attempts: tuple[Run, ...] = ()
    decided_by: Event | None = None
    parked: Parked | None = None
    holds: bool = False
    # The transition time that Lytics sent, when it was ignored because it was too far in the future.
    claimed_ns: int | None = None


@dataclass(frozen=True)
class MembershipStatus:
    """One customer in one audience: the ledger row, the number of waiting events, and the open parked item."""

    audience: Audience
    held: Membership | None
    waiting: int
    parked: Parked | None

    @property
    def is_member(self) -> bool:
        return self.held is not None and self.held.is_member


@dataclass(frozen=True)
class CustomerHistory:
    """``memberships`` has a row for each audience with any record of this customer. ``audiences`` are those audiences,
    and all of an install that ODP is asked for; ``totals`` are the numbers of audiences of the installs of these.
    """

    identifier: str
    audiences: Mapping[int, Audience]
    totals: Mapping[int, int]
    memberships: Sequence[MembershipStatus]
    statuses: Sequence[EventStatus]
    older: Place | None


def customer_history(
    identifier: str, *, install_id: int | None = None, ask: int | None = None, before: Place | None = None
) -> CustomerHistory:
    """Every record of a customer, in one install or in all. The number of queries doesn't depend on the customer.

    ``ask`` is an install of which all audiences are needed, because ODP is asked for them.
    """
    audiences = _audiences_of_install(install_id) if install_id else _audiences(identifier, ask, before)
    among = audiences if install_id else None
    events = [event for event in customer_records.events(identifier, before, among) if event.audience_id in audiences]
    newer = [] if before is None else customer_records.newer_events(identifier, before)
    known = [*(event for event in newer if event.audience_id in audiences), *events]
    for event in known:
        event.audience = audiences[event.audience_id]
    parked = _parked(identifier, audiences)
    ledger = _ledger(identifier, audiences)
    statuses = _statuses(known, parked, ledger)
    shown = [statuses[event.audience_id, event.sequence] for event in events[:SHOWN]]
    last = events[SHOWN - 1] if len(events) > SHOWN else None
    return CustomerHistory(
        identifier=identifier,
        audiences=audiences,
        totals=_totals(audiences.values()),
        memberships=_membership_statuses(audiences, ledger, statuses.values(), parked),
        statuses=shown,
        older=Place(last.received_at, last.audience_id, last.sequence) if last else None,
    )


def of_event(audience_id: int, sequence: int) -> str | None:
    """The identifier of an event. URLs contain the event's number, so that they don't expose the person."""
    return Event.objects.filter(pk=(audience_id, sequence)).values_list("identifier", flat=True).first()


# --- Queries -------------------------------------------------------------------------------------------------


def _audiences_of_install(install_id: int) -> dict[int, Audience]:
    return _rows(Q(install=install_id))


def _audiences(identifier: str, ask: int | None, before: Place | None) -> dict[int, Audience]:
    """The audiences with a record of the customer, and those of the install ``ask``.

    An installation has many thousands of audiences, and a customer is in a few, so the events are read for their
    audiences first. The audiences are read before the events that are shown, so that a cursor that moves meanwhile only
    shows an event as *waiting* for too long.
    """
    return _rows(Q(pk__in=customer_records.audiences_with(identifier, before)) | Q(install=ask))


def _rows(wanted: Q) -> dict[int, Audience]:
    rows = Audience.objects.select_related("install", "lane").order_by("install__name", "install_id", "odp_id")
    return {row.pk: row for row in rows.filter(wanted)}


def _totals(audiences: Iterable[Audience]) -> dict[int, int]:
    """The number of all audiences by install, for the installs of these."""
    installs = {audience.install_id for audience in audiences}
    counted = Audience.objects.filter(install__in=installs).order_by().values_list("install").annotate(Count("pk"))
    return dict(counted)


def _ledger(identifier: str, audiences: Iterable[int]) -> dict[int, Membership]:
    rows = Membership.objects.filter(audience_id__in=list(audiences), identifier=identifier)
    return {row.audience_id: row for row in rows}


def _parked(identifier: str, audiences: Mapping[int, Audience]) -> dict[int, list[Parked]]:
    """Changes of this customer that ODP rejected, by audience, oldest first."""
    found: dict[int, list[Parked]] = {}
    for row in Parked.objects.filter(identifier=identifier, sequence__isnull=False).order_by("pk"):
        if row.audience_id is not None and row.audience_id in audiences:
            found.setdefault(row.audience_id, []).append(row)
    return found


def _attempts(events: Sequence[Event]) -> dict[tuple[int, int], list[Run]]:
    """The runs with the nearest start at or below each event that cover it, newest first, by audience and number."""
    found: dict[tuple[int, int], list[Run]] = {}
    audiences, sequences = [event.audience_id for event in events], [event.sequence for event in events]
    for run in Run.objects.raw(_ATTEMPTS.text, {"audiences": audiences, "sequences": sequences, "attempts": ATTEMPTS}):
        found.setdefault((run.audience_id, required(run, "covers", int)), []).append(run)
    return {place: sorted(runs, key=lambda run: -run.pk) for place, runs in found.items()}


# --- Status of each event ------------------------------------------------------------------------------------


def _statuses(
    events: Sequence[Event], parked: Mapping[int, list[Parked]], ledger: Mapping[int, Membership]
) -> dict[tuple[int, int], EventStatus]:
    attempts = _attempts(events)
    statuses: dict[tuple[int, int], EventStatus] = {}
    in_order = sorted(events, key=lambda event: (event.audience_id, event.sequence))
    for audience_id, of_audience in groupby(in_order, key=lambda event: event.audience_id):
        mine = list(of_audience)
        runs = {event.sequence: attempts.get((audience_id, event.sequence), []) for event in mine}
        rejected = parked.get(audience_id, [])
        cursor = mine[0].audience.lane.delivered_sequence
        held = ledger.get(audience_id)
        passed = [event for event in mine if event.sequence <= cursor]
        skipped = [event for event in passed if any(run.outcome == SKIPPED for run in runs[event.sequence])]
        settled = [event for event in passed if event not in skipped]
        for status in (
            *(EventStatus(event, End.SKIPPED, tuple(runs[event.sequence])) for event in skipped),
            *_settled(settled, runs, rejected),
            *(_waiting(event, runs[event.sequence], rejected, held) for event in mine if event.sequence > cursor),
        ):
            statuses[audience_id, status.event.sequence] = status
    claimed = _claimed(events)
    return {
        place: replace(
            status,
            holds=(held := ledger.get(place[0])) is not None and held.sequence == place[1],
            claimed_ns=claimed.get(place),
        )
        for place, status in statuses.items()
    }


def _claimed(events: Sequence[Event]) -> dict[tuple[int, int], int]:
    """Transition times that were sent and not believed, by audience and number."""
    rows = FutureTime.objects.filter(
        audience_id__in={event.audience_id for event in events}, sequence__in={event.sequence for event in events}
    )
    return {(row.audience_id, row.sequence): row.claimed_ns for row in rows}


def _waiting(event: Event, runs: Sequence[Run], rejected: Iterable[Parked], held: Membership | None) -> EventStatus:
    """An event beyond the cursor. What ODP accepted or rejected before a request ended early is known already."""
    row = next((row for row in rejected if row.sequence == event.sequence), None)
    if row is not None:
        return EventStatus(event, End.PARKED, tuple(runs), parked=row)
    if any(run.closed_at is None for run in runs):
        return EventStatus(event, End.SENDING, tuple(runs))
    taken = held is not None and held.sequence == event.sequence
    return EventStatus(event, End.TAKEN if taken else End.WAITING, tuple(runs))


def _settled(events: Sequence[Event], runs: Mapping[int, list[Run]], parked: Sequence[Parked]) -> list[EventStatus]:
    """Events that the cursor has passed: folded again, run by run, as ``drain.deliver`` did it."""
    decided_by = _decided_by(events, runs, {row.sequence for row in parked})
    sent = [event for event in events if event.sequence not in decided_by]
    rejected = _rejected(sent, runs, parked)
    statuses = []
    for event in events:
        tried = runs[event.sequence]
        took = tuple(run for run in tried if run.outcome == Outcome.DELIVERED and run.sent)
        if event.sequence in rejected:
            statuses.append(EventStatus(event, End.PARKED, tuple(tried), parked=rejected[event.sequence]))
        elif event.sequence in decided_by:
            statuses.append(EventStatus(event, End.FOLDED, _cut_short(tried), decided_by[event.sequence]))
        elif tried and not took and not tried[0].sent:
            # Its run sent nothing, so the event that decided is no longer in the log.
            statuses.append(EventStatus(event, End.FOLDED))
        else:
            statuses.append(EventStatus(event, End.DELIVERED, took))
    return statuses


def _cut_short(tried: Sequence[Run]) -> tuple[Run, ...]:
    """Delivered runs before an attempt that ended early. The last run of such an attempt has no response of ODP."""
    before = dropwhile(lambda run: run.outcome in (Outcome.DELIVERED, Outcome.REJECTED), tried)
    return tuple(run for run in before if run.outcome == Outcome.DELIVERED and run.sent)


def _decided_by(events: Sequence[Event], runs: Mapping[int, list[Run]], rejected: set[int | None]) -> dict[int, Event]:
    """For each event that wasn't sent, the event that decided instead; itself when it changed nothing."""
    found: dict[int, Event] = {}
    holder: Event | None = None
    # What the ledger held at each point; its time is not always the holder's own (see fold).
    ledger: dict[str, Held] = {}
    ahead = {event.sequence for event in events if _is_ahead(event)}
    for _, group in groupby(events, key=lambda event: _span(event, runs[event.sequence])):
        by_number = {event.sequence: event for event in group}
        entries = disbelieve([_entry(event) for event in by_number.values()], ahead, ledger)
        folded = fold(entries, ledger)
        for entry in (*folded.send, *folded.unchanged):
            holder = by_number[entry.sequence]
            is_member = entry.kind != Kind.EXIT
            as_of = EARLIEST_NS if entry.sequence in ahead else entry.occurred_ns
            ledger = {entry.identifier: Held(is_member, as_of, rejected=entry.sequence in rejected)}
        decider = holder or next(iter(by_number.values()))
        sent = {entry.sequence for entry in folded.send}
        found |= {number: decider for number in by_number if number not in sent}
    return found


def _is_ahead(event: Event) -> bool:
    """Whether an older version stored it with a future time, which is no longer believed."""
    return event.occurred_ns > times.from_moment(event.received_at) + settings.CLOCK_TOLERANCE_SECONDS * times.SECOND


def _entry(event: Event) -> Entry:
    return Entry(event.sequence, event.identifier, event.kind, event.occurred_ns, event.forced)


def _span(event: Event, runs: Sequence[Run]) -> tuple[int, int]:
    """The range of numbers that were folded together; only its own number for an event whose run was deleted."""
    return (runs[0].first_sequence, runs[0].last_sequence) if runs else (event.sequence, event.sequence)


def _rejected(sent: Sequence[Event], runs: Mapping[int, list[Run]], parked: Iterable[Parked]) -> dict[int, Parked]:
    """The rejected events among those that were sent.

    A newer rejection reuses the open row and sets its number. The row's age then shows which event it was created for:
    the last event whose first attempt is older than the row.
    """
    found: dict[int, Parked] = {}
    for row in parked:
        upto = [event for event in sent if event.sequence <= (row.sequence or 0)]
        tried_at = [_first_tried_at(runs[event.sequence]) for event in upto]
        before = [place for place, at in enumerate(tried_at) if at is not None and at <= row.parked_at]
        for event in upto[before[-1] if before else -1 :]:
            found[event.sequence] = row
    return found


def _first_tried_at(runs: Sequence[Run]) -> datetime | None:
    return runs[-1].opened_at if runs else None


def is_repeat(event: Event, of: Event) -> bool:
    """Whether both say the same, at the same time."""
    return precedence(_entry(event)) == precedence(_entry(of))


def _membership_statuses(
    audiences: Mapping[int, Audience],
    ledger: Mapping[int, Membership],
    statuses: Iterable[EventStatus],
    parked: Mapping[int, list[Parked]],
) -> list[MembershipStatus]:
    seen: dict[int, int] = {}
    for status in statuses:
        waits = status.end in (End.WAITING, End.SENDING)
        seen[status.event.audience_id] = seen.get(status.event.audience_id, 0) + waits
    return [
        MembershipStatus(
            audience,
            ledger.get(pk),
            seen.get(pk, 0),
            next((row for row in parked.get(pk, []) if row.closed_at is None), None),
        )
        for pk, audience in audiences.items()
        if pk in seen or pk in ledger
    ]
