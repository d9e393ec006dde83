"""gunicorn's threaded worker, in which a slow caller occupies a connection and no thread.

gunicorn's own worker waits in a thread, without limit, for the rest of a header or a body, and in its accept loop for a
caller to close: twenty slow callers would stop both processes. Here

1. the poller reads the header, and gives the connection to a thread when the header is complete;
2. the thread waits at most ``WEBHOOK_READ_SECONDS`` for the body, and as long for the caller to read the response;
3. after its last answer a connection goes back to the poller, which waits for the caller to close it;
4. a process that has more connections than another leaves a new one to that for some milliseconds. Callers keep their
   connections, and a process uses one core: with 14 of 20 callers it is the limit while the other one is idle.

The poller itself answers ``GET /health/live``: all threads may be waiting for a database that doesn't respond.
tests/test_web_worker.py lists the parts of gunicorn that this needs, and fails when a new version changes one.
"""

import gc
import math
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from selectors import EVENT_READ
from typing import Any

import structlog
from django.conf import settings
from gunicorn.workers.gthread import TConn, ThreadWorker

from audiences import start_checks, tracing
from lytics_sync import unreadable, warm_up
from lytics_sync.connection_counts import ConnectionCounts
from lytics_sync.request_socket import RequestSocket

log = structlog.get_logger(__name__)

# From the start of a connection, or of its next request, to the end of the header.
HEADER_SECONDS = 20.0
# Lingering close: closing a connection with unread data sends RST, and the caller can lose the last response.
_LINGER_SECONDS = 2.0
# A process that leaves a new connection to another looks again after this pause, for as long as its patience.
ACCEPT_PAUSE_SECONDS = 0.001
ACCEPT_PATIENCE_SECONDS = 0.02
# Seconds between two signals to gunicorn's master, which restarts a process that sends none.
NOTIFY_SECONDS = 0.5
_LIVE_BODY = b'{"status": "alive"}'
_LIVE = (
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_LIVE_BODY), _LIVE_BODY)
)
_counts = ConnectionCounts()


class Worker(ThreadWorker):  # type: ignore[misc] # gunicorn has no types
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Connections in the poller that gunicorn doesn't know of: each waits for a header, or for its caller to close.
        self._waiting: set[TConn] = set()
        # The moment of time.monotonic() from which this process accepts connections again.
        self._accept_again_at = 0.0
        # When this process began to leave a connection to another, and when it last did so.
        self._yields_since, self._yielded_at = -math.inf, -math.inf
        # The time (time.monotonic) of the next signal to the master.
        self._notify_again_at = 0.0
        # The most connections at a time in the last second, and the moment at which that second ends.
        self._most_conns, self._second_ends_at = 0, 0.0

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        super().check_config(cfg, log)
        if cfg.is_ssl:
            start_checks.refuse("TLS is the proxy's task; start gunicorn without a certificate.")

    def run(self) -> None:
        # In a thread of the pool, because each thread has its own database connection.
        wait([self.tpool.submit(warm_up.rehearse_a_call)], timeout=warm_up.SECONDS)
        gc.freeze()  # what is loaded now is never garbage: full collections need not scan all of Django
        try:
            super().run()
        finally:
            tracing.stop()

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection, unless another process has fewer and takes it."""
        moment = time.monotonic()
        if self._yields(moment):
            self._accept_again_at = moment + ACCEPT_PAUSE_SECONDS
            self.set_accept_enabled(False)
            return
        super().accept(listener)
        self._most_conns = max(self._most_conns, self.nr_conns)
        _counts.tell(self.age, self.nr_conns, at=moment)

    def _yields(self, moment: float) -> bool:
        """Whether this process leaves the connection to another one.

        It accepts the connection itself if the other process is too busy to accept it in time. It also accepts a
        connection that replaces one of the last second, so that callers that connect for each call don't wait.
        """
        if self.nr_conns < self._most_conns:
            return False
        fewest = _counts.fewest_elsewhere(self.age, at=moment)
        if fewest is None or self.nr_conns <= fewest:
            return False
        if moment - self._yielded_at > ACCEPT_PATIENCE_SECONDS:
            # Another connection than the last time.
            self._yields_since = moment
        if moment - self._yields_since > ACCEPT_PATIENCE_SECONDS:
            return False
        self._yielded_at = moment
        return True

    def set_accept_enabled(self, enabled: bool) -> None:
        if not enabled or time.monotonic() >= self._accept_again_at:
            super().set_accept_enabled(enabled)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        left = self._accept_again_at - time.monotonic()
        super().wait_for_and_dispatch_events(timeout=min(timeout, left) if left > 0 else timeout)

    def enqueue_req(self, conn: TConn) -> None:
        """gunicorn has a new connection, or the beginning of the next request on one."""
        if not isinstance(conn.sock, RequestSocket):
            conn.sock = RequestSocket(conn.sock)
        conn.sock.next_request(conn.parser.unreader.take_buffered() if conn.parser else b"")
        conn.sock.wait_until = time.monotonic() + HEADER_SECONDS
        self._read_header(conn)

    def _read_header(self, conn: TConn) -> None:
        if not conn.sock.has_header():
            self._wait(conn, self._read_header)
        elif _asks_whether_it_lives(conn.sock.ahead):
            self._send(conn.sock, _LIVE)
            self._close_gently(conn)
        else:
            conn.data_ready = True
            super().enqueue_req(conn)

    def _wait(self, conn: TConn, then: Callable[[TConn], None]) -> None:
        """Call ``then`` when the caller sends something or closes."""

        def resume(_sock: socket.socket) -> None:
            self._forget(conn)
            then(conn)

        self._waiting.add(conn)
        self.poller.register(conn.sock, EVENT_READ, resume)

    def _forget(self, conn: TConn) -> None:
        self.poller.unregister(conn.sock)
        self._waiting.remove(conn)

    def notify(self) -> None:
        """The main loop calls this in each round, at least once a second."""
        moment = time.monotonic()
        if moment >= self._notify_again_at:
            # Each signal is a system call, and the master needs one within its timeout.
            super().notify()
            self._notify_again_at = moment + NOTIFY_SECONDS
        if moment >= self._second_ends_at:
            self._most_conns, self._second_ends_at = self.nr_conns, moment + 1.0
        if self.alive:
            _counts.tell(self.age, self.nr_conns, at=moment)
        else:
            _counts.leave(self.age)
        for conn in [conn for conn in self._waiting if conn.sock.wait_until < moment]:
            self._forget(conn)
            self._close(conn)

    def _close(self, conn: TConn) -> None:
        self.nr_conns -= 1
        conn.close()

    def handle_request(self, req: Any, conn: TConn) -> Any:
        conn.sock.settimeout(settings.WEBHOOK_READ_SECONDS)
        conn.sock.allow(settings.WEBHOOK_READ_SECONDS)
        try:
            with conn.sock.header_with_body():
                keep = super().handle_request(req, conn)
        except TimeoutError:
            log.info("answer was not taken", path=req.path)
            return False
        conn.sock.is_answered = True
        return keep

    def handle_error(self, req: Any, client: RequestSocket, addr: Any, exc: Exception) -> None:
        # The rest of a body is meaningless after its request was answered. The caller would take a second response for
        # that to its next request.
        if not client.is_answered:
            self._send(client, unreadable.answer(exc, addr[0] if isinstance(addr, tuple) else None))

    def _send(self, sock: RequestSocket, answer: bytes) -> None:
        """Send a short answer without waiting: the poller serves all others, and a caller may read nothing."""
        sock.setblocking(False)
        try:
            sock.sendall(answer)
        except OSError as error:
            log.debug("a caller did not wait for its answer", error=str(error))

    def finish_request(self, conn: TConn, fs: "Future[Any]") -> None:
        """gunicorn closes a connection after its last answer here, and waits in the accept loop for the caller."""
        if fs.cancelled() or fs.exception():
            super().finish_request(conn, fs)
        elif not fs.result():
            self._close_gently(conn)
        elif conn.sock.ahead:
            self.enqueue_req(conn)
        else:
            super().finish_request(conn, fs)

    def _close_gently(self, conn: TConn) -> None:
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(conn)
        else:
            conn.sock.wait_until = time.monotonic() + _LINGER_SECONDS
            self._wait(conn, self._linger)

    def _linger(self, conn: TConn) -> None:
        if conn.sock.receive(1 << 16) == b"":
            self._close(conn)
        else:
            self._wait(conn, self._linger)


def _asks_whether_it_lives(received: bytes) -> bool:
    """Whether the caller has sent one ``GET /health/live`` and nothing else."""
    return received.endswith(b"\r\n\r\n") and received.startswith((b"GET /health/live ", b"GET /health/live?"))
