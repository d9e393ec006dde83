"""The curves of a soak, and the rule that judges them.

A curve is flat when its growth over the judged part is small. The growth is the slope of the Theil–Sen line (the median
of the slopes between all pairs of points) times the duration of that part. Single outliers, such as the seconds of a
restart, don't move it.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from tests.soak.samples import LOG, OLD_PARTS, Sample

# The judged part begins after this share of the run: the second half hour of two hours. Memory isn't judged for as long
# after each restart either, because new processes and sessions fill their caches first.
WARM_SHARE = 0.25
# The growth over the judged part that is allowed, as a share of the curve's mean there.
GROWTH_ALLOWED = 0.1
MIB = 2**20

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points are minutes and values. Growth below ``floor``, in the curve's unit, counts as flat.

    ``restarts`` are the minutes of the restarts after which the curve isn't judged for a while.
    """

    picture: str
    name: str
    unit: str
    points: Points
    floor: float
    is_judged: bool = True
    restarts: Sequence[float] = ()


@dataclass(frozen=True)
class Verdict:
    """The mean and the growth over the judged part; ``growth`` is None with fewer than three points."""

    curve: Curve
    mean: float
    growth: float | None

    @property
    def is_flat(self) -> bool:
        if not self.curve.is_judged:
            return True
        return self.growth is not None and self.growth <= max(GROWTH_ALLOWED * self.mean, self.curve.floor)


def judge(curve: Curve, *, minutes: float) -> Verdict:
    warm = minutes * WARM_SHARE
    points = [
        (minute, value)
        for minute, value in curve.points
        if warm <= minute <= minutes and not any(restart <= minute < restart + warm for restart in curve.restarts)
    ]
    if len(points) < 3:
        return Verdict(curve, 0.0, None)
    slope = statistics.median(
        (after[1] - before[1]) / (after[0] - before[0]) for before, after in combinations(points, 2)
    )
    return Verdict(curve, statistics.fmean(value for _, value in points), slope * (points[-1][0] - points[0][0]))


def curves(samples: Sequence[Sample], *, restarts: Sequence[float]) -> Iterator[Curve]:
    last = samples[-1]
    for kind in last.memory:
        points = [(one.seconds / 60, one.memory[kind]) for one in samples if kind in one.memory]
        yield Curve(picture="memory", name=kind, unit="MiB", points=points, floor=8, restarts=restarts)
    yield Curve(
        picture="connections",
        name="connections to PostgreSQL",
        unit="",
        points=[(one.seconds / 60, one.connections) for one in samples],
        floor=3,
    )
    yield from _tables(samples)
    yield Curve(
        picture="wal",
        name="write-ahead log per event",
        unit="bytes",
        points=_between(samples, [one.wal_bytes for one in samples], per_event=True),
        floor=50,
    )
    for name, delays in (("p50", [one.p50 for one in samples]), ("p99", [one.p99 for one in samples])):
        found = zip(samples, delays, strict=True)
        points = [(one.seconds / 60, 1000 * delay) for one, delay in found if delay is not None]
        yield Curve(picture="delay", name=f"delay, {name}", unit="ms", points=points, floor=100)
    for kind in last.logs:
        written = _between(samples, [one.logs.get(kind, 0) for one in samples], per_event=False)
        yield Curve(picture="logs", name=f"log of {kind}", unit="bytes/s", points=written, floor=100)
    rate = _between(samples, [one.events for one in samples], per_event=False)
    yield Curve(picture="rate", name="events stored", unit="per second", points=rate, floor=0, is_judged=False)


def _tables(samples: Sequence[Sample]) -> Iterator[Curve]:
    """The tables of the log by bytes per event that was sent, the others by their size."""
    sent = [(one, events) for one in samples if (events := one.events - samples[0].events) > 0]
    for what, index in (("tables", False), ("indexes", True)):
        sizes = [(one.seconds / 60, _size(one, of_log=False, index=index) / MIB) for one in samples]
        yield Curve(picture="sizes", name=f"{what}, without the log", unit="MiB", points=sizes, floor=4)
        each = [(one.seconds / 60, _size(one, of_log=True, index=index) / events) for one, events in sent]
        yield Curve(picture="log", name=f"{what} of the log per event", unit="bytes", points=each, floor=10)
    # It falls with each old part that is dropped, and grows with the number of events.
    whole = [
        (one.seconds / 60, sum(t.table_bytes + t.index_bytes for name, t in one.tables.items() if _is_log(name)) / MIB)
        for one in samples
    ]
    yield Curve(picture="log-size", name="the whole log", unit="MiB", points=whole, floor=0, is_judged=False)
    yield Curve(
        picture="dead",
        name="dead rows",
        unit="rows",
        points=[(one.seconds / 60, sum(table.dead_rows for table in one.tables.values())) for one in samples],
        # The height of a saw tooth: Runs are vacuumed when this many are dead.
        floor=50_000,
    )


def _size(one: Sample, *, of_log: bool, index: bool) -> int:
    """Without the old parts, whose events have fewer indexes, and which are dropped in the judged part."""
    tables = [table for name, table in one.tables.items() if (name in LOG if of_log else not _is_log(name))]
    return sum(table.index_bytes if index else table.table_bytes for table in tables)


def _is_log(name: str) -> bool:
    return name in (*LOG, OLD_PARTS)


def _between(samples: Sequence[Sample], counts: Sequence[float], *, per_event: bool) -> Points:
    """The growth of a count between two samples, per stored event or per second."""
    found = []
    for (before, less), (after, more) in pairwise(zip(samples, counts, strict=True)):
        by = after.events - before.events if per_event else after.seconds - before.seconds
        if by > 0:
            found.append((after.seconds / 60, max(0.0, more - less) / by))
    return found
