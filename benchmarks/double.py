"""A stand-in for ODP that accepts and counts every item after a fixed delay: ``python -m benchmarks.double --port N``.

The sandbox checks and stores each item and would be the bottleneck, so benchmarks don't use it. Without a delay, the
double is the null server that shows how fast the sender is.
"""

import argparse
import asyncio
import json
import re
import time
from bisect import bisect_left
from collections import Counter
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

ITEM = b'"fs_user_id"'
# An identifier starts with the number of the call that it came in (see ``load``).
STAMP = re.compile(rb'"fs_user_id":\s*"(\d{9})')
ANSWER = b'{"title":"Accepted","status":202}'
SEEN, FORGET = "/double/seen", "/double/forget"


class Seen:
    """Requests since the last reset. Times are of ``time.monotonic``, which all processes share."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []
        self.items = 0
        self.last_answer = 0.0
        self.by_call: list[tuple[int, float, int]] = []

    def note(self, began: float, body: bytes) -> "Counter[bytes]":
        """Record a request, and return the number of its items by call."""
        self.arrivals.append(began)
        self.items += body.count(ITEM)
        return Counter(STAMP.findall(body))

    def answered(self, calls: "Counter[bytes]") -> None:
        self.last_answer = time.monotonic()
        self.by_call += [(int(stamp), self.last_answer, count) for stamp, count in calls.items()]

    def told(self, *, with_calls: bool) -> dict[str, Any]:
        arrivals = sorted(self.arrivals)
        return {
            "requests": len(arrivals),
            "items": self.items,
            "first": arrivals[0] if arrivals else 0.0,
            "last_answer": self.last_answer,
            "most_in_a_second": most_in_a_second(arrivals),
            "by_call": self.by_call if with_calls else [],
        }


def most_in_a_second(arrivals: list[float]) -> int:
    """The peak number of arrivals in any one-second window."""
    return max((bisect_left(arrivals, moment + 1) - n for n, moment in enumerate(arrivals)), default=0)


class Connection(asyncio.Protocol):
    """One keep-alive connection, with one request at a time."""

    def __init__(self, seen: Seen, delay: float) -> None:
        self.seen, self.delay = seen, delay
        self.buffer = bytearray()
        self.began = self.needed = 0.0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.buffer:
            self.began, self.needed = time.monotonic(), 0
        self.buffer += data
        if not self.needed:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", self.buffer[:end])
            self.needed = end + 4 + (int(length[1]) if length else 0)
        if len(self.buffer) >= self.needed:
            request = bytes(self.buffer)
            self.buffer.clear()
            self.take(request)

    def take(self, request: bytes) -> None:
        path = request.split(b" ", 2)[1].decode()
        if path.startswith("/double/"):
            if path.startswith(FORGET):
                self.seen.__init__()  # type: ignore[misc] # empties it in place
            self.answer(json.dumps(self.seen.told(with_calls=path.endswith("?calls"))).encode(), b"200 OK")
            return
        calls = self.seen.note(self.began, request) if path.startswith("/v3/profiles") else Counter()
        if self.delay:
            asyncio.get_running_loop().call_later(self.delay, self.accept, calls)
        else:
            self.accept(calls)

    def accept(self, calls: "Counter[bytes]") -> None:
        self.seen.answered(calls)
        self.answer(ANSWER, b"202 Accepted")

    def answer(self, body: bytes, status: bytes) -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        self.transport.write(head + body)


async def serve(port: int, delay: float) -> None:
    seen = Seen()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(seen, delay), "127.0.0.1", port)
    await server.serve_forever()


class Double:
    """A client of the running double."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def seen(self, *, with_calls: bool = False) -> dict[str, Any]:
        return self._ask(SEEN + ("?calls" if with_calls else ""))

    def forget(self) -> None:
        self._ask(FORGET)

    def _ask(self, path: str) -> dict[str, Any]:
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        try:
            connection.request("GET", path)
            told: dict[str, Any] = json.loads(connection.getresponse().read())
            return told
        finally:
            connection.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds between a request and its answer")
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.delay))
