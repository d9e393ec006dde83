"""HTTP/1 responses, stricter than ``http.client`` reads them.

An interim response (1xx) is not the response, and data that follows a response is not the next response. Taking either
for a response would give one request the response to another.
"""

import socket
from contextlib import suppress
from http.client import HTTPException, HTTPResponse, parse_headers
from typing import Any

SWITCHING_PROTOCOLS = 101
# Interim responses accepted for one request. A server that sends "still working" every second stays below this.
MOST_INTERIM_ANSWERS = 50


class Response(HTTPResponse):
    """One response. If data follows it, the connection is shut down, so that it is never used again."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._socket = sock

    def begin(self) -> None:
        super().begin()
        # The standard library stops reading headers at a malformed line, and so may miss Content-Length.
        if self.headers.defects:
            raise HTTPException("malformed header")

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(MOST_INTERIM_ANSWERS):
            version, status, reason = super()._read_status()  # type: ignore[misc] # private, and not in the stubs
            if status == SWITCHING_PROTOCOLS:
                raise HTTPException("unrequested switch of protocols")
            if status >= 200:
                return version, status, reason
            parse_headers(self.fp)
        raise HTTPException("too many interim responses")

    def _close_conn(self) -> None:
        if not self.will_close and self._is_followed():
            # On the plain socket, below TLS. The pool sees a closed connection and opens a new one.
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        super()._close_conn()  # type: ignore[misc] # private, and not in the stubs

    def _is_followed(self) -> bool:
        """Whether data was received behind the response. Only the response can check it, as it keeps the buffer."""
        seconds = self._socket.gettimeout()
        self._socket.settimeout(0)
        try:
            return bool(self.fp.peek(1))
        except OSError:  # over TLS: no data
            return False
        finally:
            self._socket.settimeout(seconds)
