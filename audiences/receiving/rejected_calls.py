"""Calls that were not stored, counted in Redis per minute and install: rejected for a wrong token, unreadable, or
answered 503 for a cause that lasts.

The counts are kept for two hours, with the last address.

Not in PostgreSQL, where unauthenticated callers could fill a table. A background thread sends the counts, so that no
response waits for Redis. Losing the counts loses only a number on the front page.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import redis
import structlog

from audiences import tallies
from audiences.redis_client import client
from audiences.redis_sender import RedisSender

log = structlog.get_logger(__name__)

# All unknown URLs below /webhooks/: callers can invent any number of them, so they share one count.
UNKNOWN = "unknown"
# Requests that aren't valid HTTP or exceed the server's limits: their install is unknown.
UNREADABLE = "unreadable"
# Webhook calls with a method such as GET, answered 405 without checking a token.
WRONG_METHOD = "wrong-method"
# Causes for which calls with a valid token are answered 503 until a person acts. FAILED: an error of this service.
TOO_LARGE, TOO_SLOW, LOCKED, FAILED = "too-large", "too-slow", "locked", "failed"
MINUTES = 60
KEPT_SECONDS = 2 * 3600
_PREFIX = "lytics-sync:refused"


@dataclass(frozen=True)
class RejectedCalls:
    """Rejected calls of one caller: the number in the last hour, since when no hour was without one, and the newest."""

    count: int
    since_at: datetime
    last_at: datetime
    source: str
    what: str = ""


@dataclass(frozen=True)
class _Call:
    at: float
    source: str
    what: str = ""


class _Counter:
    """Holds counts until its background thread has sent them.

    Its memory is bounded by installs and minutes, for any number of callers and any outage of Redis.
    """

    def __init__(self, *, is_automatic: bool = True) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[int, str]] = Counter()
        self._first: dict[str, float] = {}
        self._newest: dict[str, _Call] = {}
        self.sender = RedisSender("rejected-calls", self._attempt, report=_report, is_automatic=is_automatic)

    def note(self, caller: str, source: str | None, what: str) -> None:
        at = time.time()
        with self._lock:
            self._counts[int(at // 60), caller] += 1
            self._first.setdefault(caller, at)
            self._newest[caller] = _Call(at, source or "", what)
        self.sender.ring()

    def _attempt(self) -> None:
        with self._lock:
            counts, self._counts = self._counts, Counter()
            first, self._first = self._first, {}
            newest, self._newest = self._newest, {}
        try:
            _write(counts, first, newest)
        except redis.RedisError:
            self._keep(counts, first, newest)
            raise

    def _keep(
        self, counts: Mapping[tuple[int, str], int], first: Mapping[str, float], newest: Mapping[str, _Call]
    ) -> None:
        oldest = int(time.time() // 60) - MINUTES
        with self._lock:
            self._counts.update({key: count for key, count in counts.items() if key[0] > oldest})
            self._first = {**self._first, **first}
            self._newest = {**newest, **self._newest}


def _report(error: redis.RedisError) -> None:
    log.warning("rejected calls can't be counted", error=str(error))


_counter = _Counter()


def note(caller: str, source: str | None, *, what: str = "") -> None:
    """Count a rejected call. ``caller`` is an install's public id or a name from above, ``what`` describes the call.

    Returns at once and never raises.
    """
    tallies.REJECTED_CALLS.add(caller)
    _counter.note(caller, source, what)


def note_not_stored(public_id: str, source: str | None, *, cause: str) -> None:
    """Count a call with a valid token that got 503. Returns at once and never raises."""
    _counter.note(not_stored(public_id), source, cause)


def not_stored(public_id: str) -> str:
    """The name under which ``note_not_stored`` counts the calls of an install."""
    return f"{public_id}/not-stored"


def _write(counts: Mapping[tuple[int, str], int], first: Mapping[str, float], newest: Mapping[str, _Call]) -> None:
    # In a transaction, because the hash of a spell may expire between two commands: it would have no "since".
    with client().pipeline(transaction=True) as pipe:
        for (minute, caller), count in counts.items():
            pipe.hincrby(_of_minute(minute), caller, count)
            pipe.expire(_of_minute(minute), KEPT_SECONDS)
        for caller, call in newest.items():
            pipe.hsetnx(_spell(caller), "since", first[caller])
            pipe.hset(_spell(caller), mapping={"at": call.at, "source": call.source, "what": call.what})
            pipe.expire(_spell(caller), MINUTES * 60)
        pipe.execute()


def last_hour(public_ids: Iterable[str]) -> dict[str, RejectedCalls] | None:
    """Rejected calls by install, by ``not_stored`` of it, and by the names above; without zero counts.

    None when Redis is unavailable.
    """
    installs = [*public_ids]
    names = [*installs, *map(not_stored, installs), UNKNOWN, UNREADABLE, WRONG_METHOD]
    this = int(time.time() // 60)
    try:
        with client().pipeline(transaction=False) as pipe:
            # Whole hashes, which have a field per caller with rejected calls: for many installs that is less to read.
            for minute in range(this - MINUTES + 1, this + 1):
                pipe.hgetall(_of_minute(minute))
            counts: Counter[bytes] = Counter()
            for minute_counts in pipe.execute():
                counts.update({caller: int(count) for caller, count in minute_counts.items()})
            rejected = [name for name in names if counts[name.encode()]]
            for caller in rejected:
                pipe.hgetall(_spell(caller))
            spells = pipe.execute()
    except redis.RedisError as error:
        log.info("Redis does not say how many calls were rejected", error=str(error))
        return None
    return {
        caller: RejectedCalls(
            counts[caller.encode()],
            _moment(spell.get(b"since", spell[b"at"])),
            _moment(spell[b"at"]),
            spell.get(b"source", b"").decode(),
            spell.get(b"what", b"").decode(),
        )
        for caller, spell in zip(rejected, spells, strict=True)
        if spell
    }


def has_calls(public_id: str, found: Mapping[str, RejectedCalls]) -> bool:
    """Whether ``last_hour`` found calls to an install: then its sender isn't silent."""
    return public_id in found or not_stored(public_id) in found


def _moment(seconds: bytes) -> datetime:
    return datetime.fromtimestamp(float(seconds), UTC)


def _of_minute(minute: int) -> str:
    return f"{_PREFIX}:{minute}"


def _spell(caller: str) -> str:
    """The hash of an install's unbroken spell of rejected calls; an hour without one ends it."""
    return f"{_PREFIX}:of:{caller}"
