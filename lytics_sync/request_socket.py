"""A caller's socket, of which the poller has read the request header before gunicorn's parser reads from it.

gunicorn only calls methods of a socket on it, so that nothing inside its parser has to be replaced.
"""

import re
import socket
import time

from gunicorn.http.errors import LimitRequestHeaders

# The most that is kept of an incomplete header. gunicorn's own limits would allow 800 KB per connection.
HEADER_BYTES = 1 << 16
_ODD_QUERY = re.compile(rb"((?:POST|PUT|PATCH) /webhooks/[\x21-\x7e]*)\?([\x20-\x7e\x80-\xff]*)( HTTP/1\.[01])")
_UNENCODED = re.compile(rb"[^\x21-\x7e]")


class RequestSocket(socket.socket):
    def __init__(self, plain: socket.socket) -> None:
        super().__init__(plain.family, plain.type, plain.proto, fileno=plain.detach())
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
        self.setblocking(False)
        try:
            return super().recv(size)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def has_header(self) -> bool:
        """Receive available bytes. Returns whether the header is complete or the connection has ended."""
        piece = self.receive(HEADER_BYTES)
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
        before, left = self.gettimeout(), max(self.body_until - time.monotonic(), 0.0001)
        self.settimeout(left if before is None else min(before, left))
        try:
            return super().recv(size, flags)
        finally:
            self.settimeout(before)


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
