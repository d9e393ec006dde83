"""Sends calls like Lytics, as fast as possible: ``python -m benchmarks.sender --url … --authorization … --calls N``.

It uses plain sockets and prepared bodies, because an HTTP client library would take CPU time from the measured machine.
It prints its report as JSON.
"""

import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import BinaryIO
from urllib.parse import urlsplit

from benchmarks import load
from benchmarks.load import PLACE, Call, Fact

# Seconds between a transition and its message.
LATER = 5


def body(facts: Sequence[Fact]) -> str:
    return "[" + ",".join(map(message, facts)) + "]"


def message(fact: Fact) -> str:
    word, slug = ("enter" if fact.is_enter else "exit"), f"bench_{fact.audience}"
    transition = f'{{"id":"s{fact.audience}","event":"{word}","slug":"{slug}","{word}":"{moment(fact.second)}"}}'
    data = f'{{"_id":"{fact.identifier}","segment_events":[{transition}]}}'
    meta = f'{{"object":"user","subscription_id":"bench","timestamp":"{moment(fact.second + LATER)}"}}'
    return f'{{"id":"17000000000000000021","data":{data},"meta":{meta}}}'


def moment(second: int) -> str:
    """A time in Lytics' format. The stamp replaces the nanoseconds later."""
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{PLACE}Z"


def prepare(url: str, authorization: str) -> Callable[[Sequence[list[Fact]]], Callable[[], Call]]:
    parts = urlsplit(url)
    place = PLACE.encode()

    def connect(batches: Sequence[list[Fact]]) -> Callable[[], Call]:
        requests = []
        for facts in batches:
            content = body(facts).encode()
            head = (
                f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: {authorization}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            )
            requests.append(head.encode() + content)

        def caller() -> Call:
            line = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=60)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answers = line.makefile("rb")

            def call(stamp: int) -> None:
                line.sendall(requests[stamp % len(requests)].replace(place, b"%09d" % stamp))
                _read_answer(answers)

            return call

        return caller

    return connect


def _read_answer(answers: BinaryIO) -> None:
    """Read exactly one response, so that the next one starts at the next byte."""
    status, length, in_chunks = _read_line(answers), 0, False
    while header := _read_line(answers).lower():
        name, _, value = header.partition(b":")
        if name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            in_chunks = value.strip() == b"chunked"
    content = _read_chunks(answers) if in_chunks else _read(answers, length)
    if not status.partition(b" ")[2].startswith(b"2"):
        raise ConnectionError(f"answered {status.decode()}: {content[:300]!r}")


def _read_chunks(answers: BinaryIO) -> bytes:
    content = b""
    while size := int(_read_line(answers).partition(b";")[0], 16):
        content += _read(answers, size)
        _read_line(answers)
    while _read_line(answers):  # trailers
        pass
    return content


def _read(answers: BinaryIO, size: int) -> bytes:
    content = answers.read(size)
    if len(content) < size:
        raise ConnectionError("hung up")
    return content


def _read_line(answers: BinaryIO) -> bytes:
    line = answers.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("hung up")
    return line.rstrip()


if __name__ == "__main__":
    parser = load.parser(__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--authorization", default="Bearer none")
    options = parser.parse_args()
    load.tell(load.drive(load.load_of(options), prepare(options.url, options.authorization)))
