"""A caller's socket, of which the poller has read the request header before gunicorn's parser reads from it.

gunicorn only calls methods of a socket on it, so that nothing inside its parser has to be replaced.

Each system call gives up Python's global lock, and with other busy threads it takes a context switch to get it back.
So this socket makes few: it waits only when the kernel has or takes nothing, and sends the response header together
with the first piece of the body.
"""

import math
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from gunicorn.http.errors import LimitRequestHeaders

# Bytes read at once before the header is complete. What it gets of a body is copied several times.
_PIECE_BYTES = 1 << 14
# The most that is kept of an incomplete header. gunicorn's own limits would allow 800 KB per connection.
HEADER_BYTES = 1 << 16
_ODD_QUERY = re.compile(rb"((?:POST|PUT|PATCH) /webhooks/[\x21-\x7e]*)\?([\x20-\x7e\x80-\xff]*)( HTTP/1\.[01])")
_UNENCODED = re.compile(rb"[^\x21-\x7e]")


Result = TypeVar("Result")


class RequestSocket(socket.socket):
    """Its timeout works as that of any socket, while the kernel's descriptor always stays non-blocking."""

    def __init__(self, plain: socket.socket) -> None:
        super().__init__(plain.family, plain.type, plain.proto, fileno=plain.detach())
        super().setblocking(False)
        # The timeout in seconds: None to wait without limit, 0 not to wait.
        self._seconds: float | None = None
        # While it is set, the next bytes to send are held back until more are sent.
        self._holds_back = False
        self._held = b""
        # Received from the caller, and not yet given to the parser.
        self.ahead = b""
        # The moment of time.monotonic() until which the rest of the body may come; none is read without it.
        self.body_until: float | None = None
        # The moment until which the poller keeps the connection while nothing comes.
        self.wait_until = 0.0
        self.is_answered = False
        self.is_too_long = False

    def next_request(self, left: bytes) -> None:
        """Begin with ``left``, which the parser has received and not used."""
        self.ahead, self.body_until, self.is_answered = left + self.ahead, None, False

    def receive(self, size: int) -> bytes | None:
        """Received bytes without waiting: None for none yet, empty at the end of the connection."""
        try:
            return super().recv(size)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def has_header(self) -> bool:
        """Receive available bytes. Returns whether the header is complete or the connection has ended."""
        piece = self.receive(_PIECE_BYTES)
        self.ahead = (self.ahead + (piece or b"")).lstrip(b"\r\n")
        # gunicorn refuses lines that end in LF alone.
        if b"\r\n\r\n" not in self.ahead and b"\n\n" not in self.ahead:
            self.is_too_long = len(self.ahead) >= HEADER_BYTES
            return piece == b"" or self.is_too_long
        line, end, rest = self.ahead.partition(b"\r\n")
        self.ahead = with_encoded_query(line) + end + rest
        return True

    def allow(self, seconds: float) -> None:
        """Let the rest of the body take ``seconds`` from now, or less if less was allowed before."""
        moment = time.monotonic() + seconds
        self.body_until = min(self.body_until or moment, moment)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self.ahead or self.body_until is None:
            if not self.ahead and self.is_too_long:
                raise LimitRequestHeaders(f"more than {HEADER_BYTES} bytes")
            piece, self.ahead = self.ahead[:size], self.ahead[size:]
            return piece
        left = max(self.body_until - time.monotonic(), 0.0001)
        seconds = left if self._seconds is None else min(self._seconds, left)
        return self._within(seconds, select.POLLIN, super().recv, size, flags)

    def gettimeout(self) -> float | None:
        return self._seconds

    def settimeout(self, value: float | None) -> None:
        self._seconds = value

    def setblocking(self, flag: bool) -> None:
        self._seconds = None if flag else 0.0

    def send(self, data: Any, flags: int = 0) -> int:
        return self._within(self._seconds, select.POLLOUT, super().send, data, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        if self._holds_back:
            self._holds_back, self._held = False, bytes(data)
            return
        if self._held:
            data, self._held = self._held + bytes(data), b""
        left = memoryview(data)
        until = None if self._seconds is None else time.monotonic() + self._seconds
        while left:
            seconds = None if until is None else max(until - time.monotonic(), 0.0)
            sent = self._within(seconds, select.POLLOUT, super().send, left, flags)
            left = left[sent:]

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        self._send_held()
        return super().sendfile(file, offset, count)

    @contextmanager
    def header_with_body(self) -> Iterator[None]:
        """Send the first bytes, a response's header, together with those after them, or at the end."""
        self._holds_back = True
        try:
            yield
            self._send_held()
        finally:
            self._holds_back, self._held = False, b""

    def _send_held(self) -> None:
        self._holds_back = False
        if self._held:
            self.sendall(b"")

    def _within(self, seconds: float | None, event: int, call: Callable[..., Result], *values: Any) -> Result:
        """``call``, which doesn't wait, as soon as the kernel can do it. Raises ``TimeoutError`` after ``seconds``."""
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                return call(*values)
            except BlockingIOError:
                if self._seconds == 0.0:
                    raise
                poller = select.poll()
                poller.register(self, event)
                milliseconds = None if until is None else math.ceil(max(until - time.monotonic(), 0.0) * 1000)
                if not poller.poll(milliseconds):
                    raise TimeoutError("timed out") from None


def with_encoded_query(line: bytes) -> bytes:
    """A request line with blanks and bytes of a webhook's query percent-encoded; any other line as it is.

    Proxies and job forms send such queries, and the query means nothing here. A blank anywhere else could hide another
    request line, so gunicorn still rejects it.
    """
    match = _ODD_QUERY.fullmatch(line)
    if match is None or b"HTTP/" in match[2]:
        return line
    query = _UNENCODED.sub(lambda byte: b"%%%02X" % byte[0][0], match[2])
    return match[1] + b"?" + query + match[3]
