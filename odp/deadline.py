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

from odp.http1 import Response

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
        # What ``permission`` raised: the caller's own fault, not the server's.
        self.permission_error: Exception | None = None
        self._connection: _Guarded | None = None
        self._lock = threading.Lock()
        self._arm(self.start_before)

    def guard(self, connection: "_Guarded") -> None:
        """Called with a connection before each piece is sent on it. Raises ``TooLateError``."""
        if self._connection is not connection:
            self._begin(connection)
        if self.passed:
            raise TooLateError

    def end(self) -> None:
        _watch.forget(self)

    def _begin(self, connection: "_Guarded") -> None:
        _watch.forget(self)
        if self.permission is not None and not self.passed:
            self._ask(self.permission)
            connection.renew_if_stale()
        with self._lock:
            if self.passed or time.monotonic() >= self.start_before:
                raise TooLateError
            self._connection = connection
            # What was set for connecting would go on to limit the sending of the body.
            connection.sock.settimeout(self.seconds + SPARE_SECONDS)
            self.began_at = time.monotonic()
        self._arm(self.ends_at)

    def _ask(self, permission: Callable[[], None]) -> None:
        try:
            permission()
        except Exception as error:
            self.permission_error = error
            raise

    def _arm(self, moment: float) -> None:
        _watch.expect(self, min(time.monotonic() + self.seconds, moment))

    def cut(self) -> None:
        """Time is up."""
        with self._lock:
            self.passed = True
            sock = self._connection.sock if self._connection else None
            if sock is not None:
                # Past any TLS layer, which another thread may be reading through. An error: the call has just ended.
                with suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Watch:
    """The one thread of a process that cuts calls. A timer for each would be two more threads a call, at a fifth of
    what the call costs."""

    def __init__(self) -> None:
        self._due: dict[Deadline, float] = {}
        self._changed = threading.Condition()
        self._looks_again_at = float("inf")
        self._thread: threading.Thread | None = None

    def expect(self, call: Deadline, moment: float) -> None:
        with self._changed:
            self._due[call] = moment
            if self._thread is None or not self._thread.is_alive():  # the first call, or the first one after a fork
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


class _Guarded(HTTPConnection):
    """urllib3's connection: the deadline is asked after connecting, before each piece is sent."""

    response_class = Response
    # Whether an answer has come over it: it was kept alive since, and may have ended or be out of step.
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
        """Connect anew where the server hung up, or said something unasked, while permission was waited for."""
        if self._has_answered and not self.is_connected:
            self.sock.close()
            self.connect()


class _HTTPS(_Guarded, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _Guarded


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPS


class DeadlineAdapter(HTTPAdapter):
    """A transport for ``requests`` that obeys ``deadline``; it never retries and never waits for a free connection."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
