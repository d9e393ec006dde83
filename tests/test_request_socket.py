"""A caller's socket: its timeouts, although its descriptor never blocks, and what it sends at once."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from lytics_sync import request_socket
from lytics_sync.request_socket import RequestSocket
from tests.threads import PATIENCE, start


def everything(caller: socket.socket) -> bytes:
    received = b""
    while piece := caller.recv(65536):
        received += piece
    return received


def fill(sock: socket.socket) -> None:
    """Send until the kernel takes no more, although nobody reads."""
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while sock.send(b"x"):
            pass


@contextmanager
def packets() -> Iterator[tuple[RequestSocket, socket.socket]]:
    """A pair of sockets that keep the limits of what is sent at once."""
    server, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(PATIENCE)
    with client, RequestSocket(server) as taken:
        yield taken, client


def test_the_header_of_a_response_leaves_together_with_the_first_piece_of_its_body() -> None:
    with packets() as (taken, client):
        with taken.header_with_body():
            for piece in (b"header ", b"body ", b"more"):
                taken.sendall(piece)
        taken.sendall(b"next")
        assert [client.recv(100) for _ in range(3)] == [b"header body ", b"more", b"next"]


def test_a_response_without_a_body_leaves_at_the_end() -> None:
    with packets() as (taken, client):
        with taken.header_with_body():
            taken.sendall(b"header")
        assert client.recv(100) == b"header"


def test_the_answer_to_a_request_that_failed_is_not_held_back() -> None:
    with packets() as (taken, client):
        with suppress(ValueError), taken.header_with_body():
            raise ValueError
        taken.sendall(b"the answer")
        with suppress(ValueError), taken.header_with_body():
            taken.sendall(b"header of a response that broke off")
            raise ValueError
        taken.sendall(b"another")
        assert [client.recv(100) for _ in range(2)] == [b"the answer", b"another"]


def test_a_file_follows_its_header(tmp_path: Path) -> None:
    content = tmp_path / "style.css"
    content.write_bytes(b"body {}" * 100_000)
    server, client = socket.socketpair()
    with client, RequestSocket(server) as taken, content.open("rb") as file:
        (received,) = start(lambda: everything(client))
        with taken.header_with_body():
            taken.sendall(b"header")
            taken.sendfile(file)
        taken.shutdown(socket.SHUT_WR)
        assert received.result(PATIENCE) == b"header" + b"body {}" * 100_000


@pytest.mark.parametrize("seconds", [None, PATIENCE])
def test_a_large_response_reaches_a_caller_that_reads_slowly(seconds: float | None) -> None:
    content = bytes(range(256)) * 40_000
    server, client = socket.socketpair()
    with client, RequestSocket(server) as taken:
        taken.settimeout(seconds)

        def send() -> None:
            taken.sendall(content)
            taken.shutdown(socket.SHUT_WR)

        (sent,) = start(send)
        got = b""
        while piece := client.recv(50_000):
            got += piece
        assert got == content
        sent.result(PATIENCE)


def test_waiting_on_a_callers_socket_ends_with_its_timeout() -> None:
    server, client = socket.socketpair()
    with client, RequestSocket(server) as taken:
        taken.settimeout(0.05)
        taken.allow(PATIENCE)
        with pytest.raises(TimeoutError):
            taken.recv(10)
        taken.setblocking(False)
        with pytest.raises(BlockingIOError):
            taken.recv(10)
        fill(taken)
        taken.settimeout(0.05)
        for send in (taken.send, taken.sendall):
            with pytest.raises(TimeoutError):
                send(b"x")
        assert taken.gettimeout() == 0.05


def test_a_response_that_is_taken_in_part_until_its_time_is_over_ends_with_its_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when the time ends right after a part was taken."""
    seconds = count()
    monkeypatch.setattr(request_socket, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    server, client = socket.socketpair()
    with client, RequestSocket(server) as taken:
        taken.settimeout(2)
        with pytest.raises(TimeoutError):
            taken.sendall(b"x" * 10_000_000)
