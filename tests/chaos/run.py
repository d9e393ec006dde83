"""One run: start the processes, send the stream, cause the faults of the schedule, wait for the end, and judge."""

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import redis

from tests.chaos import schedule
from tests.chaos.faults import FAULTS
from tests.chaos.house import House
from tests.chaos.judge import Check, Judge
from tests.chaos.schedule import Step
from tests.chaos.stream import RETRY_SCALE, Source
from tests.chaos.wire import Wire

# How each pair of accounts writes, and its requests per second (0: as fast as it goes).
INSTALLS = (("shop", "attribute", 0), ("paced", "attribute", 10), ("lists", "list", 0), ("club", "attribute", 0))
# The faults that stop PostgreSQL as a whole, and so empty the unlogged table of the rate limit.
CRASHES = {"backend", "postgres", "postgres_twice", "disk"}
# The settings of a run: as delivered, but for what a person would be waited for.
USUAL = {
    "DELIVERY_DEADLINE_SECONDS": "8",
    "LEASE_SECONDS": "11",
    "DRAIN_SECONDS": "5",
    "RECONCILE_AFTER_SECONDS": "10",
    "BACKOFF_LONGEST_SECONDS": "5",
    "BACKOFF_FIXED_SECONDS": "3",
    "RETRY_AFTER_SECONDS": "1",
    # Test customers are in no stream, and the judge knows only the stream's.
    "PROBE_MINUTES": "0",
    "LOOK_MINUTES": "0",
    "AUDIT_HOURS": "0",
}
# For a sender that obeys Retry-After: what a 503 asks for is what it is as delivered.
OBEDIENT = {name: value for name, value in USUAL.items() if name != "RETRY_AFTER_SECONDS"}
# Shorter times, so that a small run fits into the test suite.
QUICK = {
    **USUAL,
    "DELIVERY_DEADLINE_SECONDS": "2",
    "LEASE_SECONDS": "4",
    "DRAIN_SECONDS": "2",
    "RECONCILE_AFTER_SECONDS": "3",
}


@dataclass(kw_only=True)
class Options:
    seed: int
    events: int
    audiences: int
    steps: Sequence[Step]
    settings: dict[str, str] = field(default_factory=lambda: USUAL)
    workers: int = 3
    # How much faster than Lytics the sender tries again where no answer came; Retry-After is always obeyed.
    retry_scale: float = RETRY_SCALE
    twin: str = ""
    # Whether the workers are left alive at the end of the stream.
    spares_workers: bool = False
    # Seconds without progress at the end after which the run counts as stuck.
    stuck_seconds: float = 90
    say: Callable[[str], None] = print


@dataclass
class Strike:
    """A fault that was done: when it began and ended, on both clocks."""

    fault: str
    began_at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    ended_at: float = 0.0

    @property
    def since_at(self) -> float:
        """The moment from which on things may get better: a death's own, and the end of what lasts."""
        return self.began_at if FAULTS[self.fault].is_kill else self.ended_at


@dataclass
class Report:
    options: Options
    checks: list[Check]
    strikes: list[Strike]
    # When accepted Deliveries were opened and closed, and how many events were settled at which time.
    deliveries: list[tuple[float, float]]
    progress: list[tuple[float, int]]
    events: int
    stored: int
    writes: int
    items: int
    repeats: int
    calls: int
    retried: int
    reconciled: int
    stream_seconds: float
    stream_ended_at: float
    longest_wait: float
    notes: list[str]

    @property
    def is_clean(self) -> bool:
        return not any(check.wrong for check in self.checks)


def run(options: Options) -> Report:
    folder = Path(tempfile.mkdtemp(prefix="lytics-sync-chaos-"))
    house = House(folder=folder, settings=options.settings, workers=options.workers, twin=options.twin)
    try:
        with house.open():
            the_run = _Run(house, options)
            try:
                return the_run.report()
            finally:
                the_run.wire.halt()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Run:
    def __init__(self, house: House, options: Options) -> None:
        self.house = house
        self.options = options
        self.dice = Random(f"{options.seed}/strikes")
        self.strikes: list[Strike] = []
        self.wire = Wire(house.odp)
        expected = schedule.seconds(options.steps) + 4
        installs = INSTALLS[: max(1, min(len(INSTALLS), options.audiences // 2))]
        share = options.events // len(installs)
        self.sources = [
            Source(
                install,
                events=share,
                how_many=options.audiences // len(installs) + (nth < options.audiences % len(installs)),
                seed=options.seed * 10 + nth,
                rate=share / expected,
                retry_scale=options.retry_scale,
            )
            for nth, install in enumerate(house.connect(*installs))
        ]

    def report(self) -> Report:
        began = time.monotonic()
        for source in self.sources:
            source.start()
        self.house.rest(2)
        for nth, step in enumerate(self.options.steps):
            self.house.rest(step.pause)
            self._strike(step.fault, nth)
        self.house.wait(lambda: all(source.is_done for source in self.sources), seconds=300 + time.monotonic() - began)
        ended_at, seconds = time.time(), time.monotonic() - began
        if not self.options.spares_workers:
            self._everybody_dies()
        drained = self._wait_until_drained(seconds=seconds + 2 * self.options.stuck_seconds)
        self.wire.stop()
        crashes = [strike.began for strike in self.strikes if strike.fault in CRASHES]
        checks = [drained, *Judge(self.house, self.sources, self.wire, crashes).checks()]
        return self._told(checks, ended_at=ended_at, seconds=seconds)

    def _strike(self, name: str, nth: int) -> None:
        strike = Strike(name)
        self.strikes.append(strike)
        self.options.say(f"{nth + 1:4} of {len(self.options.steps)}  {FAULTS[name].label}")
        FAULTS[name].strike(self.house, self.dice)
        strike.ended_at = time.time()

    def _everybody_dies(self) -> None:
        """Kill every worker at once and flush the broker: only the tables know the remaining work."""
        for name in self.house.workers:
            self.house.kill(name)
        with suppress(redis.RedisError):  # a broker that is down is empty after its start
            self.house.flush_broker()

    # --- the end ---------------------------------------------------------------------------------------------

    def _wait_until_drained(self, *, seconds: float) -> Check:
        """Wait until every lane is drained and every unanswered Delivery is reconciled.

        A mutated service may stop or never finish: the run gives up when there is no more progress, or after
        ``seconds``.
        """
        check = Check("everything came to rest by itself")
        began = moved = time.monotonic()
        known = (-1, -1, -1, -1)
        while True:
            now = self._left()
            check.looked_at += 1
            if now == (0, 0, 0, 0):
                self.house.rest(1)
                if self._left() == (0, 0, 0, 0):
                    return check
            if now != known:
                known, moved = now, time.monotonic()
            if time.monotonic() - moved > self.options.stuck_seconds or time.monotonic() - began > seconds:
                words = "stuck with {} events, {} leases, {} open or doubtful Deliveries, {} requests in flight"
                check.find(words.format(*now))
                return check
            self.house.rest(0.25)

    def _left(self) -> tuple[int, int, int, int]:
        lanes = self.house.sql(
            "SELECT coalesce(sum(a.last_sequence - l.delivered_sequence), 0)::bigint, count(l.lease_token)"
            " FROM audiences_lane l JOIN audiences_audience a ON a.id = l.audience_id"
        )[0]
        doubtful = self.house.sql(
            "SELECT count(*) FROM audiences_delivery WHERE closed_at IS NULL AND EXISTS"
            " (SELECT FROM audiences_run r WHERE r.delivery_id = audiences_delivery.id AND r.closed_at IS NULL)"
            " OR affirmed_at IS NULL AND outcome IN ('unknown', 'retry_later')"
        )[0][0]
        return lanes[0], lanes[1], doubtful, self.house.odp.summary()["in_flight"]

    def _told(self, checks: list[Check], *, ended_at: float, seconds: float) -> Report:
        sql = self.house.sql
        opened = sql(
            "SELECT extract(epoch FROM opened_at)::float8, extract(epoch FROM closed_at)::float8"
            " FROM audiences_delivery WHERE outcome = 'delivered' ORDER BY closed_at"
        )
        progress = sql(
            "SELECT extract(epoch FROM closed_at)::float8, last_sequence - first_sequence + 1"
            " FROM audiences_run WHERE outcome = 'delivered' ORDER BY closed_at"
        )
        # The delay of a lane's run is that of its first event.
        longest = sql(
            "SELECT coalesce(max(extract(epoch FROM r.closed_at - e.received_at)), 0)::float8 FROM audiences_run r"
            " JOIN audiences_event e ON e.audience_id = r.audience_id AND e.sequence = r.first_sequence"
            " WHERE r.outcome = 'delivered'"
        )[0][0]
        stored, forced = sql("SELECT count(*), count(*) FILTER (WHERE forced) FROM audiences_event")[0]
        return Report(
            options=self.options,
            checks=checks,
            strikes=self.strikes,
            deliveries=[(row[0], row[1]) for row in opened],
            progress=[(row[0], row[1]) for row in progress],
            events=sum(source.events for source in self.sources),
            stored=stored,
            reconciled=forced,
            writes=self.wire.writes,
            items=self.wire.items,
            repeats=self.wire.repeats,
            calls=sum(source.job.tally.calls for source in self.sources),
            retried=sum(source.job.tally.retried for source in self.sources),
            stream_seconds=seconds,
            stream_ended_at=ended_at,
            longest_wait=longest,
            notes=self.house.notes,
        )


def a_seed() -> int:
    return secrets.randbelow(1_000_000)
