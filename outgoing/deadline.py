"""One deadline for a whole HTTP request: connecting, sending, and every byte of the response.

The timeouts of ``requests`` limit each socket operation, so a server that sends a byte a second never ends a request,
and a request that outlives the lease of its lane could overtake the next request. Here a timer shuts down the
connection when time is up. A connection that is still being opened can't be shut down; so when it opens too late,
the request fails before a byte is sent.

The rate limiter's permission is requested right before the first byte too. If it were requested before connecting, the
varying time for connecting would make requests arrive unevenly spaced.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from outgoing.http1 import Response

# Added to the timeout of each socket operation, so that the deadline always ends a request before its socket does.
SPARE_SECONDS = 0.5


class TooLateError(Exception):
    """It is too late to start the request; no byte of it was sent."""


class Deadline:
    """One request: ``start_before`` limits connecting, then ``permission``, then ``seconds`` limits the exchange."""

    def __init__(
        self, *, seconds: float, start_before: float, ends_at: float, permission: Callable[[], None] | None
    ) -> None:
        self.seconds = seconds
        self.start_before = min(start_before, ends_at)
        self.ends_at = ends_at
        self.permission = permission
        self.passed = False
        self.began_at: float | None = None
        # The exception raised by ``permission``: an error of the caller, not of the server.
        self.permission_error: Exception | None = None
        self._connection: _Guarded | None = None
        self._lock = threading.Lock()
        self._arm(self.start_before)

    def guard(self, connection: "_Guarded") -> None:
        """Called before each piece is sent on a connection. Raises ``TooLateError`` when time is up."""
        if self._connection is not connection:
            self._begin(connection)
        if self.passed:
            raise TooLateError

    def end(self) -> None:
        _watch.forget(self)

    def _begin(self, connection: "_Guarded") -> None:
        _watch.forget(self)
        if self.permission is not None and not self.passed:
            self._request(self.permission)
            connection.renew_if_stale()
        with self._lock:
            if self.passed or time.monotonic() >= self.start_before:
                raise TooLateError
            self._connection = connection
            # Replace the connect timeout, which would otherwise limit sending the body.
            connection.sock.settimeout(self.seconds + SPARE_SECONDS)
            self.began_at = time.monotonic()
        self._arm(self.ends_at)

    def _request(self, permission: Callable[[], None]) -> None:
        try:
            permission()
        except Exception as error:
            self.permission_error = error
            raise

    def _arm(self, moment: float) -> None:
        _watch.expect(self, min(time.monotonic() + self.seconds, moment))

    def cut(self) -> None:
        """Time is up: shut down the connection, if there is one."""
        with self._lock:
            self.passed = True
            sock = self._connection.sock if self._connection else None
            if sock is not None:
                # On the plain socket, because another thread may be reading through the TLS layer. An OSError means
                # that the request has just ended.
                with suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Watch:
    """The one thread per process that ends requests whose time is up.

    A ``threading.Timer`` per request would start a thread for each of a request's two limits, a fifth of the
    request's cost.
    """

    def __init__(self) -> None:
        self._due: dict[Deadline, float] = {}
        self._changed = threading.Condition()
        self._looks_again_at = float("inf")
        self._thread: threading.Thread | None = None

    def expect(self, call: Deadline, moment: float) -> None:
        with self._changed:
            self._due[call] = moment
            if self._thread is None or not self._thread.is_alive():  # first request, or first after a fork
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()
            elif moment < self._looks_again_at:
                self._changed.notify()

    def forget(self, call: Deadline) -> None:
        with self._changed:
            self._due.pop(call, None)

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for call in [call for call, moment in self._due.items() if moment <= now]:
                    del self._due[call]
                    call.cut()
                self._looks_again_at = min(self._due.values(), default=float("inf"))
                self._changed.wait(self._looks_again_at - now if self._due else None)


_watch = _Watch()
_current = threading.local()


@contextmanager
def deadline(
    *,
    seconds: float,
    start_before: float = float("inf"),
    ends_at: float = float("inf"),
    permission: Callable[[], None] | None = None,
) -> Iterator[Deadline]:
    """Limit the request that this thread sends through ``DeadlineAdapter`` to ``seconds`` after its first byte.

    ``start_before`` and ``ends_at`` are moments of ``time.monotonic``: no byte may be sent after the first, and the
    request ends at the second. ``permission`` is called right before the first byte and returns when it may be sent.
    """
    call = Deadline(seconds=seconds, start_before=start_before, ends_at=ends_at, permission=permission)
    _current.call = call
    try:
        yield call
    finally:
        _current.call = None
        call.end()


class _Guarded(HTTPConnection):
    """urllib3's connection that checks the deadline after connecting and before each piece is sent."""

    response_class = Response
    # Whether this connection has carried a response. Then it was kept alive, and the server may have closed it since.
    _has_answered = False

    def connect(self) -> None:
        super().connect()
        self._has_answered = False

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        call = getattr(_current, "call", None)
        if call is not None:
            call.guard(self)
        super().send(data)

    def getresponse(self) -> Any:
        self._has_answered = True
        return super().getresponse()

    def renew_if_stale(self) -> None:
        """Reconnect when the server closed the connection, or sent data, while we waited for permission.

        On a new connection, data before the request is a fault of the server, as is a greeting of another protocol. It
        would be taken for the response.
        """
        if not self._has_answered:
            if self._has_sent_data():
                raise HTTPException("data before the request")
        elif not self.is_connected:
            self.sock.close()
            self.connect()

    def _has_sent_data(self) -> bool:
        seconds = self.sock.gettimeout()
        self.sock.settimeout(0)
        try:
            return bool(self.sock.recv(1))
        except OSError:  # none yet; over TLS maybe session tickets, which are no data
            return False
        finally:
            self.sock.settimeout(seconds)


class _HTTPS(_Guarded, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _Guarded


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPS


class DeadlineAdapter(HTTPAdapter):
    """A transport for ``requests`` that obeys ``deadline``, never retries, and never waits for a free connection."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
