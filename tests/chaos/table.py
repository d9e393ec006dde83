"""The results of a run as a table for people: the same on the terminal and in docs/chaos.md."""

import os
import platform
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import accumulate

from benchmarks.results import processor
from tests.chaos.faults import FAULTS
from tests.chaos.judge import FINDINGS_LISTED, Check
from tests.chaos.run import Report, Strike

# Seconds over which throughput is measured before a fault, and after the first delivery that follows it.
WINDOW = 5.0


class Measured:
    """Recoveries and throughputs, from the Deliveries and Runs that the tables hold."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._ends = [moment for moment, _ in report.progress]
        self._sums = [0, *accumulate(events for _, events in report.progress)]

    def recovery(self, strike: Strike) -> float | None:
        """Seconds to the end of the first delivery that began after it; None when the stream was over by then."""
        since = strike.since_at
        closed = [closed for opened, closed in self.report.deliveries if opened > since]
        if not closed or since > self.report.stream_ended_at - WINDOW:
            return None
        return min(closed) - since

    def since_it_was_back(self, strike: Strike) -> float | None:
        """The same from the end of the fault, because nothing is delivered while PostgreSQL is down."""
        recovery = self.recovery(strike)
        return None if recovery is None else max(0.0, strike.since_at + recovery - strike.ended_at)

    def events_between(self, start: float, end: float) -> int:
        return self._sums[bisect_right(self._ends, end)] - self._sums[bisect_left(self._ends, start)]

    def before_and_after(self, strike: Strike) -> tuple[int, int] | None:
        recovery = self.recovery(strike)
        if recovery is None:
            return None
        back = strike.since_at + recovery
        if back + WINDOW > self.report.stream_ended_at or strike.began_at - WINDOW < self._ends[0]:
            return None
        return self.events_between(strike.began_at - WINDOW, strike.began_at), self.events_between(back, back + WINDOW)


def lines(report: Report) -> Iterator[str]:
    """Markdown."""
    measured = Measured(report)
    kills = sum(FAULTS[strike.fault].is_kill for strike in report.strikes)
    yield f"| | |\n|---|--:|\n| events answered 200 | {report.events:,} |"
    yield f"| of them stored (a lost 200 stores twice; reconciled: {report.reconciled:,}) | {report.stored:,} |"
    yield f"| calls, and tries beyond the first | {report.calls:,}, {report.retried:,} |"
    yield f"| requests to ODP with memberships | {report.writes:,} |"
    yield f"| memberships told, and plain repeats among them | {report.items:,}, {report.repeats:,} |"
    yield f"| kills, and other faults | {kills:,}, {len(report.strikes) - kills:,} |"
    yield f"| seconds of stream | {report.stream_seconds:,.0f} |"
    yield f"| longest that an accepted event waited, in seconds | {report.longest_wait:.1f} |"
    yield ""
    yield "| fault | times | longest until the next delivery | once it was back | events/s before | after |"
    yield "|---|--:|--:|--:|--:|--:|"
    by_fault: defaultdict[str, list[Strike]] = defaultdict(list)
    for strike in report.strikes:
        by_fault[strike.fault].append(strike)
    for name in (name for name in FAULTS if name in by_fault):
        yield _fault_line(FAULTS[name].label, by_fault[name], measured)
    for words, is_kill in (("**all kills**", True), ("**all other faults**", False)):
        some = [strike for strike in report.strikes if FAULTS[strike.fault].is_kill == is_kill]
        yield _fault_line(words, some, measured)
    yield ""
    yield "| promise | looked at | broken |\n|---|--:|--:|"
    for check in report.checks:
        excused = f" ({check.excused} right after a crash of PostgreSQL)" if check.excused else ""
        yield f"| {check.promise} | {check.looked_at:,} | {len(check.wrong) or 'none'}{excused} |"


def _fault_line(label: str, strikes: list[Strike], measured: Measured) -> str:
    longest = f"{_longest(measured.recovery, strikes)} | {_longest(measured.since_it_was_back, strikes)}"
    pairs = [pair for strike in strikes if (pair := measured.before_and_after(strike))]
    if not pairs:
        return f"| {label} | {len(strikes)} | {longest} | – | – |"
    before, after = (sum(side) / len(pairs) / WINDOW for side in zip(*pairs, strict=True))
    return f"| {label} | {len(strikes)} | {longest} | {before:,.0f} | {after:,.0f} |"


def _longest(measure: Callable[[Strike], float | None], strikes: list[Strike]) -> str:
    found = [seconds for strike in strikes if (seconds := measure(strike)) is not None]
    return f"{max(found):.1f} s" if found else "–"


def back_within(report: Report, *, seconds: float) -> Check:
    """Whether deliveries resumed within the limit after every fault that ended while the stream was running."""
    check, measured = Check(f"first delivery again within {seconds:g} s"), Measured(report)
    for strike in report.strikes:
        if (recovery := measured.since_it_was_back(strike)) is not None:
            check.looked_at += 1
            if recovery > seconds:
                check.find(f"{FAULTS[strike.fault].label}: {recovery:.1f} s")
    return check


def findings(report: Report) -> Iterator[str]:
    for check in report.checks:
        for words in check.wrong[:FINDINGS_LISTED]:
            yield f"BROKEN: {check.promise}: {words}"
        if len(check.wrong) > FINDINGS_LISTED:
            yield f"        and {len(check.wrong) - FINDINGS_LISTED} more of these"


def hardware() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[2]
    machine = f"{os.cpu_count()} cores of {processor()}, {memory:.0f} GB, Python {platform.python_version()}"
    # Its own processes and everybody else's: what a time in the table has to be read with.
    return f"{machine}, load average {load:.0f}"


def today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"
