"""The test customer's call to PUBLIC_URL: with any server there it ends in time with a reason."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from audiences.models import Install
from audiences.operations import installs
from odp.client import ANSWER_BYTES
from tests.threads import PATIENCE, start
from tests.wire import ScriptedServer, answer, say, say_and_close
from workers import trial

pytestmark = pytest.mark.django_db(transaction=True)

BODY = b'[{"data":{}}]'


@pytest.fixture
def server(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setattr(trial, "CALL_SECONDS", 0.6)
    with ScriptedServer(say(answer(200, b'{"queued": 1}'))) as server:
        settings.PUBLIC_URL = server.url
        yield server


def test_it_is_made_with_the_token_and_without_any_other_key(server: ScriptedServer, install: Install) -> None:
    problem, words = trial._post(install, BODY)
    assert (problem, words.endswith("answered 200")) == ("", True)
    (request,) = server.requests
    head = request.partition(b"\r\n\r\n")[0].lower()
    assert install.tokens.get().secret.encode() in request
    assert b"content-type: application/json" in head
    assert b"x-api-key" not in head


def test_an_answer_without_an_end_is_given_up_at_the_deadline(server: ScriptedServer, install: Install) -> None:
    """Each byte comes well within the time that one read may take."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            connection.sendall(b" ")
            if hung_up(connection):
                return

    server.script = drip
    (call,) = start(lambda: trial._post(install, BODY))
    problem, _ = call.result(PATIENCE)
    assert (
        problem == f"{installs.webhook_url(install)} can't be reached from here: it sent no complete response in time."
    )


def hung_up(connection: socket.socket) -> bool:
    """Whether the other side has closed, after a pause of a tenth of a second."""
    connection.settimeout(0.1)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False


@pytest.mark.parametrize(
    "said",
    [
        answer(200, json.dumps({"queued": 1, "more": "x" * 2 * ANSWER_BYTES}).encode()),
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        answer(200, b"<html></html>", kind="text/html"),
        b"no http at all\r\n\r\n",
        answer(302, b"", "Location: http://127.0.0.1:9/"),
    ],
)
def test_a_response_of_another_service_is_reported_as_a_problem(
    server: ScriptedServer, install: Install, said: bytes
) -> None:
    server.script = say_and_close(said)
    problem, words = trial._post(install, BODY)
    assert problem.startswith(server.url)
    assert words == ""
