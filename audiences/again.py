"""What had events sent again: the ranges of the log that this service appended, each with its cause. Writes Agains.

An Event that Lytics' call brought has no range. Ranges are written with the events, in one transaction, where something
is sent again; receiving a call writes none and reads none.
"""

from collections.abc import Iterable, Mapping, Sequence

from audiences.models import Again, Audience, Run

# Ranges of an audience don't overlap, so those that a run meets are the first ones that end behind its beginning. The
# LIMIT keeps an old run from reading all later ranges; a run holds no more sent events than a request.
_OF_RUNS = """
SELECT run.id AS run_id, near.* FROM audiences_run AS run CROSS JOIN LATERAL (
    SELECT * FROM audiences_again AS later
    WHERE later.audience_id = run.audience_id AND later.last_sequence >= run.first_sequence
    ORDER BY later.last_sequence LIMIT 600
) AS near
WHERE run.id = ANY(%s) AND near.first_sequence <= run.last_sequence ORDER BY run.id, near.last_sequence
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
    for one in Again.objects.raw(_OF_RUNS, [list(found)]):
        found[one.run_id].append(one)  # type: ignore[attr-defined]
    return {run.pk: _words(run, found[run.pk]) for run in rows}


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
