"""Sends the counts of a process to Redis in the background, so that no response waits for Redis."""

import threading
from collections.abc import Callable

import redis

from audiences.background import Background

# Seconds between two attempts, and after a failed attempt.
SEND_INTERVAL_SECONDS = 1.0
RETRY_SECONDS = 5.0


class RedisSender:
    """Calls ``attempt`` in a background thread after each ``ring``, until Redis has accepted the counts.

    When Redis doesn't accept the counts, ``attempt`` keeps them for the next time and raises ``redis.RedisError``.
    ``report`` logs the first failure of an outage. Without ``is_automatic``, only ``send`` sends.
    """

    def __init__(
        self,
        name: str,
        attempt: Callable[[], None],
        *,
        report: Callable[[redis.RedisError], None],
        is_automatic: bool = True,
    ) -> None:
        self._attempt = attempt
        self._report = report
        self._is_automatic = is_automatic
        self._background = Background(name, self._send_and_retry)
        self._redis_is_down = False

    @property
    def thread(self) -> threading.Thread | None:
        return self._background.thread

    def ring(self) -> None:
        """Have the counts sent soon. Returns at once."""
        if self._is_automatic:
            self._background.ring()

    def _send_and_retry(self) -> float:
        if self.send():
            return SEND_INTERVAL_SECONDS
        self._background.ring()
        return RETRY_SECONDS

    def send(self) -> bool:
        """Send the counts now. False when Redis didn't accept them."""
        try:
            self._attempt()
        except redis.RedisError as error:
            if not self._redis_is_down:
                self._report(error)
            self._redis_is_down = True
            return False
        self._redis_is_down = False
        return True
