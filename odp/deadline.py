"""A deadline over a whole HTTP call: connecting, sending, and every byte of the answer.

``requests`` limits each socket operation, so a server that drips a byte a second holds a call for ever, and a call
that outlives its lane's lease could overtake the next one. Here a timer cuts the connection when time is up. It
can't cut what is not connected yet, so a connection that comes up too late is refused before a byte is sent.

The moment before that first byte is also the one to ask for permission: asked any earlier, the time that connecting
takes would lie between the permission and the request.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

# The deadline ends a call; a single operation on its socket may take longer by this, so that the two don't race.
SPARE_SECONDS = 0.5


class TooLateError(Exception):
    """The call must not start any more: nothing of it has been sent."""


class Deadline:
    """One call: until ``start_before`` to connect, then ``permission``, then ``seconds`` for request and answer."""

    def __init__(
        self, *, seconds: float, start_before: float, ends_at: float, permission: Callable[[], None] | None
    ) -> None:
        self.seconds = seconds
        self.start_before = min(start_before, ends_at)
        self.ends_at = ends_at
        self.permission = permission
        self.passed = False
        self.began_at: float | None = None
        self._connection: HTTPConnection | None = None
        self._lock = threading.Lock()
        self._timer = self._arm(self.start_before)

    def guard(self, connection: HTTPConnection) -> None:
        """Called with a connection before each piece is sent on it. Raises ``TooLateError``."""
        if self._connection is not connection:
            self._begin(connection)
        if self.passed:
            raise TooLateError

    def end(self) -> None:
        self._timer.cancel()

    def _begin(self, connection: HTTPConnection) -> None:
        self._timer.cancel()
        if self.permission is not None and not self.passed:
            self.permission()
        with self._lock:
            if self.passed or time.monotonic() >= self.start_before:
                raise TooLateError
            self._connection = connection
            # What was set for connecting would go on to limit the sending of the body.
            connection.sock.settimeout(self.seconds + SPARE_SECONDS)
            self.began_at = time.monotonic()
            self._timer = self._arm(self.ends_at)

    def _arm(self, moment: float) -> threading.Timer:
        timer = threading.Timer(min(self.seconds, max(0.0, moment - time.monotonic())), self._cut)
        timer.daemon = True
        timer.start()
        return timer

    def _cut(self) -> None:
        with self._lock:
            self.passed = True
            sock = self._connection.sock if self._connection else None
            if sock is not None:
                # Past any TLS layer, which another thread may be reading through. An error: the call has just ended.
                with suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)


_current = threading.local()


@contextmanager
def deadline(
    *,
    seconds: float,
    start_before: float = float("inf"),
    ends_at: float = float("inf"),
    permission: Callable[[], None] | None = None,
) -> Iterator[Deadline]:
    """What a session with ``DeadlineAdapter`` calls in this thread is over ``seconds`` after its first byte.

    ``start_before`` is the moment of ``time.monotonic`` after which no byte may be sent, ``ends_at`` the one after
    which nothing may go on; ``permission`` is called right before the first byte and returns when it may go.
    """
    call = Deadline(seconds=seconds, start_before=start_before, ends_at=ends_at, permission=permission)
    _current.call = call
    try:
        yield call
    finally:
        _current.call = None
        call.end()


class _Guarded:
    """Mixed into urllib3's connections: the deadline is asked after connecting, before each piece is sent."""

    sock: Any

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()  # type: ignore[attr-defined]
        call = getattr(_current, "call", None)
        if call is not None:
            call.guard(self)
        super().send(data)  # type: ignore[misc]


class _HTTP(_Guarded, HTTPConnection):
    pass


class _HTTPS(_Guarded, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTP


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPS


class DeadlineAdapter(HTTPAdapter):
    """A transport for ``requests`` that obeys ``deadline``; it never retries and never waits for a free connection."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
