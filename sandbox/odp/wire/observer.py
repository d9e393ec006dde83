"""Records requests in arrival order with their bodies, and counts rates and concurrency.

Memory is bounded: at most `keep_requests` requests and `keep_body_bytes` bytes of bodies. The oldest are dropped.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(slots=True)
class Seen:
    number: int
    method: str
    path: str
    endpoint: str
    account: str
    key: str
    arrived: float
    headers: dict[str, str]
    ended: float | None = None
    status: int | None = None
    items: int = 0
    size: int = 0
    fields: frozenset[str] = frozenset()
    body: bytes | None = None
    fault: int | None = None
    # Whether any item was accepted, and the positions of the items that were not.
    applied: bool = False
    left_out: tuple[int, ...] = ()
    client_gone: float | None = None
    is_over: bool = False

    def as_json(self, *, with_body: bool) -> dict[str, Any]:
        shown = {
            "number": self.number,
            "method": self.method,
            "path": self.path,
            "endpoint": self.endpoint,
            "account": self.account,
            "key": self.key,
            "arrived": self.arrived,
            "ended": self.ended,
            "client_gone": self.client_gone,
            "status": self.status,
            "items": self.items,
            "size": self.size,
            "fields": sorted(self.fields),
            "applied": self.applied,
            "fault": self.fault,
            "headers": self.headers,
        }
        return (
            shown | {"body": None if self.body is None else self.body.decode(errors="replace")} if with_body else shown
        )


@dataclass(slots=True)
class Pace:
    """The peak number of arrivals in any one-second window."""

    recent: deque[float] = field(default_factory=deque)
    peak: int = 0

    def arrival(self, now: float) -> None:
        self.recent.append(now)
        while self.recent[0] <= now - 1:
            self.recent.popleft()
        self.peak = max(self.peak, len(self.recent))


@dataclass(slots=True)
class Concurrency:
    now: Counter[str] = field(default_factory=Counter)
    peak: Counter[str] = field(default_factory=Counter)

    def enter(self, names: Iterable[str]) -> None:
        for name in names:
            self.now[name] += 1
            self.peak[name] = max(self.peak[name], self.now[name])

    def leave(self, names: Iterable[str]) -> None:
        for name in names:
            self.now[name] -= 1
            if not self.now[name]:
                del self.now[name]


ALL = "all"
COPIES_KEPT = 1000

Key = TypeVar("Key")
Kept = TypeVar("Kept")


def _one_copy(kept: dict[Key, Kept], key: Key, value: Kept) -> Kept:
    """One shared copy of a value that repeats in most requests, to save memory."""
    if len(kept) >= COPIES_KEPT:
        kept.clear()
    return kept.setdefault(key, value)


class Observer:
    def __init__(self, *, keep_requests: int = 200_000, keep_body_bytes: int = 128_000_000) -> None:
        self._lock = threading.Lock()
        self._keep_requests = keep_requests
        self._keep_body_bytes = keep_body_bytes
        self._number = 0
        self.forget()

    def forget(self) -> None:
        """Drop all records. Request numbers continue, so that `since` stays valid after a reset."""
        with self._lock:
            self._requests: deque[Seen] = deque(maxlen=self._keep_requests)
            self._bodies: deque[Seen] = deque()
            self._body_bytes = 0
            self.bodies_let_go = 0
            self._field_sets: dict[frozenset[str], frozenset[str]] = {}
            self._headers: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
            self._in_flight: dict[int, float] = {}
            self._paces: dict[str, Pace] = {}
            self._statuses: dict[str, Counter[int]] = {}
            self._items: Counter[str] = Counter()
            self._requests_at_once = Concurrency()
            self._fields_at_once = Concurrency()
            self.unknown_fields: Counter[str] = Counter()

    def arrival(
        self, *, method: str, path: str, endpoint: str, account: str, key: str, headers: dict[str, str]
    ) -> Seen:
        with self._lock:
            self._number += 1
            now = time.monotonic()
            seen = Seen(self._number, method, path, endpoint, account, key, now, self._shared(headers))
            self._requests.append(seen)
            self._in_flight[seen.number] = now
            self._paces.setdefault(endpoint, Pace()).arrival(now)
            self._requests_at_once.enter((ALL, endpoint))
            return seen

    def _shared(self, headers: dict[str, str]) -> dict[str, str]:
        """The headers without the content length, which is recorded as `size`. Equal headers share one copy."""
        shown = {name: value for name, value in headers.items() if name != "content-length"}
        return _one_copy(self._headers, tuple(shown.items()), shown)

    def understood(self, seen: Seen, *, body: bytes, items: int, fields: frozenset[str]) -> None:
        with self._lock:
            seen.size, seen.items, seen.fields = len(body), items, _one_copy(self._field_sets, fields, fields)
            self._fields_at_once.enter(fields)
            if body:
                self._keep_body(seen, body)

    def _keep_body(self, seen: Seen, body: bytes) -> None:
        seen.body = body
        self._bodies.append(seen)
        self._body_bytes += len(body)
        while self._body_bytes > self._keep_body_bytes:
            oldest = self._bodies.popleft()
            self._body_bytes -= len(oldest.body or b"")
            oldest.body = None
            self.bodies_let_go += 1

    def end(self, seen: Seen, status: int | None) -> None:
        """Call this before the response's last byte is sent: right after it the client may send its next request."""
        with self._lock:
            if seen.is_over:
                return
            seen.is_over, seen.status = True, status
            if seen.ended is None:
                seen.ended = time.monotonic()
                self._leave(seen)
            self._statuses.setdefault(seen.endpoint, Counter())[status or 0] += 1
            self._items[seen.endpoint] += seen.items if status is not None and 200 <= status < 300 else 0

    def client_left(self, seen: Seen) -> None:
        """The client closed the connection: its request is no longer in flight, even if its write is still handled."""
        with self._lock:
            if seen.ended is None:
                seen.client_gone = seen.ended = time.monotonic()
                self._leave(seen)

    def _leave(self, seen: Seen) -> None:
        if self._in_flight.pop(seen.number, None) is not None:
            self._requests_at_once.leave((ALL, seen.endpoint))
            self._fields_at_once.leave(seen.fields)

    def earliest_arrival(self) -> float:
        with self._lock:
            return next(iter(self._in_flight.values()), float("inf"))

    def since(self, number: int) -> list[Seen]:
        """Requests after `number` in arrival order. Searches from the newest, so that a short tail is cheap."""
        with self._lock:
            tail: list[Seen] = []
            for seen in reversed(self._requests):
                if seen.number <= number:
                    break
                tail.append(seen)
        tail.reverse()
        return tail

    def with_bodies_that_mention(self, values: Iterable[str]) -> Iterator[Seen]:
        """Requests whose body may contain one of the values. Bodies with JSON escapes are always included."""
        wanted = [value.encode(errors="surrogatepass") for value in values]
        with self._lock:
            kept = list(self._bodies)
        for seen in kept:
            body = seen.body
            if body is not None and (b"\\" in body or any(value in body for value in wanted)):
                yield seen

    def summary(self) -> dict[str, Any]:
        with self._lock:
            return {
                "requests": sum(sum(each.values()) for each in self._statuses.values()),
                "in_flight": len(self._in_flight),
                "endpoints": {name: self._endpoint(name) for name in sorted(self._paces)},
                "peak_concurrency": self._requests_at_once.peak[ALL],
                "peak_concurrency_per_field": dict(sorted(self._fields_at_once.peak.items())),
                "writes_to_unknown_fields": sum(self.unknown_fields.values()),
                "unknown_fields": dict(self.unknown_fields.most_common(100)),
                "bodies_let_go": self.bodies_let_go,
            }

    def _endpoint(self, name: str) -> dict[str, Any]:
        statuses = self._statuses.get(name, Counter())
        return {
            "requests": sum(statuses.values()),
            "statuses": {str(status): count for status, count in sorted(statuses.items())},
            "items_accepted": self._items[name],
            "peak_per_second": self._paces[name].peak,
            "peak_concurrency": self._requests_at_once.peak[name],
        }
