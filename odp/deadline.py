"""A deadline over a whole HTTP call: connecting, sending, and every byte of the answer.

``requests`` limits each socket operation, so a server that drips a byte a second holds a call for ever, and a call
that outlives its lane's lease could overtake the next one. Here a timer cuts the connection when time is up. It
can't cut what is not connected yet, so a connection that comes up too late is refused before a byte is sent.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class TooLateError(Exception):
    """The call must not start any more: nothing of it has been sent."""


class Deadline:
    """One call's end, in seconds of ``time.monotonic``, and the latest moment at which it may start sending."""

    def __init__(self, *, ends_at: float, start_before: float) -> None:
        self.ends_at = ends_at
        self.start_before = start_before
        self.passed = False
        self._connection: HTTPConnection | None = None
        self._lock = threading.Lock()

    def guard(self, connection: HTTPConnection) -> None:
        """Called with a connection that is about to send. Raises ``TooLateError``."""
        with self._lock:
            begun = self._connection is connection
            if self.passed or (not begun and time.monotonic() >= min(self.start_before, self.ends_at)):
                raise TooLateError
            self._connection = connection

    def cut(self) -> None:
        with self._lock:
            self.passed = True
            sock = self._connection.sock if self._connection else None
        if sock is not None:
            try:
                # Past any TLS layer, which another thread may be reading through.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                return  # the call ended in the same moment


_current = threading.local()


@contextmanager
def deadline(*, seconds: float, start_before: float) -> Iterator[Deadline]:
    """Everything that a session with ``DeadlineAdapter`` calls in this thread ends within ``seconds``."""
    now = time.monotonic()
    call = Deadline(ends_at=now + seconds, start_before=start_before)
    timer = threading.Timer(seconds, call.cut)
    timer.daemon = True
    timer.start()
    _current.call = call
    try:
        yield call
    finally:
        _current.call = None
        timer.cancel()


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
