"""The HTTP server: one thread per keep-alive connection, and one send per response."""

import random
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sandbox.odp.control import PREFIX, answer_control
from sandbox.odp.exchange import Exchange
from sandbox.odp.wire.answers import Answer, in_json
from sandbox.odp.wire.request import Request
from sandbox.odp.world import World

LARGEST_BODY = 64_000_000
PIECES_OF_A_DRIP = 10


class Gone(Exception):
    """The client closed the connection before the request was complete."""


class SandboxServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    world: World

    def __init__(self, host: str, port: int, *, open_control: bool = False) -> None:
        """Bind and listen. Set `world` before the first request is served; until then clients queue."""
        self.open_control = open_control
        super().__init__((host, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close their connection. Anything else is a bug and gets a traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def server_bind(self) -> None:
        # Skip the base class's reverse DNS lookup of the host, which can take seconds without a DNS server.
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: SandboxServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing per request; see GET /sandbox/requests."""

    def serve(self) -> None:
        try:
            if self.path.startswith(PREFIX):
                self._control()
            else:
                self._exchange()
        except (Gone, ConnectionError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = serve

    def _control(self) -> None:
        request = Request.from_head(self.command, self.path, dict(self.headers.items()))
        request.take_body(self._body())
        if self.server.open_control or self.client_address[0].startswith("127."):
            self._send(_or_bug(lambda: answer_control(self.server.world, request)))
        else:
            self._send(in_json(403, {"error": "controls answer on the loopback address only; see --open-control"}))

    def _exchange(self) -> None:
        world = self.server.world
        exchange = Exchange(world, self.command, self.path, dict(self.headers.items()))
        request = exchange.request
        status = None
        try:
            exchange.read(self._body())
            answer = self._answer(exchange)
            if answer is not None:
                status = answer.status
                self._reply(request, answer)
        finally:
            world.observer.end(request.seen, status)
            world.visibility.nudge() if world.visibility.shuffled else None

    def _answer(self, exchange: Exchange) -> Answer | None:
        """The response, or None if a fault closed the connection."""
        world, request = self.server.world, exchange.request
        fault = exchange.strike()
        then = fault.then if fault else {}
        self._wait(request, float(then.get("delay_seconds", 0)) + random.uniform(*world.options.latency))
        if then.get("close") == "before":
            self._hang_up(request)
            return None
        answer = _or_bug(exchange.answer)
        if then.get("close") == "after":
            self._hang_up(request)
            return None
        return answer

    def _hang_up(self, request: Request) -> None:
        """Close the connection without a response. `shutdown` makes the client notice at once."""
        self.server.world.observer.end(request.seen, None)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _reply(self, request: Request, answer: Answer) -> None:
        drip = float(request.fault.then.get("drip_seconds", 0)) if request.fault else 0.0
        data = self._encoded(answer)
        if request.fault and request.fault.then.get("close") == "halfway":
            self.connection.sendall(data[: -(len(answer.body) // 2)])
            self._hang_up(request)
            return
        for piece in _pieces(data[:-1]) if drip else ():
            self.connection.sendall(piece)
            self._wait(request, drip / PIECES_OF_A_DRIP)
        self.server.world.observer.end(request.seen, answer.status)
        self.connection.sendall(data[-1:] if drip else data)

    def _send(self, answer: Answer) -> None:
        self.connection.sendall(self._encoded(answer))

    def _encoded(self, answer: Answer) -> bytes:
        head = [
            f"HTTP/1.1 {answer.status} {_phrase(answer.status)}",
            f"Date: {formatdate(usegmt=True)}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
            *(f"{name}: {value}" for name, value in answer.headers),
        ]
        if self.close_connection:
            head.append("Connection: close")
        return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + answer.body

    def _wait(self, request: Request, seconds: float) -> None:
        """Sleep, and record it if the client closes the connection: the request is then no longer in flight."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            readable, _, _ = select.select([self.connection], [], [], left)
            if not readable:
                return
            if not self.connection.recv(1, socket.MSG_PEEK):
                self.server.world.observer.client_left(request.seen)
            time.sleep(max(0.0, until - time.monotonic()))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return self._chunks()
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            raise Gone
        return self._exactly(int(length))

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(100).partition(b";")[0].strip() or b"0", 16):
            body += self._exactly(size)
            self._exactly(2)
        self._exactly(2)
        return body

    def _exactly(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise Gone
        return data


def _or_bug(work: Callable[[], Answer]) -> Answer:
    """Report a bug of the sandbox as a 500 with its message, not as a dropped connection."""
    try:
        return work()
    except Exception as bug:  # noqa: BLE001 - any bug
        traceback.print_exc()
        return in_json(500, {"message": f"the sandbox itself failed: {bug!r}"})


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"


def _pieces(data: bytes) -> list[bytes]:
    size = max(1, -(-len(data) // PIECES_OF_A_DRIP))
    return [data[at : at + size] for at in range(0, len(data), size)]
