"""A server that answers each request with what a test scripted, byte for byte: where a well-behaved one won't do."""

import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.threads import eventually

# Gets the connection after a request was read whole; False closes it.
Script = Callable[[socket.socket], bool | None]


# What ODP answers when it took a write.
ACCEPTED = b'{"title":"Accepted","status":202}'


def answer(status: int = 202, body: bytes = ACCEPTED, *headers: str, kind: str = "application/json") -> bytes:
    """A well-formed answer."""
    head = [f"HTTP/1.1 {status} Some words", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def say(data: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        connection.sendall(data)

    return script


def say_and_close(data: bytes) -> Script:
    def script(connection: socket.socket) -> bool:
        connection.sendall(data)
        return False

    return script


def reset(connection: socket.socket) -> bool:
    """Close so that the other side gets a reset instead of an end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    return False


class ScriptedServer:
    """``with ScriptedServer(say(answer())) as server:`` — ``server.script`` may be changed while it runs."""

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.requests: list[bytes] = []
        self.connections = 0
        self.bytes_received = 0
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close the kept-alive connections, as a server does when they are idle."""
        while self._open:
            connection = self._open.pop()
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def was_reached(self) -> None:
        """Return once a connection has been accepted."""
        eventually(lambda: self.connections)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            while request := self._request(connection):
                self.requests.append(request)
                if self.script(connection) is False:
                    break
        except OSError:
            return
        finally:
            connection.close()

    def _request(self, connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data or len(data) < _length(data):
            piece = connection.recv(65536)
            if not piece:
                return b""
            self.bytes_received += len(piece)
            data += piece
        return data


def _length(data: bytes) -> int:
    head, _, _ = data.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(head) + 4 + int(line.partition(b":")[2])
    return len(head) + 4
