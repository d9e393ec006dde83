"""All metrics as families of prometheus_client, created for each scrape."""

import time
from collections.abc import Iterator, Mapping
from itertools import accumulate

import structlog
from django.conf import settings
from django.db.utils import Error
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from audiences import sessions, tallies
from audiences.insight import failures
from audiences.tallies import Tally, Total
from lytics_sync.metrics import states
from lytics_sync.metrics.states import State
from odp.outcomes import Outcome

log = structlog.get_logger(__name__)

BUILD = State("lytics_sync_build_info", "Always 1; the version of this web process.", ("version",))
DATABASE_UP = State(
    "lytics_sync_database_up", "1 when PostgreSQL responded in time; with 0, all that is read from it is absent."
)
REDIS_UP = State("lytics_sync_redis_up", "1 when Redis responded; with 0, the totals that it holds are absent.")
SCRAPE_SECONDS = State("lytics_sync_scrape_duration_seconds", "Seconds that this scrape took to read the metrics.")

OWN = (BUILD, DATABASE_UP, REDIS_UP, SCRAPE_SECONDS)
ALL: tuple[State | Tally, ...] = (*OWN, *states.ALL, *tallies.ALL)

_OUTCOMES = [(outcome.value,) for outcome in Outcome]
_TASKS: list[tuple[str, ...]] = [(task.removeprefix("workers.tasks."),) for task in failures.TASKS]


class _Collector(Collector):
    def collect(self) -> Iterator[Metric]:
        began = time.monotonic()
        found = _states()
        totals = tallies.totals()
        yield _family(BUILD, {(settings.VERSION,): 1.0})
        yield _family(DATABASE_UP, {(): float(found is not None)})
        yield _family(REDIS_UP, {(): float(totals is not None)})
        if found is not None:
            yield from (_family(state, found.found.get(state.name, {})) for state in states.ALL)
        if totals is not None:
            installs = None if found is None else [install.public_id for install in found.installs]
            yield from (_tally(tally, totals[tally.name], installs) for tally in tallies.ALL)
        yield _family(SCRAPE_SECONDS, {(): time.monotonic() - began})


def _states() -> states.Samples | None:
    try:
        return sessions.read(states.read)
    except Error as error:
        log.warning("metrics are without PostgreSQL", error=failures.first_line(error))
        return None


def _family(state: State, values: Mapping[tuple[str, ...], float]) -> Metric:
    family = (CounterMetricFamily if state.kind == "counter" else GaugeMetricFamily)(
        state.name, state.help, labels=state.labels
    )
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _tally(tally: Tally, totals: Mapping[tuple[str, ...], Total], installs: list[str] | None) -> Metric:
    """Without the totals of installs that were removed. Known combinations without a total are zero."""
    known = {labels: Total() for labels in _known(tally, installs or [])} | dict(totals)
    if installs is not None and tally.labels[:1] == ("install",) and tally is not tallies.REJECTED_CALLS:
        known = {labels: total for labels, total in known.items() if labels[0] in {*installs, tallies.UNKNOWN}}
    if not tally.bounds:
        counter = CounterMetricFamily(tally.name, tally.help, labels=tally.labels)
        for labels, total in known.items():
            counter.add_metric(labels, total.value)
        return counter
    histogram = HistogramMetricFamily(tally.name, tally.help, labels=tally.labels)
    for labels, total in known.items():
        counts = accumulate(total.buckets.get(place, 0.0) for place in range(len(tally.bounds) + 1))
        bounds = [*map(str, tally.bounds), "+Inf"]
        histogram.add_metric(labels, list(zip(bounds, counts, strict=True)), total.value)
    return histogram


def _known(tally: Tally, installs: list[str]) -> list[tuple[str, ...]]:
    """Label values that are exported from the start: a rate needs a zero before the first increase."""
    if tally is tallies.ODP_REQUESTS:
        return [(install, *outcome) for install in installs for outcome in _OUTCOMES]
    if tally is tallies.TASK_FAILURES:
        return _TASKS
    if tally is tallies.WEBHOOK_REQUESTS:
        return [(install, code) for install in installs for code in ("200", "503")]
    return [(install,) for install in installs] if tally.labels == ("install",) else [()] if not tally.labels else []


registry = CollectorRegistry()
registry.register(_Collector())
