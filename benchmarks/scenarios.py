"""The scenarios. Each function measures one round; ``measure`` repeats and interleaves them.

Sizes are those of a full run, multiplied by the scale. Customers are new in every call, unless noted otherwise.
"""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from benchmarks import usage
from benchmarks.baseline.server import Baseline
from benchmarks.house import House, Install
from benchmarks.load import Load, Report
from benchmarks.results import Against, Line, Results
from local.processes import AskedToStop, StackError

LIMIT = "limit: one bare statement a call"
# ODP's documented limits.
REQUESTS_PER_SECOND, ITEMS = 10, 500
LANES, QUEUED = 200, 1_000_000
# Events per second of in and out at once, and the factor by which more are sent: the measured time goes from the first
# call to the last settle, which is longer than the sending.
BOTH, AND_MORE = 24_000, 1.02
# Duration of the smallest run of a scenario, mostly for starting processes.
LEAST_SECONDS = 10


class Needs(Enum):
    """Processes that run during a scenario. Consecutive scenarios with the same needs share them."""

    NOTHING = "servers alone"
    WEB = "web"
    STACK = "web, workers and beat"


@dataclass
class Bench:
    house: House
    results: Results
    scale: float
    rounds: int
    number: int = 0
    title: str = ""

    def size(self, full: int, least: int) -> int:
        return max(least, int(full * self.scale))

    def record(self, name: str, value: float) -> None:
        self.results.record(name, value)

    def note(self, words: str) -> None:
        self.results.note(self.title, words)

    def in_turn(self, *contenders: Callable[[], None]) -> None:
        """Run the contenders, every second round in reverse: machines warm up and tables grow."""
        for contender in contenders if self.number % 2 == 0 else reversed(contenders):
            contender()


@dataclass(frozen=True)
class Scenario:
    run: Callable[[Bench], None]
    needs: Needs
    lines: tuple[Line, ...]
    seconds: float
    quick: bool
    once: bool

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def title(self) -> str:
        return self.lines[0].scenario


SCENARIOS: list[Scenario] = []


def scenario(
    title: str, needs: Needs, *lines: Line, seconds: float, quick: bool = False, once: bool = False
) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Register a scenario. ``seconds`` is the approximate duration of a round at scale 1.

    ``once``: the scenario repeats its measurements itself. ``quick``: ``make bench-quick`` includes it.
    """

    def add(run: Callable[[Bench], None]) -> Callable[[Bench], None]:
        titled = tuple(Line(**{**vars(line), "scenario": title}) for line in lines)
        SCENARIOS.append(Scenario(run, needs, titled, seconds, quick, once))
        return run

    return add


def line(name: str, unit: str, *against: Against, better: str, bar: float | None = None, scenario: str = "") -> Line:
    return Line(name=name, scenario=scenario, unit=unit, more=better == "more", against=against, bar=bar)


def rate(report: Report, load: Load) -> float:
    return load.calls * load.batch / (report.ended - report.began)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _warm(bench: Bench, *, audiences: int) -> Install:
    """The state after some minutes of work: connections, prepared statements, caches, and rows for the statistics."""
    install = bench.house.fresh(audiences=audiences)
    bench.house.send(install, Load(calls=40, audiences=audiences))
    if bench.house.has_workers():
        bench.house.settled()
    bench.house.analyze()
    bench.house.sql("CHECKPOINT")
    bench.house.double.forget()
    return install


# --- In ------------------------------------------------------------------------------------------------------


@scenario(
    "durable ingest, saturating: 20 callers × 300 events, 10 audiences a call",
    Needs.WEB,
    line("the sender against a null server", "events/s", better="more"),
    line(LIMIT, "events/s", better="more"),
    line("baseline, storing alone", "events/s", better="more"),
    line(
        "ingest",
        "events/s",
        Against(LIMIT, 0.5),
        Against("baseline, storing alone", 4),
        # With a higher ratio the sender would be the bottleneck that is measured.
        Against("the sender against a null server", 0.5, more=False),
        better="more",
    ),
    line("WAL of an event coming in", "bytes", better="less"),
    line("acknowledged when saturated, p50", "ms", better="less"),
    line("acknowledged when saturated, p99", "ms", better="less"),
    seconds=35,
    quick=True,
)
def ingest(bench: Bench) -> None:
    load = Load(calls=bench.size(1_500, 40))

    def sender() -> None:
        bench.record("the sender against a null server", rate(bench.house.send_to(bench.house.null.url, load), load))

    def limit() -> None:
        install = bench.house.fresh(audiences=load.audiences)
        bench.house.store_bare(install, Load(calls=40))
        bench.house.sql("CHECKPOINT")
        bench.record(LIMIT, rate(bench.house.store_bare(install, load), load))

    def ours() -> None:
        install = _warm(bench, audiences=load.audiences)
        before = bench.house.wal_bytes()
        report = bench.house.send(install, load)
        bench.record("ingest", rate(report, load))
        bench.record("WAL of an event coming in", (bench.house.wal_bytes() - before) / load.calls / load.batch)
        acks = [seconds * 1000 for _, _, seconds in report.acks]
        bench.record("acknowledged when saturated, p50", statistics.median(acks))
        bench.record("acknowledged when saturated, p99", percentile(acks, 0.99))

    bench.in_turn(sender, limit, ours, lambda: _baseline_in(bench))


def _baseline_in(bench: Bench) -> None:
    baseline, load = Baseline(bench.house), Load(calls=bench.size(200, 20))
    baseline.create_database()
    with baseline.web():
        bench.house.send_to(baseline.webhook, Load(calls=20, batch=10))
        bench.record("baseline, storing alone", rate(bench.house.send_to(baseline.webhook, load), load))


@scenario(
    "acknowledgement, paced",
    Needs.WEB,
    line("acknowledged at 30,000/s, p50", "ms", better="less"),
    line("acknowledged at 30,000/s, p99", "ms", better="less"),
    seconds=35,
)
def acknowledged(bench: Bench) -> None:
    install = _warm(bench, audiences=60)
    _acks(bench, "acknowledged at 30,000/s", bench.house.send(install, Load(calls=bench.size(3_000, 60), rate=30_000)))


@scenario(
    "acknowledgement, from the first call after /health/ready is green",
    Needs.NOTHING,
    line("acknowledged at 2,000/s from cold, p50", "ms", better="less"),
    line("acknowledged at 2,000/s from cold, p99", "ms", better="less"),
    seconds=35,
)
def acknowledged_cold(bench: Bench) -> None:
    install = bench.house.fresh(audiences=60)
    with bench.house.bridge(workers=False):
        report = bench.house.send(install, Load(calls=bench.size(200, 20), rate=2_000))
    _acks(bench, "acknowledged at 2,000/s from cold", report)


def _acks(bench: Bench, name: str, report: Report) -> None:
    acks = [seconds * 1000 for _, _, seconds in report.acks]
    bench.record(f"{name}, p50", statistics.median(acks))
    bench.record(f"{name}, p99", percentile(acks, 0.99))


# --- Out -----------------------------------------------------------------------------------------------------


@scenario(
    f"draining {QUEUED:,} queued events of {LANES} audiences, pace off, ledger kept, ODP answers after 50 ms",
    Needs.STACK,
    line(
        "drain",
        "events/s",
        Against("drain with order off", 0.95),
        Against(LIMIT, 0.25),
        better="more",
    ),
    line("WAL of an event going out", "bytes", better="less"),
    seconds=55,
    quick=True,
)
def drain(bench: Bench) -> None:
    bench.record("drain", _drained(bench, bench.size(QUEUED, 4_000), wal="WAL of an event going out"))


@scenario(
    "the same, without order",
    Needs.NOTHING,
    line("drain with order off", "events/s", better="more"),
    seconds=55,
    quick=True,
)
def drain_without_order(bench: Bench) -> None:
    bench.house.clear()
    with bench.house.bridge(web=False, order=False):
        bench.record("drain with order off", _drained(bench, bench.size(QUEUED, 4_000)))


def _drained(bench: Bench, events: int, *, audiences: int = LANES, wal: str = "") -> float:
    install = bench.house.fresh(audiences=audiences)
    # Not `_warm`: without a web process it couldn't send.
    warm = bench.house.fill(install, max(audiences, events // 10))
    bench.house.drained(warm)
    bench.house.settled()
    bench.house.hold(install, go=False)
    count = bench.house.fill(install, events)
    bench.house.double.forget()
    before = bench.house.wal_bytes()
    bench.house.hold(install, go=True)
    speed = bench.house.drained(count)
    bench.house.settled()
    if wal:
        bench.record(wal, (bench.house.wal_bytes() - before) / count)
    return speed


@scenario(
    "one hot audience alone, in strict order, pace off",
    Needs.STACK,
    line("drain of one audience", "events/s", better="more"),
    seconds=15,
)
def hot(bench: Bench) -> None:
    bench.record("drain of one audience", _drained(bench, bench.size(60_000, 1_500), audiences=1))


@scenario(
    "under ODP's pace, with a backlog",
    Needs.STACK,
    line("share of 10 × 500 items a second", "of 1", better="more", bar=0.94),
    line("most requests in any second, as ODP saw them", "requests", better="less", bar=REQUESTS_PER_SECOND),
    seconds=45,
)
def paced(bench: Bench) -> None:
    install = _warm(bench, audiences=LANES)
    seconds = max(3.0, 40 * bench.scale)
    bench.house.hold(install, go=False)
    bench.house.pace(install, REQUESTS_PER_SECOND)
    bench.house.fill(install, int((seconds + 4) * REQUESTS_PER_SECOND * ITEMS))
    bench.house.hold(install, go=True)
    bench.house.wait(lambda: bench.house.double.seen()["requests"] > 0, seconds=30)
    bench.house.rest(1)
    before, began = bench.house.double.seen()["items"], time.monotonic()
    bench.house.rest(seconds)
    seen, took = bench.house.double.seen(), time.monotonic() - began
    bench.record("share of 10 × 500 items a second", (seen["items"] - before) / took / REQUESTS_PER_SECOND / ITEMS)
    bench.record("most requests in any second, as ODP saw them", seen["most_in_a_second"])
    bench.house.hold(install, go=False)


# --- Both ----------------------------------------------------------------------------------------------------


@scenario(
    f"in and out at once, {BOTH:,}/s for a minute, every customer new",
    Needs.STACK,
    line("in and out", "events/s", Against(LIMIT, 0.08), better="more"),
    line("growth of the backlog, divided by the events received", "of 1", better="less"),
    line(f"end to end at {BOTH:,}/s, p50", "ms", better="less"),
    line(f"end to end at {BOTH:,}/s, p99", "ms", better="less", bar=500),
    line("WAL of an event, in and out", "bytes", better="less"),
    line("CPU of all", "s per 1,000,000 events", better="less"),
    *(
        line(f"CPU of {name}", "s per 1,000,000 events", better="less")
        for name in ("web", "workers", "postgres", "redis", "beat")
    ),
    seconds=70,
)
def in_and_out(bench: Bench) -> None:
    install = _warm(bench, audiences=LANES)
    load = Load(calls=bench.size(4_080, 80), audiences=LANES, rate=BOTH * AND_MORE)
    before, written = bench.house.cpu_seconds(), bench.house.wal_bytes()
    began = time.monotonic()
    sending = bench.house.begin(install, load)
    waiting: list[int] = []
    while not bench.house.wait(lambda: sending.is_over, seconds=0.5):
        waiting.append(bench.house.backlog())
    report = bench.house.finish(sending)
    bench.house.settled()
    events = load.calls * load.batch
    bench.record("in and out", events / (time.monotonic() - max(began, report.began)))
    middle = len(waiting) // 2
    early, late = (statistics.mean(half) if half else 0.0 for half in (waiting[:middle], waiting[middle:]))
    bench.record("growth of the backlog, divided by the events received", max(0.0, late - early) / events)
    _end_to_end(bench, f"end to end at {BOTH:,}/s", report)
    bench.record("WAL of an event, in and out", (bench.house.wal_bytes() - written) / events)
    _cpu(bench, before, bench.house.cpu_seconds(), events)


def _end_to_end(bench: Bench, name: str, report: Report) -> None:
    """Milliseconds per event from the due time of its call to ODP's response, including ODP's own 50 ms."""
    due = {stamp: moment for stamp, moment, _ in report.acks}
    seen = bench.house.double.seen(with_calls=True)["by_call"]
    took = [(at - due[stamp]) * 1000 for stamp, at, count in seen for _ in range(count) if stamp in due]
    bench.record(f"{name}, p50", statistics.median(took))
    bench.record(f"{name}, p99", percentile(took, 0.99))


def _cpu(bench: Bench, before: dict[str, float], after: dict[str, float], events: int) -> None:
    used = {name: (after[name] - before.get(name, 0.0)) * 1_000_000 / events for name in after}
    for name in ("web", "postgres", "redis", "beat"):
        bench.record(f"CPU of {name}", used[name])
    bench.record("CPU of workers", sum(seconds for name, seconds in used.items() if name.startswith("worker")))
    bench.record("CPU of all", sum(used.values()))


@scenario(
    "2,000/s live while a backfill of another audience drains, pace off",
    Needs.STACK,
    line("end to end beside a backfill, p50", "ms", better="less", bar=110),
    line("end to end beside a backfill, p99", "ms", better="less", bar=300),
    line("drain of the backfill meanwhile", "events/s", better="more"),
    seconds=50,
)
def beside_a_backfill(bench: Bench) -> None:
    install = _warm(bench, audiences=61)
    bench.house.hold(install, go=False)
    bench.house.fill(install, bench.size(1_000_000, 60_000), segment="s60")
    bench.house.hold(install, go=True)
    bench.house.wait(lambda: bench.house.double.seen()["requests"] > 0, seconds=30)
    before, began = bench.house.backlog("s60"), time.monotonic()
    load = Load(calls=bench.size(200, 10), rate=2_000)
    report = bench.house.send(install, load)
    live = [stamp for stamp, _, _ in report.acks]
    if not bench.house.wait(lambda: _came(bench, live) >= load.calls * load.batch, seconds=60):
        raise StackError("after 60 seconds some of the live events had not reached ODP")
    left, took = bench.house.backlog("s60"), time.monotonic() - began
    if not left:
        bench.note("The backfill ended before the live events were delivered, so the figures beside it are too good.")
    bench.record("drain of the backfill meanwhile", (before - left) / took)
    _end_to_end(bench, "end to end beside a backfill", report)
    bench.house.hold(install, go=False)


def _came(bench: Bench, stamps: Sequence[int]) -> int:
    known = set(stamps)
    return sum(count for stamp, _, count in bench.house.double.seen(with_calls=True)["by_call"] if stamp in known)


# --- Size ----------------------------------------------------------------------------------------------------

SMALL, LARGE = "with a log of 100,000", "with a log of 10,000,000"


@scenario(
    "growth: the same with a long log",
    Needs.STACK,
    line(f"ingest {SMALL}", "events/s", better="more"),
    line(f"ingest {LARGE}", "events/s", Against(f"ingest {SMALL}"), better="more"),
    line(f"drain {SMALL}", "events/s", better="more"),
    line(f"drain {LARGE}", "events/s", Against(f"drain {SMALL}"), better="more"),
    line(f"drain {LARGE} and a ledger as long", "events/s", Against(f"drain {SMALL}"), better="more"),
    seconds=500,
    once=True,
)
def growth(bench: Bench) -> None:
    """Measure the short log before and after the long one, because the machine's speed changes over ten minutes."""

    def short() -> None:
        for _ in range(bench.rounds):
            install = _warm(bench, audiences=LANES)
            bench.house.fill(install, bench.size(100_000, 2_000), delivered=True)
            bench.house.remember()
            _in_then_out(bench, install, SMALL)

    short()
    install, grown, size = _warm(bench, audiences=LANES), 0, bench.size(10_000_000, 20_000)
    while grown < size:
        grown += bench.house.fill(install, min(500_000, size - grown), delivered=True)
    # A log that grew over weeks has been vacuumed in steps. This one grew in a minute, so vacuum it now.
    bench.house.sql("VACUUM ANALYZE audiences_event")
    for _ in range(bench.rounds):
        _in_then_out(bench, install, LARGE)
    bench.house.remember()
    for _ in range(bench.rounds):
        _in_then_out(bench, install, LARGE, ledger=" and a ledger as long")
    short()


def _in_then_out(bench: Bench, install: Install, words: str, *, ledger: str = "") -> None:
    bench.house.pause_all(paused=True)
    bench.house.sql("CHECKPOINT")
    load = Load(calls=bench.size(1_000, 20), audiences=LANES)
    speed = rate(bench.house.send(install, load), load)
    # Ingest doesn't depend on the ledger.
    if not ledger:
        bench.record(f"ingest {words}", speed)
    bench.house.sql("CHECKPOINT")
    bench.house.double.forget()
    bench.house.pause_all(paused=False)
    bench.record(f"drain {words}{ledger}", bench.house.drained(load.calls * load.batch))
    bench.house.settled()


@scenario(
    "memory (PSS)",
    Needs.NOTHING,
    line("whole stack, idle", "MiB", better="less"),
    line("whole stack, idle after 1,000,000 events", "MiB", better="less"),
    line("workers, before 1,000,000 events", "MiB", better="less"),
    line("growth of the workers over 1,000,000 events", "%", better="less"),
    seconds=60,
)
def memory(bench: Bench) -> None:
    bench.house.clear()
    bench.house.restart_servers()
    with bench.house.bridge():
        bench.house.rest(2)
        bench.record("whole stack, idle", _mib(bench))
        install = bench.house.fresh(audiences=LANES)
        events = bench.size(1_000_000, 4_000)
        warm = bench.house.fill(install, events // 10)
        bench.house.drained(warm)
        bench.house.settled()
        before = _mib(bench, "worker")
        bench.record("workers, before 1,000,000 events", before)
        bench.house.drained(warm + bench.house.fill(install, events))
        bench.house.settled()
        bench.record("growth of the workers over 1,000,000 events", 100 * (_mib(bench, "worker") / before - 1))
        bench.record("whole stack, idle after 1,000,000 events", _mib(bench))


def _mib(bench: Bench, prefix: str = "") -> float:
    return sum(usage.pss_mib(pid) for name, pid in bench.house.pids().items() if name.startswith(prefix))


FOUND = (
    r"a customer with 300 events: (\d+) ms, the page (\d+) ms; (\d+) ms with nothing in memory\n"
    r"forgetting a customer with 300 events: (\d+) ms"
)


@scenario(
    "finding a customer with 300 events in a log of 10,000,000 (benchmarks/search.py)",
    Needs.NOTHING,
    line("customer search, the page", "ms", better="less"),
    line("customer search, reading the events", "ms", better="less"),
    line("customer search, read with nothing of the log in memory", "ms", better="less"),
    line("forgetting the customer", "ms", better="less", bar=5_000),
    seconds=300,
    once=True,
)
def search(bench: Bench) -> None:
    events = str(bench.size(10_000_000, 30_000))
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.search", events]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603 — our own
    found = re.search(FOUND, said)
    if found is None:
        raise StackError(f"benchmarks.search said {said!r}")
    bench.record("customer search, the page", float(found[2]))
    bench.record("customer search, reading the events", float(found[1]))
    bench.record("customer search, read with nothing of the log in memory", float(found[3]))
    bench.record("forgetting the customer", float(found[4]))
    bench.note("Search: " + "; ".join(said.strip().splitlines()) + ".")


# --- Running them --------------------------------------------------------------------------------------------


def lines(scenarios: Sequence[Scenario] = ()) -> dict[str, Line]:
    return {each.name: each for one in scenarios or SCENARIOS for each in one.lines}


def estimate(scenarios: Sequence[Scenario], *, scale: float, rounds: int) -> float:
    """The approximate duration of all rounds on two cores, in seconds."""
    return sum((1 if one.once else rounds) * (LEAST_SECONDS + one.seconds * scale) for one in scenarios)


def measure(bench: Bench, scenarios: Sequence[Scenario], tell: Callable[[str], None]) -> None:
    """Run all rounds. Scenarios with the same needs are consecutive, and every second round is in reverse order."""
    for number in range(bench.rounds):
        bench.number = number
        todo = [one for one in scenarios if number == 0 or not one.once]
        todo.sort(key=lambda one: list(Needs).index(one.needs))
        if number % 2:
            todo.reverse()
        for needs in dict.fromkeys(one.needs for one in todo):
            some = [one for one in todo if one.needs is needs]
            while some:
                one = some.pop(0)
                try:
                    with _up(bench.house, needs):
                        while True:
                            began, bench.title = time.monotonic(), one.title
                            one.run(bench)
                            tell(f"round {number + 1}: {one.name} ({time.monotonic() - began:.0f} s)")
                            if not some:
                                break
                            one = some.pop(0)
                except AskedToStop:
                    raise
                except Exception as trouble:  # noqa: BLE001 — a full run takes long, so the other scenarios go on
                    bench.results.fail(one.title, f"{one.name}, round {number + 1}: {trouble or repr(trouble)}")


@contextmanager
def _up(house: House, needs: Needs) -> Iterator[None]:
    if needs is Needs.NOTHING:
        yield
    else:
        house.clear()
        with house.bridge(workers=needs is Needs.STACK):
            yield
