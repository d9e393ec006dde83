"""gunicorn's threaded worker, made patient with slow senders: they cost a connection and no thread.

As it comes, a thread waits for five seconds on a connection that says nothing, and without end for the rest of a header
or a body: twenty slow senders would stop everything. Here a request gets a thread when all of its header is there, and
the thread waits for the body no longer than ``WEBHOOK_READ_SECONDS`` in all, and no longer than that until its caller
takes a piece of the answer. A connection that was answered for the last time is left to the poller until its caller
closes it: gunicorn waits for that in the loop that accepts others.
"""

import json
import selectors
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial
from typing import Any

import structlog
from django.conf import settings
from django.db import connection
from django.urls import resolve
from gunicorn.http import errors
from gunicorn.workers.gthread import TConn, ThreadWorker
from structlog.contextvars import bound_contextvars, get_contextvars

from audiences.receiving import rejected_calls
from lytics_sync.lenient import LenientRequest
from lytics_sync.request_id import HEADER
from workers.heap import leave_heap_alone

log = structlog.get_logger(__name__)

# From the moment a connection is opened, or its next request begins, until all of the header is there.
HEADER_SECONDS = 20.0
# Whoever sends more than this before the end of the header gets a thread for so long; nobody honest does.
_HEADER_BYTES = 1 << 16
_REST_SECONDS = 1.0
# So long, and for so much, after the last answer: closing on somebody who still sends could take the answer away.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 1 << 24
# So long for what the application has left of a body, before the connection may be used again.
_DRAIN_SECONDS = 5.0
# Read from a socket at once; a body of 300 events is ten pieces of gunicorn's own size.
_PIECE_BYTES = 1 << 17
# Longer than this, nobody is kept waiting for a database that doesn't answer.
_WARM_UP_SECONDS = 6.0


_LIVE_BODY = b'{"status": "alive"}'
_LIVE = (
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_LIVE_BODY), _LIVE_BODY)
)

# What gunicorn's parser finds wrong with a request, as a person would say it.
_FAULTS: dict[type[Exception], str] = {
    errors.InvalidHTTPVersion: "a blank in its URL, or an unknown HTTP version",
    errors.InvalidRequestMethod: "a method that is no word",
    errors.LimitRequestLine: "a URL longer than 4,094 bytes",
    errors.InvalidRequestLine: "a first line that is not one of HTTP",
    errors.LimitRequestHeaders: "too many headers, or one longer than 8,190 bytes",
    errors.ObsoleteFolding: "a header that goes on in a second line",
    errors.InvalidHeaderName: "a header name with a character that may not be in it",
    errors.InvalidHeader: "a header with a character that may not be in it, or two that contradict each other",
    errors.UnsupportedTransferCoding: "a transfer coding other than chunked",
    errors.ExpectationFailed: "an Expect header other than 100-continue",
    errors.InvalidSchemeHeaders: "proxy headers that contradict each other",
    errors.InvalidChunkSize: "a chunk without its length",
    errors.ChunkMissingTerminator: "a chunk longer than it says",
    errors.ParseException: "a part that is not HTTP",
}


_TOLD_AGAIN_SECONDS = 60.0
_told: dict[str, float] = {}


class _TimedSocket:
    """What gunicorn's parser reads from. ``until`` is when it stops waiting."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.until = 0.0
        self.in_body = False

    def recv(self, size: int) -> bytes:
        try:
            self._sock.settimeout(max(self.until - time.monotonic(), 0.0001))
            return self._sock.recv(size)
        except TimeoutError:
            if self.in_body:
                # Not the end of the body: then what follows would be read as another request.
                raise
            return b""
        finally:
            self._sock.settimeout(settings.WEBHOOK_READ_SECONDS)

    def allow(self, seconds: float) -> None:
        """From now on, so much longer and no more."""
        self.until = min(self.until, time.monotonic() + seconds)


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    pending_conns: deque[Any]

    def run(self) -> None:
        # By a thread that will serve, because its connection is its own.
        wait([self.tpool.submit(_warm_up)], timeout=_WARM_UP_SECONDS)
        leave_heap_alone()
        super().run()

    def enqueue_req(self, conn: TConn) -> None:
        if not self.cfg.is_ssl and _asks_whether_it_lives(conn):
            self._answer_live(conn)
        elif self.cfg.is_ssl or not self.alive or _has_header(conn):
            conn.data_ready = True
            conn.header_until = None
            super().enqueue_req(conn)
        else:
            self._wait_for_more(conn)

    def _answer_live(self, conn: TConn) -> None:
        """By the thread that accepts connections: the others may all wait for a database that doesn't answer."""
        try:
            conn.sock.setblocking(False)
            conn.sock.recv(_HEADER_BYTES)
            conn.sock.send(_LIVE)
        except OSError as error:
            log.debug("a caller did not wait for its answer", error=str(error))
        self._close_gently(conn)

    def _wait_for_more(self, conn: TConn) -> None:
        """Back to the poller, which calls again when there is more than now."""
        if getattr(conn, "header_until", None) is None:
            conn.header_until = time.monotonic() + HEADER_SECONDS
        conn.timeout = conn.header_until
        conn.sock.setblocking(False)
        self.pending_conns.append(conn)
        again: Callable[[Any], None] = partial(self.on_pending_socket_readable, conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, again)

    def murder_pending(self) -> None:
        """Parent code looks no further than the first that may wait on; here not all of them wait equally long."""
        self.pending_conns = deque(sorted(self.pending_conns, key=lambda conn: conn.timeout))
        super().murder_pending()

    def finish_request(self, conn: TConn, fs: Any) -> None:
        if self.cfg.is_ssl or fs.cancelled() or fs.exception() or fs.result():
            super().finish_request(conn, fs)
            return
        self._close_gently(conn)

    def _close_gently(self, conn: TConn) -> None:
        """Say that nothing more comes, and leave the connection to the poller until its caller closes it."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            conn.sock.setblocking(False)
        except OSError:
            self.nr_conns -= 1
            conn.close()
            return
        conn.timeout, conn.left = time.monotonic() + _LINGER_SECONDS, _LINGER_BYTES
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._linger, conn))

    def _linger(self, conn: TConn, sock: socket.socket) -> None:
        try:
            said = len(sock.recv(1 << 16))
        except BlockingIOError:
            return
        except OSError:
            said = 0
        conn.left -= said
        if not said or conn.left <= 0:
            self.poller.unregister(sock)
            self.pending_conns.remove(conn)
            self.nr_conns -= 1
            conn.close()

    def handle(self, conn: TConn) -> Any:
        conn.sock.setblocking(True)
        conn.init()
        if not conn.is_http2:
            conn.parser.mesg_class = LenientRequest
        unreader = getattr(conn.parser, "unreader", None)
        if unreader is not None and not conn.is_http2 and not self.cfg.is_ssl:
            if not isinstance(unreader.sock, _TimedSocket):
                unreader.sock = _TimedSocket(conn.sock)
                unreader.mxchunk = _PIECE_BYTES
            unreader.sock.in_body, unreader.sock.until = False, time.monotonic() + _REST_SECONDS
        return super().handle(conn)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """What gunicorn would answer 400, 403, 414, 417, 431, 500 or 501: Lytics may drop a batch for good on those.

        503 asks it to come again, and the front page says what was wrong, because it won't end by itself.
        """
        with bound_contextvars(request_id=uuid.uuid4().hex):
            self._answer_fault(client, addr, exc)

    def _answer_fault(self, client: socket.socket, addr: Any, exc: Exception) -> None:
        what = next((words for kind, words in _FAULTS.items() if isinstance(exc, kind)), "")
        source = addr[0] if isinstance(addr, tuple) else None
        if what:
            self._tell(what, source)
        else:
            log.error("a request failed in the server", source=source, exc_info=exc)
        rejected_calls.note(
            rejected_calls.UNREADABLE, source, what=what or f"a fault of the server ({type(exc).__name__})"
        )
        body = json.dumps({"detail": f"The request could not be read: {what or 'the server failed'}."}).encode()
        head = (
            f"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: {settings.RETRY_AFTER_SECONDS}\r\n"
            f"{HEADER}: {get_contextvars()['request_id']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            client.sendall(head.encode() + body)
        except OSError as error:
            log.debug("a caller did not wait for its answer", error=str(error))

    def _tell(self, what: str, source: str | None) -> None:
        """One line per kind of fault and ``_TOLD_AGAIN_SECONDS``: anybody can send such requests, and many."""
        moment = time.monotonic()
        if moment - _told.get(what, -_TOLD_AGAIN_SECONDS) >= _TOLD_AGAIN_SECONDS:
            _told[what] = moment
            log.warning("a request could not be read", fault=what, source=source)

    def handle_request(self, req: Any, conn: TConn) -> Any:
        timed = getattr(conn.parser.unreader, "sock", None)
        if isinstance(timed, _TimedSocket):
            timed.in_body, timed.until = True, time.monotonic() + settings.WEBHOOK_READ_SECONDS
            # This is what the application finds as wsgi.input.
            req.body.allow = timed.allow
            conn.sock.settimeout(settings.WEBHOOK_READ_SECONDS)
        try:
            return super().handle_request(req, conn)
        except TimeoutError:
            log.info("answer was not taken", path=req.path)
            return False

    def _keepalive_after(self, conn: TConn, keepalive: bool) -> bool:
        timed = getattr(conn.parser.unreader, "sock", None)
        if isinstance(timed, _TimedSocket):
            timed.allow(_DRAIN_SECONDS)
        try:
            return bool(super()._keepalive_after(conn, keepalive))
        except errors.ParseException:
            # The rest of a body makes no sense, and its call has been answered: the caller would take a second answer
            # for the one to its next call.
            return False


def _warm_up() -> None:
    """What the first call would have to load, and have PostgreSQL prepare. Without a database, as much as goes."""
    from audiences.receiving import backlog, ingest, tokens

    try:
        resolve("/webhooks/lytics/none")
        tokens.authenticate(public_id="", authorization="")
        backlog.is_too_high(0)
        ingest.rehearse()
    except Exception as error:  # noqa: BLE001 — the first call is slower then, and no worse
        log.warning("not warmed up", reason=f"{type(error).__name__}: {error}")
        connection.close()


def _has_header(conn: TConn) -> bool:
    """Whether a thread would find all of a header there, or the end of the connection."""
    kept = conn.parser.unreader.buf.getvalue() if conn.parser else b""
    conn.sock.setblocking(False)
    try:
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        here = conn.sock.recv(_HEADER_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b"\r\n\r\n" in kept.lstrip(b"\r\n")
    except OSError:
        return True
    head = (kept + here).lstrip(b"\r\n")
    # Lines that end in LF alone are refused, and at once: no more of the header will come.
    if not here or b"\r\n\r\n" in head or b"\n\n" in head or len(here) >= _HEADER_BYTES:
        return True
    # Or the poller would come back at once for what has been seen.
    conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(here) + 1)
    return False


def _asks_whether_it_lives(conn: TConn) -> bool:
    """Whether all that the caller has sent is one ``GET /health/live``."""
    if conn.parser is not None and conn.parser.unreader.buf.getvalue():
        return False
    conn.sock.setblocking(False)
    try:
        here = conn.sock.recv(_HEADER_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False
    line, _, _ = here.partition(b"\r\n")
    return bool(here.endswith(b"\r\n\r\n") and line.startswith((b"GET /health/live ", b"GET /health/live?")))
