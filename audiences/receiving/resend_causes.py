"""Why events were sent again: the ranges of the log that this service appended, with causes. Writes Agains.

An Event that Lytics' call brought has no range. Ranges are written with the events, in one transaction, where something
is sent again; receiving a call writes none and reads none.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from django.db.models import QuerySet

from audiences import sql
from audiences.annotations import required
from audiences.models import Again, Audience, Delivery, Event, Run

# A delivery holds up to as many runs as items; the first ones say enough about it.
RUNS_OF_A_DELIVERY = 20
# Runs of the newest ranges of a cause. Each range finds its runs by the index of runs by first event; a run may begin
# before the range.
NEWEST_RANGES = 1_000
NEWEST_RUNS = 5_000


class Found(NamedTuple):
    id: int


_SQL = sql.beside(__file__)
_OF_RUNS = _SQL.for_models("ranges_of_runs")
_RUNS_OF_DELIVERIES = _SQL.for_models("runs_of_deliveries")
_OF_EVENTS = _SQL.for_models("ranges_of_events")
_RUN_HAS_CAUSE = _SQL.for_models("run_has_cause")
_DELIVERY_HAS_CAUSE = _SQL.for_models("delivery_has_cause")
_RUNS_OF_A_CAUSE = _SQL.query("runs_of_cause", Found._make)


def note(appended: Mapping[int, Sequence[tuple[int, int | None]]], cause: str, *, resend_id: int | None = None) -> None:
    """Store the cause of the newest events of these audiences.

    ``appended`` has for each audience the ranges in the order of the log: the number of events, and the Delivery that
    was the reason for them. The caller has held the locks of the audiences since it appended the events, so the log
    ends with them.
    """
    last = dict(Audience.objects.filter(pk__in=appended).values_list("pk", "last_sequence"))
    ranges = []
    for audience_id, parts in appended.items():
        first = last[audience_id] - sum(events for events, _ in parts) + 1
        for events, delivery_id in parts:
            if events:
                ranges.append(
                    Again(
                        audience_id=audience_id,
                        first_sequence=first,
                        last_sequence=first + events - 1,
                        cause=cause,
                        resend_id=resend_id,
                        delivery_id=delivery_id,
                    )
                )
            first += events
    Again.objects.bulk_create(ranges)


def causes(runs: Iterable[Run]) -> dict[int, str]:
    """By the id of each run: what caused it, in words. One look-up for all of them."""
    rows = list(runs)
    found: dict[int, list[Again]] = {run.pk: [] for run in rows}
    if not rows:
        return {}
    for one in Again.objects.raw(_OF_RUNS.text, {"runs": list(found)}):
        found[required(one, "run_id", int)].append(one)
    return {run.pk: _words(run, found[run.pk]) for run in rows}


def causes_of_deliveries(ids: Iterable[int]) -> dict[int, str]:
    """By the id of each delivery: what caused it, in words. Two look-ups for all of them."""
    causes_by_id: dict[int, dict[str, None]] = {pk: {} for pk in ids}
    if not causes_by_id:
        return {}
    runs = list(
        Run.objects.raw(_RUNS_OF_DELIVERIES.text, {"deliveries": list(causes_by_id), "runs": RUNS_OF_A_DELIVERY})
    )
    words_of = causes(runs)
    for run in runs:
        if run.delivery_id is not None:
            causes_by_id[run.delivery_id].update(dict.fromkeys(words_of[run.pk].split(", ")))
    return {pk: ", ".join(found) for pk, found in causes_by_id.items()}


def causes_of_events(events: Iterable[Event]) -> dict[tuple[int, int], str]:
    """Why this service appended an event itself, by audience and number. One query for all events."""
    rows = list(events)
    if not rows:
        return {}
    audiences, sequences = [event.audience_id for event in rows], [event.sequence for event in rows]
    found = Again.objects.raw(_OF_EVENTS.text, {"audiences": audiences, "sequences": sequences})
    return {(required(one, "of_audience", int), required(one, "of_sequence", int)): words(one) for one in found}


def has_more_than_its_newest_runs(cause: str) -> bool:
    """Whether ``runs_because_of`` may leave out runs of that cause."""
    ranges = Again.objects.filter(cause=cause).order_by("-id")[: NEWEST_RANGES + 1].count()
    return ranges > NEWEST_RANGES or len(runs_because_of(cause)) >= NEWEST_RUNS


def all_runs_because_of(runs: QuerySet[Run], cause: str) -> QuerySet[Run]:
    """Those of the given runs that have events of that cause. It may read all runs of the audiences with that cause."""
    audiences = Again.objects.filter(cause=cause).values("audience")
    has_cause = _RUN_HAS_CAUSE.condition({"run": "audiences_run.id"}, cause=cause)
    return runs.filter(has_cause, audience__in=audiences)


def all_deliveries_because_of(deliveries: QuerySet[Delivery], cause: str) -> QuerySet[Delivery]:
    """Those of the given deliveries that have events of that cause. It may read all deliveries of the installs."""
    installs = Again.objects.filter(cause=cause).values("audience__install")
    has_cause = _DELIVERY_HAS_CAUSE.condition({"delivery": "audiences_delivery.id"}, cause=cause)
    return deliveries.filter(has_cause, install__in=installs)


def runs_because_of(cause: str) -> list[int]:
    """The newest runs with events of that cause: those of its newest ranges."""
    runs = _RUNS_OF_A_CAUSE.run(cause=cause, ranges=NEWEST_RANGES, runs=NEWEST_RUNS).all()
    return [run.id for run in runs]


def _words(run: Run, ranges: Sequence[Again]) -> str:
    covered = sum(
        min(one.last_sequence, run.last_sequence) - max(one.first_sequence, run.first_sequence) + 1 for one in ranges
    )
    causes_by_id = [] if covered >= run.last_sequence - run.first_sequence + 1 else ["Lytics"]
    return ", ".join([*causes_by_id, *dict.fromkeys(map(words, ranges))])


def words(one: Again) -> str:
    if one.delivery_id is not None:
        return f"sent again after delivery {one.delivery_id:,}"
    number = f" {one.resend_id:,}" if one.resend_id is not None else ""
    return f"{one.get_cause_display()}{number}"
