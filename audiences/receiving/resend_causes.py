"""What had events sent again: the ranges of the log that this service appended, each with its cause. Writes Agains.

An Event that Lytics' call brought has no range. Ranges are written with the events, in one transaction, where something
is sent again; receiving a call writes none and reads none.
"""

from collections.abc import Iterable, Mapping, Sequence

from django.db import connection

from audiences.annotations import required
from audiences.models import Again, Audience, Event, Run

# Ranges of an audience don't overlap, so those that overlap a run are the first ones that end after its start. The
# LIMIT keeps an old run from reading all later ranges; a run holds no more sent events than a request.
_OF_RUNS = """
SELECT run.id AS run_id, near.* FROM audiences_run AS run CROSS JOIN LATERAL (
    SELECT * FROM audiences_again AS later
    WHERE later.audience_id = run.audience_id AND later.last_sequence >= run.first_sequence
    ORDER BY later.last_sequence LIMIT 600
) AS near
WHERE run.id = ANY(%s) AND near.first_sequence <= run.last_sequence ORDER BY run.id, near.last_sequence
"""


# A delivery holds up to as many runs as items; the first ones say enough about it.
RUNS_OF_A_DELIVERY = 20
_RUNS_OF_DELIVERIES = """
SELECT near.* FROM unnest(%s::bigint[]) AS wanted(id) CROSS JOIN LATERAL (
    SELECT * FROM audiences_run WHERE delivery_id = wanted.id ORDER BY id LIMIT %s
) AS near
"""
_OF_EVENTS = """
SELECT wanted.audience_id AS of_audience, wanted.sequence AS of_sequence, near.*
FROM unnest(%s::int[], %s::bigint[]) AS wanted(audience_id, sequence) CROSS JOIN LATERAL (
    SELECT * FROM audiences_again AS later
    WHERE later.audience_id = wanted.audience_id AND later.last_sequence >= wanted.sequence
    ORDER BY later.last_sequence LIMIT 1
) AS near WHERE near.first_sequence <= wanted.sequence
"""
# Runs of the newest ranges of a cause. Each range finds its runs by the index of runs by first event; a run may begin
# before the range.
NEWEST_RANGES = 1_000
NEWEST_RUNS = 5_000
_RUNS_OF_A_CAUSE = """
SELECT DISTINCT run.id FROM (
    SELECT * FROM audiences_again WHERE cause = %(cause)s ORDER BY id DESC LIMIT %(ranges)s
) AS newest CROSS JOIN LATERAL (
    (SELECT id FROM audiences_run AS inside WHERE inside.audience_id = newest.audience_id
        AND inside.first_sequence BETWEEN newest.first_sequence AND newest.last_sequence
        ORDER BY inside.first_sequence LIMIT %(runs)s)
    UNION ALL
    (SELECT id FROM (
        SELECT id, last_sequence FROM audiences_run AS before WHERE before.audience_id = newest.audience_id
            AND before.first_sequence < newest.first_sequence
        ORDER BY before.first_sequence DESC, before.id DESC LIMIT 5
    ) AS near WHERE near.last_sequence >= newest.first_sequence)
) AS run ORDER BY run.id DESC LIMIT %(runs)s
"""


def note(appended: Mapping[int, Sequence[tuple[int, int | None]]], cause: str, *, resend_id: int | None = None) -> None:
    """Keep why the newest events of these audiences were appended.

    Per audience, in the order of the log: how many, and the delivery that had them sent again. The caller holds the
    locks of the audiences since it appended them, so the log ends with them.
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
    for one in Again.objects.raw(_OF_RUNS, [list(found)]):
        found[required(one, "run_id", int)].append(one)
    return {run.pk: _words(run, found[run.pk]) for run in rows}


def causes_of_deliveries(ids: Iterable[int]) -> dict[int, str]:
    """By the id of each delivery: what caused it, in words. Two look-ups for all of them."""
    told: dict[int, dict[str, None]] = {pk: {} for pk in ids}
    runs = list(Run.objects.raw(_RUNS_OF_DELIVERIES, [list(told), RUNS_OF_A_DELIVERY])) if told else []
    words_of = causes(runs)
    for run in runs:
        if run.delivery_id is not None:
            told[run.delivery_id].update(dict.fromkeys(words_of[run.pk].split(", ")))
    return {pk: ", ".join(found) for pk, found in told.items()}


def causes_of_events(events: Iterable[Event]) -> dict[tuple[int, int], str]:
    """Why this service appended an event itself, by audience and number. One query for all events."""
    wanted = [(event.audience_id, event.sequence) for event in events]
    if not wanted:
        return {}
    found = Again.objects.raw(_OF_EVENTS, [list(column) for column in zip(*wanted, strict=True)])
    return {(required(one, "of_audience", int), required(one, "of_sequence", int)): words(one) for one in found}


def runs_because_of(cause: str) -> list[int]:
    """The newest runs with events of that cause."""
    with connection.cursor() as cursor:
        cursor.execute(_RUNS_OF_A_CAUSE, {"cause": cause, "ranges": NEWEST_RANGES, "runs": NEWEST_RUNS})
        return [pk for (pk,) in cursor.fetchall()]


def _words(run: Run, ranges: Sequence[Again]) -> str:
    covered = sum(
        min(one.last_sequence, run.last_sequence) - max(one.first_sequence, run.first_sequence) + 1 for one in ranges
    )
    told = [] if covered >= run.last_sequence - run.first_sequence + 1 else ["Lytics"]
    return ", ".join([*told, *dict.fromkeys(map(words, ranges))])


def words(one: Again) -> str:
    if one.delivery_id is not None:
        return f"sent again after delivery {one.delivery_id:,}"
    number = f" {one.resend_id:,}" if one.resend_id is not None else ""
    return f"{one.get_cause_display()}{number}"
