"""HTTP/1 as ``http.client`` reads it, with what it lets through held back.

An interim answer (1xx) is not the answer, and what a server sends behind its answer is not the next one: either would
give one request the answer to another.
"""

import socket
from contextlib import suppress
from http.client import HTTPException, HTTPResponse, parse_headers
from typing import Any

SWITCHING_PROTOCOLS = 101
# A server that says "still working" once a second stays below this; more is no server to wait for.
MOST_INTERIM_ANSWERS = 50


class Response(HTTPResponse):
    """One answer. Its connection is shut when anything follows it unasked, so that it is never used again."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._socket = sock

    def begin(self) -> None:
        super().begin()
        # After a line that is no header the standard library ignores the rest, Content-Length included.
        if self.headers.defects:
            raise HTTPException("a header that is none")

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(MOST_INTERIM_ANSWERS):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status == SWITCHING_PROTOCOLS:
                raise HTTPException("another protocol, which nobody asked for")
            if status >= 200:
                return version, status, reason
            parse_headers(self.fp)
        raise HTTPException("interim answers only")

    def _close_conn(self) -> None:
        if not self.will_close and self._is_followed():
            # Past any TLS layer. The pool sees an ended connection and makes a new one.
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        super()._close_conn()  # type: ignore[misc]

    def _is_followed(self) -> bool:
        """Whether more has been received than the answer: the buffer that holds it is given up with the answer."""
        seconds = self._socket.gettimeout()
        self._socket.settimeout(0)
        try:
            return bool(self.fp.peek(1))
        except OSError:  # nothing there over TLS
            return False
        finally:
            self._socket.settimeout(seconds)
