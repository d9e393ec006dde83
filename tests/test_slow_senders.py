"""Senders that send a little and then nothing, or a byte now and then: more of them than there are threads."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from selectors import DefaultSelector
from typing import Any

import pytest
from django.core.wsgi import get_wsgi_application
from gunicorn.config import Config
from gunicorn.workers.gthread import TConn

from audiences.models import Install, Receipt
from lytics_sync import web_worker
from lytics_sync.request_socket import RequestSocket
from tests.messages import body, message
from tests.test_request_socket import everything, fill
from tests.threads import PATIENCE, eventually, start
from tests.web import Web, logger_of, web_of_a_module

pytestmark = pytest.mark.django_db(transaction=True)

# Three for each of the twenty threads, so that neither process has one left.
MANY = 60
SECONDS = 2


web = web_of_a_module(WEBHOOK_READ_SECONDS=str(SECONDS), BAD_TOKENS_PER_MINUTE="0")


def head(install: Install, *lines: str, token: str = "") -> bytes:
    token = token or install.tokens.get().secret
    first = f"POST /webhooks/lytics/{install.public_id} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: {token}"
    return "\r\n".join([*first, *lines, "", ""]).encode()


def call(web: Web, install: Install) -> int:
    path = f"/webhooks/lytics/{install.public_id}"
    return int(web.call("POST", path, body(message()), Authorization=install.tokens.get().secret).status)


def waiting(web: Web, stack: ExitStack, what: bytes) -> list[socket.socket]:
    callers = [stack.enter_context(web.raw()) for _ in range(MANY)]
    for caller in callers:
        caller.sendall(what)
    return callers


@pytest.mark.parametrize(
    "part",
    [b"", b"\r\n\r\n", b"P", b"POST /webhooks/ HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"POST / HTTP/1.1\r\nX: y\r\n\r"],
)
def test_an_incomplete_header_occupies_no_thread(web: Web, install: Install, part: bytes) -> None:
    """The call comes after them: with a thread for each of them it would wait for longer than its caller does."""
    with ExitStack() as stack:
        waiting(web, stack, part)
        for _ in range(4):
            assert call(web, install) == 200


def test_a_header_that_comes_in_drops_is_read_when_it_is_all_there(web: Web, install: Install) -> None:
    content = body(message())
    with web.raw() as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for byte in head(install, f"Content-Length: {len(content)}") + content:
                caller.sendall(bytes([byte]))
            answer = b""
            while not answer.endswith(b"}}"):  # header and body may come one after the other
                answer += caller.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")
    assert Receipt.objects.count() == 2


def test_requests_that_come_in_one_piece_are_answered_one_by_one(web: Web, install: Install) -> None:
    """Each is as long as what gunicorn's parser reads at a time, so that it has received nothing of the next one."""
    content = body(message()).ljust(8_192 - len(head(install, "Content-Length: 8192")))
    whole = head(install, f"Content-Length: {len(content)}") + content
    last = head(install, f"Content-Length: {len(content)}", "Connection: close") + content
    with web.raw() as caller:
        caller.sendall(whole + whole + last[:-5])
        caller.sendall(last[-5:])
        assert everything(caller).count(b"HTTP/1.1 200 ") == 3
    assert Receipt.objects.count() == 3


@pytest.mark.parametrize("lines", [["Content-Length: 5000"], ["Transfer-Encoding: chunked"]])
def test_a_slow_body_is_abandoned_and_answered_503(web: Web, install: Install, lines: list[str]) -> None:
    with ExitStack() as stack:
        callers = waiting(web, stack, head(install, *lines))
        assert call(web, install) == 200
        for caller in callers:
            answer = everything(caller)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 1\r\n" in answer
            told = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert told == {"detail": f"The body took longer than {SECONDS} seconds to come."}
    assert Receipt.objects.count() == 1
    said = eventually(web.log.read_text)
    assert "call too slow" in said
    assert "Traceback" not in said


def test_a_trickling_body_has_the_same_deadline_as_a_missing_one(web: Web, install: Install) -> None:
    with web.raw() as caller:
        caller.settimeout(0.1)
        caller.sendall(head(install, "Content-Length: 5000"))
        answer: Any = None
        for _ in range(300):
            caller.sendall(b" ")
            try:
                answer = caller.recv(65536)
                break
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 503 ")


def test_bytes_after_an_abandoned_body_are_not_read_as_a_request(web: Web, install: Install) -> None:
    """The rest of a late body would be read as the next request on its connection."""
    content = body(message())
    hidden = head(install, f"Content-Length: {len(content)}") + content
    with web.raw() as caller:
        caller.sendall(head(install, f"Content-Length: {len(hidden)}", token="wrong"))
        answer = caller.recv(65536)
        assert answer.startswith(b"HTTP/1.1 401 ")
        try:
            caller.sendall(hidden)
            rest = everything(caller)
        except (ConnectionResetError, BrokenPipeError):
            rest = b""
    assert b"HTTP/1.1 200" not in answer + rest
    assert not Receipt.objects.exists()


def test_a_client_that_keeps_its_connection_open_delays_no_other(web: Web, install: Install) -> None:
    content = body(message())
    last = head(install, f"Content-Length: {len(content)}", "Connection: close") + content
    # Calls that wait for a new audience of another call have a limit of half a second.
    assert call(web, install) == 200
    with ExitStack() as stack:
        callers = waiting(web, stack, last)
        assert call(web, install) == 200
        assert {everything(caller)[:13] for caller in callers} == {b"HTTP/1.1 200 "}


def test_a_response_is_received_although_the_body_was_not_read(web: Web, install: Install) -> None:
    """Django rejects a wrong host before our code runs, so the rest of the body isn't read."""
    for _ in range(5):
        answer = web.call("POST", f"/webhooks/lytics/{install.public_id}", b" " * 5_000_000, Host="example.com")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "17")


def test_rejected_callers_without_a_body_do_not_delay_others(web: Web, install: Install) -> None:
    with ExitStack() as stack:
        callers = waiting(web, stack, head(install, "Content-Length: 5000", token="wrong"))
        assert call(web, install) == 200
        assert {everything(caller)[:13] for caller in callers} == {b"HTTP/1.1 401 "}


def test_a_client_that_reads_no_response_occupies_a_thread_only_briefly(settings: Any) -> None:
    """Its connection takes no more bytes, so writing the response can only end with the limit."""
    settings.WEBHOOK_READ_SECONDS = 0.05
    with full_connection(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") as (worker, conn, client):
        conn.sock.has_header()
        conn.init()
        ends_without_its_caller(lambda: worker.handle_request(next(conn.parser), conn), client)


def test_the_poller_waits_for_no_caller_to_whom_it_tells_that_the_process_lives() -> None:
    with full_connection(b"GET /health/live HTTP/1.1\r\n\r\n") as (worker, conn, client):
        ends_without_its_caller(lambda: worker._read_header(conn), client)


def test_the_answer_to_an_unreadable_request_waits_for_no_caller() -> None:
    with full_connection(b"no HTTP\r\n\r\n") as (worker, conn, client):
        conn.data_ready = conn.sock.has_header()
        ends_without_its_caller(lambda: worker.handle(conn), client)


def ends_without_its_caller(task: Callable[[], object], client: socket.socket) -> None:
    (ended,) = start(task)
    try:
        assert not ended.result(PATIENCE)
    finally:
        client.close()  # ends a thread that still writes


@contextmanager
def full_connection(request: bytes) -> Iterator[tuple[web_worker.Worker, TConn, socket.socket]]:
    """A worker, and a connection with a request whose caller has not read what it was sent before."""
    config = Config()
    worker = web_worker.Worker(1, 1, [], None, 30, config, logger_of(config))
    worker.poller = DefaultSelector()
    worker.wsgi = get_wsgi_application()
    server, client = socket.socketpair()
    with client, RequestSocket(server) as taken:
        client.sendall(request)
        conn = TConn(config, taken, ("127.0.0.1", 1), ("127.0.0.1", 2))
        fill(taken)
        # As after an earlier request of the connection.
        taken.settimeout(None)
        yield worker, conn, client
    worker.poller.close()
    worker.tmp.close()
