"""Counts and durations of every process, added up in Redis, for ``GET /metrics``.

A process adds to its own memory, and a background thread sends the sums to Redis once a second. So the totals are those
of all web processes and workers, on all hosts, and no response waits for Redis. The memory is bounded by the labels.

Emptying Redis sets all totals to zero, which Prometheus knows as a counter reset. A killed process loses the last
second. After a response of Redis was lost, one second may be counted twice.
"""

import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import redis
import structlog

from audiences.redis_client import client
from audiences.redis_sender import RedisSender

log = structlog.get_logger(__name__)

KEY = "lytics-sync:tallies"
# The value of the label install for calls that no install of ours has authenticated.
UNKNOWN = "unknown"

_SEPARATOR = "|"
_SUM = "sum"


@dataclass(frozen=True)
class Tally:
    """A counter; with ``bounds`` a histogram, whose bounds are the upper ends of its buckets.

    Label values come from a fixed set, or are the public id of an install.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    def add(self, *values: str, amount: float = 1) -> None:
        """Count; returns at once and never raises."""
        _sums.add({self.field(values): amount})

    def observe(self, value: float, *values: str) -> None:
        """Add one observation to the histogram; returns at once and never raises."""
        _sums.add({self.field(values, str(self.bucket_of(value))): 1, self.field(values, _SUM): value})

    def bucket_of(self, value: float) -> int:
        """The place of the first bound that isn't exceeded; the number of bounds when all are."""
        return next((place for place, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))

    def field(self, values: tuple[str, ...], part: str = "") -> str:
        return _SEPARATOR.join((self.name, *values, part))

    def parts(self, buckets: Mapping[int, float], total: float, *values: str) -> dict[str, float]:
        """The fields of the hash to which many observations are added."""
        counts = {self.field(values, str(place)): count for place, count in buckets.items()}
        return {**counts, self.field(values, _SUM): total}


_QUICK = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REQUEST = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_DELAY = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0)

WEBHOOK_REQUESTS = Tally(
    "lytics_sync_webhook_requests_total",
    "Responses to calls of the webhook, by status code. Calls without a valid token have the install “unknown”.",
    ("install", "code"),
)
WEBHOOK_SECONDS = Tally(
    "lytics_sync_webhook_request_duration_seconds",
    "From the start of a call, whose body may still arrive, to its response.",
    ("install",),
    _QUICK,
)
WEBHOOK_BYTES = Tally("lytics_sync_webhook_body_bytes_total", "Bytes of the bodies that were read.", ("install",))
REJECTED_CALLS = Tally(
    "lytics_sync_rejected_calls_total",
    "Calls rejected for their token, or as unreadable. The install may be “unknown”, “unreadable” or “wrong-method”.",
    ("install",),
)
ODP_REQUESTS = Tally(
    "lytics_sync_odp_requests_total",
    "Deliveries to ODP that have ended, by outcome; “unknown” are those whose worker was gone before the response.",
    ("install", "outcome"),
)
ODP_SECONDS = Tally(
    "lytics_sync_odp_request_duration_seconds",
    "From the first byte of a delivery to the last one of its response.",
    ("install",),
    _REQUEST,
)
RATE_LIMIT_SECONDS = Tally(
    "lytics_sync_rate_limit_wait_seconds_total", "Seconds that requests waited for the rate limit.", ("install",)
)
DELAY_SECONDS = Tally(
    "lytics_sync_delivery_delay_seconds",
    "From the call that brought an event to ODP's response; computed from at most 200 Runs per install and minute.",
    ("install",),
    _DELAY,
)
LEASES_LOST = Tally(
    "lytics_sync_leases_lost_total", "Deliveries whose lanes another worker took over meanwhile.", ("install",)
)
TASK_FAILURES = Tally("lytics_sync_task_failures_total", "Tasks that ended with an exception.", ("task",))
SWEEPS = Tally("lytics_sync_sweeps_total", "Sweeps for waiting events. They stop when beat, Redis or all workers stop.")

ALL = (
    *(WEBHOOK_REQUESTS, WEBHOOK_SECONDS, WEBHOOK_BYTES, REJECTED_CALLS),
    *(ODP_REQUESTS, ODP_SECONDS, RATE_LIMIT_SECONDS, DELAY_SECONDS, LEASES_LOST),
    *(TASK_FAILURES, SWEEPS),
)


class Sums:
    """The sums that this process hasn't sent yet."""

    def __init__(self, *, is_automatic: bool = True) -> None:
        self._lock = threading.Lock()
        self._sums = defaultdict[str, float](float)
        self.sender = RedisSender("tallies", self._attempt, report=_report, is_automatic=is_automatic)

    def add(self, parts: Mapping[str, float]) -> None:
        self._keep(parts)
        self.sender.ring()

    def _keep(self, parts: Mapping[str, float]) -> None:
        with self._lock:
            for name, amount in parts.items():
                self._sums[name] += amount

    def _attempt(self) -> None:
        with self._lock:
            sums, self._sums = self._sums, defaultdict[str, float](float)
        try:
            with client().pipeline(transaction=True) as pipe:
                increment(pipe, sums)
                pipe.execute()
        except redis.RedisError:
            self._keep(sums)
            raise


def _report(error: redis.RedisError) -> None:
    log.warning("the sums for metrics can't be sent", error=str(error))


_sums = Sums()


def increment(pipe: "redis.client.Pipeline", parts: Mapping[str, float]) -> None:
    for name, amount in parts.items():
        pipe.hincrbyfloat(KEY, name, amount)


@dataclass
class Total:
    """The total of one combination of label values. ``buckets`` aren't cumulative."""

    value: float = 0.0
    buckets: dict[int, float] = field(default_factory=dict)


def totals() -> dict[str, dict[tuple[str, ...], Total]] | None:
    """By name and label values; of a histogram, ``value`` is the sum. None when Redis doesn't respond."""
    try:
        found: dict[bytes, bytes] = client().hgetall(KEY)  # type: ignore[assignment] # redis-py types both clients in one
    except redis.RedisError as error:
        log.info("Redis does not give the sums for metrics", error=str(error))
        return None
    by_name: dict[str, dict[tuple[str, ...], Total]] = {tally.name: {} for tally in ALL}
    for key, amount in found.items():
        name, *values, part = key.decode().split(_SEPARATOR)
        # A process of another version may have sent other names or labels.
        if name in by_name and len(values) == len(_BY_NAME[name].labels):
            total = by_name[name].setdefault(tuple(values), Total())
            if part in ("", _SUM):
                total.value = float(amount)
            else:
                total.buckets[int(part)] = float(amount)
    return by_name


_BY_NAME = {tally.name: tally for tally in ALL}
