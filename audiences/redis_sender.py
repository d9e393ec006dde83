"""Sends to Redis what a process has counted, so that no response waits for Redis."""

import threading
from collections.abc import Callable

import redis
import structlog

from audiences.background import Background

log = structlog.get_logger(__name__)

# Seconds between two sendings, and before the next attempt after one that failed.
SEND_INTERVAL_SECONDS = 1.0
RETRY_SECONDS = 5.0


class RedisSender:
    """Calls ``attempt`` in a background thread after each ``ring``, until Redis has accepted the counts.

    When Redis doesn't accept the counts, ``attempt`` keeps them for the next time and raises ``redis.RedisError``. The
    first failure of an outage is logged with the words ``failure``. Without ``is_automatic``, only ``send`` sends.
    """

    def __init__(self, name: str, attempt: Callable[[], None], *, failure: str, is_automatic: bool = True) -> None:
        self._attempt = attempt
        self._failure = failure
        self._is_automatic = is_automatic
        self._background = Background(name, self._send_and_retry)
        self._redis_is_down = False

    @property
    def thread(self) -> threading.Thread | None:
        return self._background.thread

    def ring(self) -> None:
        """Returns at once."""
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
                log.warning(self._failure, error=str(error))
            self._redis_is_down = True
            return False
        self._redis_is_down = False
        return True
