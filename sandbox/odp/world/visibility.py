"""Applies accepted writes after a delay, in order.

ODP responds with 202 and applies a write later. A client that waits for each response keeps its order. Requests that
overlap in time have no guaranteed order, and `shuffled` reorders them, to expose clients that rely on one.
"""

import heapq
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox.odp.world.clock import Clock

# Interval of checking whether the requests that overlap a shuffled write have ended.
PATIENCE_SECONDS = 0.02
# The random delay stays the same for this time. Writes wait for earlier ones, so with a new delay for each write a
# single slow one would hold up all that follow.
DELAY_CHANGES_EVERY_SECONDS = 20


@dataclass(order=True, slots=True)
class Write:
    """Sorted by `place`: a number in order of acceptance, or with `shuffled` the time of arrival or of acceptance."""

    place: float
    number: int
    kind: str = field(compare=False)
    account: str = field(compare=False)
    items: list[Any] = field(compare=False)
    accepted_at: float = field(compare=False)
    due_at: float = field(compare=False)


class Visibility:
    def __init__(
        self,
        *,
        lock: threading.RLock,
        clock: Clock,
        apply: Callable[[Write], None],
        earliest_arrival: Callable[[], float],
        delay: tuple[float, float] = (0, 0),
        shuffled: bool = False,
        seed: int = 0,
    ) -> None:
        self.delay = delay
        self.shuffled = shuffled
        self._clock = clock
        self._apply = apply
        self._earliest_arrival = earliest_arrival
        self._random = random.Random(seed)
        self._waiting: list[Write] = []
        self._moved = threading.Condition(lock)
        self._weather = (0.0, 0.0)
        self._closed = False
        threading.Thread(target=self._run, name="visibility", daemon=True).start()

    def __len__(self) -> int:
        return len(self._waiting)

    def accept(
        self, *, number: int, kind: str, account: str, items: list[Any], arrived: float, accepted: float
    ) -> None:
        """Call this with the lock held. `arrived` and `accepted` are times of the monotonic clock."""
        now = self._clock.now()
        place = self._random.choice((arrived, accepted)) if self.shuffled else float(number)
        write = Write(place, number, kind, account, items, now, now + self._drifting_delay(now))
        if not self.shuffled and not self._waiting and write.due_at <= now:
            self._apply(write)
            return
        heapq.heappush(self._waiting, write)
        self._moved.notify()

    def _drifting_delay(self, now: float) -> float:
        until, delay = self._weather
        if now >= until or not self.delay[0] <= delay <= self.delay[1]:
            low, high = self.delay
            delay = self._random.triangular(low, high, low + (high - low) / 10) if high > low else low
            self._weather = (now + DELAY_CHANGES_EVERY_SECONDS, delay)
        return delay

    def nudge(self) -> None:
        """Check for due writes now, because the clock was moved or a request has ended."""
        with self._moved:
            self._moved.notify()

    def apply_all(self) -> None:
        with self._moved:
            while self._waiting:
                self._apply(heapq.heappop(self._waiting))

    def forget_all(self) -> None:
        with self._moved:
            self._waiting.clear()

    def close(self) -> None:
        with self._moved:
            self._closed = True
            self._moved.notify()

    def _run(self) -> None:
        with self._moved:
            while not self._closed:
                while self._waiting and self._wait_for(self._waiting[0]) <= 0:
                    self._apply(heapq.heappop(self._waiting))
                self._moved.wait(self._wait_for(self._waiting[0]) if self._waiting else None)

    def _wait_for(self, write: Write) -> float:
        if write.due_at > (now := self._clock.now()):
            return write.due_at - now
        # A request in flight that arrived before this write's place may still get an earlier place.
        return PATIENCE_SECONDS if self.shuffled and self._earliest_arrival() <= write.place else 0
