"""Any bytes from a server, in any pieces: each call ends in one Answer, and the next call gets its own.

Hypothesis composes responses from correct, nearly correct and wrong pieces, and from arbitrary bytes.
"""

import gzip
import json
import os
import re
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from odp.client import OUT_OF_TIME, Client
from odp.outcomes import Answer, Outcome
from outgoing.retry_after import LONGEST_RETRY_AFTER
from tests.threads import PATIENCE
from tests.wire import ACCEPTED, ScriptedServer, answer

# Enough for a server on this machine to say all it will; a hanging one costs as much per example.
SECONDS = 2.0

LINES = (
    *(b"HTTP/1.1 202 Accepted", b"HTTP/1.1 200 OK", b"HTTP/1.1 400 Bad Request", b"HTTP/1.1 429 Slow", b"HTTP/1.1 503"),
    *(b"HTTP/1.1 100 Continue", b"HTTP/1.1 103 Early Hints", b"HTTP/1.1 101 Switching", b"HTTP/1.1 204 None"),
    *(b"HTTP/1.1 099 X", b"HTTP/1.1 600 X", b"HTTP/1.1 999 X", b"HTTP/1.1 20 X", b"HTTP/1.1 2020 X", b"HTTP/1.1 -1 X"),
    *(
        b"HTTP/0.9 200 OK",
        b"HTTP/1.0 202 OK",
        b"HTTP/2 200",
        b"HTTP/1.1  202  OK",
        b"http/1.1 202 ok",
        b"ICY 200 OK",
        b"",
    ),
)
HEADERS = (
    *(
        b"Content-Length: 33",
        b"Content-Length: 0",
        b"Content-Length: 5",
        b"Content-Length: 99999",
        b"Content-Length: -1",
    ),
    *(b"Content-Length: x", b"Content-Length: 33, 33", b"Content-Length: 9" + b"9" * 30),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: gzip, chunked"),
    *(b"Content-Encoding: gzip", b"Content-Encoding: deflate", b"Content-Encoding: br", b"Content-Encoding: zstd"),
    *(b"Content-Encoding: gzip, gzip, gzip", b"Content-Type: application/json", b"Content-Type: text/html"),
    *(b"Content-Type: text/html; charset=utf-16", b"Connection: close", b"Connection: keep-alive", b"Connection: \xff"),
    *(b"Retry-After: 3", b"Retry-After: -0000", b"Retry-After: 1e400", b"Retry-After: " + b"9" * 500),
    *(b"Retry-After: Fri, 31 Dec 99999999999999999999 23:59:59 GMT", b"Retry-After: Sunday, 06-Nov-94 08:49:37 GMT"),
    *(b"Retry-After: Sun Nov  6 08:49:37 1994", b"Retry-After: 1, 2", b"Retry-After: nan", b"Retry-After: \xff"),
    *(
        b"Location: http://127.0.0.1:1/",
        b"Set-Cookie: a=b",
        b" folded",
        b"no colon",
        b": empty",
        b"X: " + b"y" * 70_000,
    ),
    *(b"Trailer: X", b"X" * 200 + b": 1", b"\x00: 1"),
)
BODIES = (
    *(ACCEPTED, b"{}", b"[]", b"null", b"", b"<html>", b'{"status": 500}', b'{"detail": {"invalids": [{"event": 0}]}}'),
    *(
        gzip.compress(ACCEPTED),
        gzip.compress(bytes(2_000_000)),
        gzip.compress(ACCEPTED)[:-5],
        b"\x28\xb5\x2f\xfd",
        b"\xff\xfe",
    ),
    *(
        b"21\r\n" + ACCEPTED + b"\r\n0\r\n\r\n",
        b"zz\r\nx",
        b"5\r\nab",
        b"0\r\nX: y\r\n\r\n",
        b"ffffffffffffffff\r\nx",
        b"-1\r\n",
    ),
    *(b"[" * 3_000, answer(202), answer(400, b'{"title":"for the next one"}'), b"\x00" * 50),
)

pieces = st.one_of(
    st.sampled_from(LINES).map(lambda line: line + b"\r\n"),
    st.sampled_from(HEADERS).map(lambda header: header + b"\r\n"),
    st.just(b"\r\n"),
    st.sampled_from(BODIES),
    st.binary(max_size=40),
)
whole = st.builds(
    lambda before, line, headers, body, after: b"".join(
        [before, line, b"\r\n", *(header + b"\r\n" for header in headers), b"\r\n", body, after]
    ),
    st.sampled_from(
        [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 3, b"\r\n"]
    ),
    st.sampled_from(LINES),
    st.lists(st.sampled_from(HEADERS), max_size=4),
    st.sampled_from(BODIES),
    st.sampled_from([b"", b"\r\n", answer(202), answer(400, b'{"title":"for the next one"}'), b"x"]),
)
flood = st.integers(90, 400).map(lambda many: b"HTTP/1.1 202 OK\r\n" + b"X: y\r\n" * many + b"\r\n")
anything = st.one_of(whole, st.lists(pieces, max_size=8).map(b"".join), flood, st.binary(max_size=300))


FIRST, SECOND = b"[]", b"[1]"
ITS_OWN = {"title": "Accepted", "status": 202, "of": "the second request"}


class Server(ScriptedServer):
    """Answers each request by its body. A busy machine may read the first request after its deadline, or never."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.data, self.closes = b"", False
        self._read = threading.local()

    def _request(self, connection: socket.socket) -> bytes:
        self._read.request = super()._request(connection)
        return bytes(self._read.request)

    def _answer(self, connection: socket.socket) -> bool | None:
        if self._read.request.endswith(b"\r\n\r\n" + FIRST):
            connection.sendall(self.data)
            return False if self.closes else None
        connection.sendall(answer(202, json.dumps(ITS_OWN).encode()))
        return None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


def assert_says_something(got: Answer) -> None:
    """To a person: words, and none of Python's or the operating system's."""
    if got.outcome is Outcome.DELIVERED:
        return
    words = re.sub(r"^\d{3}: ", "", got.reason)
    assert re.search(r"[^\W\d_]{3,}", words), got.reason
    assert not re.search(r"\w(Error|Exception)\b|Errno|object at 0x|Traceback|^b'", words), got.reason


@hypothesis_settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")))
@given(anything, st.booleans())
@example(b"HTTP/1.1 103 Early Hints\r\n\r\n" + answer(202), False)
@example(b"HTTP/1.1 202 OK\r\nContent-Length: 0\r\n\r\n" + answer(202), False)
@example(b"HTTP/1.1 413 \r\nContent-Length: 0\r\n\r\n", False)
@example(b"HTTP/1.1 103 \r\n\r\n", True)
@example(b"", True)
def test_any_bytes_give_one_answer_and_the_next_call_gets_its_own(server: Server, data: bytes, closes: bool) -> None:
    server.data, server.closes = data, closes
    client = Client(host=server.url, api_key="public.secret")
    first = client.call("POST", "/v3/profiles", body=FIRST, seconds=SECONDS if closes else 0.2)
    assert isinstance(first, Answer)
    assert_says_something(first)
    assert first.retry_after is None or 0 <= first.retry_after <= LONGEST_RETRY_AFTER
    assert first.outcome is not Outcome.DELIVERED or first.json is not None
    second = client.call("POST", "/v3/profiles", body=SECOND, seconds=PATIENCE)
    assert (second.outcome, second.json) == (Outcome.DELIVERED, ITS_OWN), (first, second)


def test_a_server_that_says_nothing_more_ends_at_the_deadline(server: Server) -> None:
    """The invariant itself: the deadline is over the whole call, however far the answer had come."""
    for data in (b"", b"HTTP/1.1 202", b"HTTP/1.1 202 OK\r\nContent-Length: 33\r\n\r\n{", b"HTTP/1.1 103 x\r\n\r\n"):
        server.data, server.closes = data, False
        got = Client(host=server.url, api_key="public.secret").call("POST", "/v3/profiles", body=FIRST, seconds=0.2)
        assert (got.outcome, got.reason) == (Outcome.RETRY_LATER, OUT_OF_TIME)
