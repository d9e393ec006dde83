"""HTTP to ODP, against servers that misbehave byte by byte: one request, one answer, in time, and no exception."""

import gzip
import json
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odp import client as odp_client
from odp import redact
from odp.client import ANSWER_BYTES, EXCERPT, NO_CONNECTION, OUT_OF_TIME, Client
from odp.mechanisms import limit_of
from odp.outcomes import Answer, Outcome
from outgoing import network_errors
from outgoing.deadline import TooLateError, _Watch, deadline
from tests.certificates import self_signed, tls_server
from tests.threads import PATIENCE, eventually
from tests.wire import Script, ScriptedServer, answer, reset, say, say_and_close

PROFILES = "/v3/profiles"
# What a call may take where the server is slow on purpose, and where it isn't.
SHORT, LONG = 0.3, 20.0


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(say(answer())) as running:
        yield running


def post(server: ScriptedServer, script: Script | None = None, *, seconds: float = LONG, body: bytes = b"[]") -> Answer:
    server.script = script or server.script
    return client(server).call("POST", PROFILES, body=body, seconds=seconds)


def client(server: ScriptedServer) -> Client:
    return Client(host=server.url, api_key="public.secret")


# --- Good manners ---------------------------------------------------------------------------------------------


def test_a_write_goes_out_as_it_is_with_the_key_in_its_header(server: ScriptedServer) -> None:
    got = post(server, say(answer(202, b'{"title":"Accepted"}')), body='[{"é": 1}]'.encode())
    assert (got.outcome, got.status, got.json, got.reason) == (Outcome.DELIVERED, 202, {"title": "Accepted"}, "")
    (request,) = server.requests
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v3/profiles HTTP/1.1"
    assert {"x-api-key: public.secret", "Content-Type: application/json"} <= set(lines)
    assert not any(line.lower().startswith(("authorization:", "cookie:")) for line in lines)
    assert body == '[{"é": 1}]'.encode()


def test_a_read_has_no_body_and_says_so(server: ScriptedServer) -> None:
    client(server).call("GET", "/v3/segments/x", seconds=LONG)
    (request,) = server.requests
    assert request.startswith(b"GET /v3/segments/x HTTP/1.1\r\n")
    assert b"content-type" not in request.lower()
    assert request.endswith(b"\r\n\r\n")


def test_one_connection_serves_many_calls(server: ScriptedServer) -> None:
    for _ in range(3):
        assert post(server).outcome is Outcome.DELIVERED
    assert (server.connections, len(server.requests)) == (1, 3)


def test_an_idle_connection_closed_by_the_server_is_reopened(server: ScriptedServer) -> None:
    post(server)
    server.hang_up()
    assert post(server).outcome is Outcome.DELIVERED
    assert server.connections == 2


def test_the_environment_has_no_say_in_where_requests_go(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    assert post(server).outcome is Outcome.DELIVERED


def test_which_rate_limit_a_path_counts_against() -> None:
    paths = ["/v3/profiles", "/v3/lists", "/v3/lists/subscriptions", "/v3/events", "/v3/segments/profiles"]
    assert [limit_of(path) for path in paths] == ["profiles", "lists", "lists", "", ""]


# --- What comes back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "outcome", "fixed_backoff"),
    [
        (200, Outcome.DELIVERED, False),
        (202, Outcome.DELIVERED, False),
        (400, Outcome.REJECTED, False),
        (401, Outcome.UNAUTHORISED, True),
        (403, Outcome.UNAUTHORISED, True),
        (404, Outcome.RETRY_LATER, True),
        (413, Outcome.REJECTED, False),
        (429, Outcome.RETRY_LATER, False),
        (500, Outcome.RETRY_LATER, False),
        (503, Outcome.RETRY_LATER, False),
    ],
)
def test_a_status_becomes_an_outcome(
    server: ScriptedServer, status: int, outcome: Outcome, fixed_backoff: bool
) -> None:
    body = b'{"title":"Accepted"}' if status < 300 else b'{"message":"words"}'
    got = post(server, say(answer(status, body)))
    assert (got.outcome, got.status, got.fixed_backoff) == (outcome, status, fixed_backoff)
    assert got.reason == ("" if outcome is Outcome.DELIVERED else f"{status}: words")
    assert got.too_large == (status == 413)


def test_named_items_and_retry_after_are_passed_on(server: ScriptedServer) -> None:
    body = json.dumps({"detail": {"invalids": [{"event": 1, "message": "bad"}]}}).encode()
    assert post(server, say(answer(400, body))).named == {1: "bad"}
    assert post(server, say(answer(429, b"{}", "Retry-After: 7"))).retry_after == 7.0


def test_items_are_named_only_in_rejections(server: ScriptedServer) -> None:
    body = json.dumps({"detail": {"invalids": [{"event": 1, "message": "bad"}]}}).encode()
    assert post(server, say(answer(503, body))).named == {}


@pytest.mark.parametrize(
    ("path", "body", "outcome", "fixed_backoff"),
    [
        (PROFILES, b"", Outcome.RETRY_LATER, True),
        (PROFILES, b"{}", Outcome.RETRY_LATER, True),
        (PROFILES, b"[]", Outcome.RETRY_LATER, True),
        (PROFILES, b'"OK"', Outcome.RETRY_LATER, True),
        (PROFILES, b"Service is under maintenance", Outcome.RETRY_LATER, True),
        (PROFILES, b'{"status":"ok"}', Outcome.RETRY_LATER, True),
        (PROFILES, b'{"title":"Accepted","status":202,"error":"quota"}', Outcome.RETRY_LATER, True),
        (PROFILES, b'{"title":"Accepted","status":202,"errors":["bad"]}', Outcome.REJECTED, False),
        (PROFILES, b'{"title":"Bad Request","status":400}', Outcome.REJECTED, False),
        (PROFILES, b'{"title":"Forbidden","status":403}', Outcome.UNAUTHORISED, True),
        (PROFILES, b'{"status":302}', Outcome.RETRY_LATER, True),
        (PROFILES, b'{"title":"Unavailable","status":503}', Outcome.RETRY_LATER, False),
        (PROFILES, b'{"title":"Accepted","status":-1}', Outcome.RETRY_LATER, True),
        (PROFILES, b'{"title":"Accepted","status":100}', Outcome.RETRY_LATER, True),
        (PROFILES, b'{"status":100}', Outcome.RETRY_LATER, True),
        (PROFILES, b'{"results":[{"status":202}]}', Outcome.RETRY_LATER, True),
        (PROFILES, b'{"detail":{"status":202}}', Outcome.DELIVERED, False),
        (PROFILES, b'{"title":"Accepted","status":202}', Outcome.DELIVERED, False),
        (PROFILES, b'\xef\xbb\xbf{"title":"Accepted","status":202}', Outcome.DELIVERED, False),
        (PROFILES, b'{"title":"Accepted","status":400,"status":202}', Outcome.RETRY_LATER, True),
        (PROFILES, b'{"title":"Accepted","detail":{"errors":["bad"],"errors":[]}}', Outcome.RETRY_LATER, True),
        (PROFILES, b'{"title":"Partial Content","status":206}', Outcome.RETRY_LATER, True),
        ("/v3/events", b"OK", Outcome.RETRY_LATER, True),
        ("/v3/lists/subscriptions", b'{"updates":[{"list_id":"x"}]}', Outcome.DELIVERED, False),
        ("/v3/lists/subscriptions", b'{"updates":[]}', Outcome.RETRY_LATER, True),
        ("/v3/lists/subscriptions", b'{"title":"Accepted","updates":[]}', Outcome.RETRY_LATER, True),
        ("/v3/lists/subscriptions", b'{"title":"Bad Request","updates":[{"list_id":"x"}]}', Outcome.RETRY_LATER, True),
        ("/v3/graphql", b'{"hello":1}', Outcome.RETRY_LATER, True),
        ("/v3/segments/x", b"OK", Outcome.RETRY_LATER, True),
    ],
)
def test_a_2xx_is_an_acceptance_only_as_odp_documents_it(
    server: ScriptedServer, path: str, body: bytes, outcome: Outcome, fixed_backoff: bool
) -> None:
    server.script = say(answer(200, body, kind="text/plain"))
    got = client(server).call("POST", path, body=b"[]", seconds=LONG)
    assert (got.outcome, got.fixed_backoff) == (outcome, fixed_backoff)
    assert bool(got.reason) == (outcome is not Outcome.DELIVERED)


@pytest.mark.parametrize("inside", ["", "detail"])
@pytest.mark.parametrize(
    "more",
    [
        {"success": False},
        {"success": "false"},
        {"accepted": 0},
        {"ok": "No"},
        {"status": "failed"},
        {"status": "500"},
        {"status": 503.0},
        {"status": False},
        {"state": "REJECTED"},
        {"result": "Error: quota"},
        {"outcome": "partial failure"},
        {"failed": 3},
        {"status": "503 Service Unavailable"},
        {"status": "partial_success"},
        {"state": "not accepted"},
        {"statusCode": 500},
        {"Status": 500},
        {"code": 400},
        {"http_status": "503"},
        {"succeeded": False},
        {"isSuccess": "no"},
        {"accepted_count": 0},
        {"error_code": "QUOTA"},
        {"errorMessage": "quota"},
        {"exception": "Timeout"},
        {"partial": True},
        {"message": "Partial failure"},
    ],
    ids=str,
)
def test_however_a_2xx_says_that_it_failed_it_is_no_acceptance(
    server: ScriptedServer, more: dict[str, Any], inside: str
) -> None:
    body = {"title": "Accepted", "status": 202}
    got = post(server, say(answer(202, json.dumps({**body, inside: more} if inside else {**body, **more}).encode())))
    assert got.outcome is not Outcome.DELIVERED
    assert got.reason


@pytest.mark.parametrize(
    ("more", "outcome", "words"),
    [
        ({"failed_count": 2}, Outcome.RETRY_LATER, "failed_count 2"),
        ({"numErrors": 1}, Outcome.RETRY_LATER, "numErrors 1"),
        ({"hasErrors": True}, Outcome.RETRY_LATER, "hasErrors"),
        ({"partial_failure": "yes"}, Outcome.RETRY_LATER, "partial_failure"),
        ({"unsuccessful": 3}, Outcome.RETRY_LATER, "unsuccessful 3"),
        ({"Errors": {"0": "x"}}, Outcome.RETRY_LATER, "Errors"),
        ({"rejected\x00": 1}, Outcome.RETRY_LATER, "rejected 1"),
        ({"results": [{"ok": True}, {"ok": False}]}, Outcome.RETRY_LATER, "failure"),
        ({"results": [{"status": 202}, {"status": 503, "message": "busy"}]}, Outcome.RETRY_LATER, "503: busy"),
        ({"results": [{"status": 202}, {"status": 400, "message": "no such"}]}, Outcome.REJECTED, "400: no such"),
        ({"message": "quota", "failed": 1, "results": [{"status": 204}]}, Outcome.RETRY_LATER, "quota"),
        (
            {"results": [{"statusCode": 202}, {"statusCode": 400, "message": "no such"}]},
            Outcome.REJECTED,
            "400: no such",
        ),
        ({"failedRecords": [{"index": 0}]}, Outcome.REJECTED, "failedRecords"),
        ({"unknown_fields": ["lytics_x"]}, Outcome.REJECTED, "unknown_fields"),
        ({"validationErrors": ["x"]}, Outcome.REJECTED, "validationErrors"),
        ({"detail": [{"event": 0}]}, Outcome.REJECTED, "detail"),
        ({"updates": [{"list_id": "x", "errors": ["no"]}]}, Outcome.REJECTED, "errors"),
        ({"results": [{"errors": "no"}, {"errors": ["no"]}, {"errors": "such"}]}, Outcome.REJECTED, "errors"),
    ],
    ids=str,
)
def test_a_2xx_that_reports_the_failure_of_an_item_is_no_acceptance(
    server: ScriptedServer, more: dict[str, Any], outcome: Outcome, words: str
) -> None:
    body = json.dumps({"title": "Accepted", "status": 202, **more}).encode()
    for path in (PROFILES, "/v3/lists/subscriptions"):
        server.script = say(answer(202, body))
        got = client(server).call("POST", path, body=b"[]", seconds=LONG)
        assert (got.outcome, words in got.reason) == (outcome, True)


def test_a_definition_that_is_read_may_contain_any_field(server: ScriptedServer) -> None:
    server.script = say(answer(200, b'{"skipped": 1, "definition": {"status": 500, "error": "x", "ok": false}}'))
    assert client(server).call("GET", "/v3/segments/x", seconds=LONG).outcome is Outcome.DELIVERED


@pytest.mark.parametrize(
    "more",
    [
        {"status": "202"},
        {"success": True},
        {"success": "true"},
        {"status": "accepted"},
        {"status": "202 Accepted", "code": 0, "statusCode": 202, "message": "Accepted", "detail": "Queued, 2 items"},
        {"status": "pending", "accepted_count": 2, "is_valid": True, "error_code": None, "errorMessage": ""},
        {"errors": [], "failed": False, "rejected": {}},
        {"failed_count": "0", "Errors": None, "skipped": 0, "summary": {"failed": " No", "error": "none"}},
    ],
    ids=str,
)
def test_a_2xx_that_says_that_it_succeeded_is_an_acceptance(server: ScriptedServer, more: dict[str, Any]) -> None:
    body = {"title": "Accepted", "status": 202, **more}
    assert post(server, say(answer(202, json.dumps(body).encode()))).outcome is Outcome.DELIVERED


def test_only_a_write_of_memberships_may_be_accepted_without_a_body(server: ScriptedServer) -> None:
    server.script = say(answer(200, b""))
    asking = Client(host=server.url, api_key="k", empty_is_accepted=True)
    got = [asking.call("POST", path, body=b"[]", seconds=LONG) for path in (PROFILES, "/v3/segments/x", "/v3/graphql")]
    assert [one.outcome for one in got] == [Outcome.DELIVERED, Outcome.RETRY_LATER, Outcome.RETRY_LATER]


def test_a_body_that_can_not_be_unpacked_is_not_accepted_as_an_empty_one(server: ScriptedServer) -> None:
    server.script = say(answer(200, b"oops", "Content-Encoding: gzip"))
    asking = Client(host=server.url, api_key="k", empty_is_accepted=True)
    got = asking.call("POST", PROFILES, body=b"[]", seconds=LONG)
    assert (got.outcome, got.fixed_backoff, "unpacked" in got.reason) == (Outcome.RETRY_LATER, True, True)


def test_items_named_in_a_2xx_are_rejected(server: ScriptedServer) -> None:
    body = json.dumps({"title": "Accepted", "status": 202, "detail": {"invalids": [{"event": 1, "message": "bad"}]}})
    got = post(server, say(answer(202, body.encode())))
    assert (got.outcome, got.named) == (Outcome.REJECTED, {1: "bad"})


@pytest.mark.parametrize("status", [100, 102, 103])
def test_an_interim_answer_is_not_the_answer(server: ScriptedServer, status: int) -> None:
    interim = f"HTTP/1.1 {status} Wait\r\nLink: </a>\r\n\r\n".encode()
    assert post(server, say(interim * 3 + answer())).outcome is Outcome.DELIVERED
    got = post(server, say(interim + answer(400, b'{"message":"words"}')))
    assert (got.outcome, got.status) == (Outcome.REJECTED, 400)
    assert server.connections == 1


@pytest.mark.parametrize("interim", [b"HTTP/1.1 101 Switching\r\n\r\n", b"HTTP/1.1 102 Wait\r\n\r\n" * 50])
def test_another_protocol_and_endless_interim_answers_make_no_answer(server: ScriptedServer, interim: bytes) -> None:
    got = post(server, say(interim + answer()))
    assert (got.outcome, got.status) == (Outcome.RETRY_LATER, None)


def test_an_answer_behind_the_answer_is_nobodys(server: ScriptedServer) -> None:
    assert post(server, say(answer() + answer(400))).outcome is Outcome.DELIVERED
    assert post(server, say(answer())).outcome is Outcome.DELIVERED
    assert server.connections == 2


def test_an_answer_that_comes_while_permission_is_waited_for_is_nobodys(server: ScriptedServer) -> None:
    post(server)

    def permission(path: str, until: float) -> None:
        server._open[0].sendall(answer(400))

    asking = Client(host=server.url, api_key="k", permission=permission)
    assert asking.call("POST", PROFILES, body=b"[]", seconds=LONG).outcome is Outcome.DELIVERED
    assert server.connections == 2


def test_an_answer_that_comes_before_the_first_request_of_a_connection_is_nobodys(server: ScriptedServer) -> None:
    def permission(path: str, until: float) -> None:
        server.was_reached()
        server._open[0].sendall(answer())

    got = Client(host=server.url, api_key="k", permission=permission).call("POST", PROFILES, body=b"[]", seconds=LONG)
    assert (got.outcome, got.sent) == (Outcome.RETRY_LATER, False)


def test_an_answer_that_comes_before_the_first_request_of_a_reopened_connection_is_nobodys(
    server: ScriptedServer,
) -> None:
    def permission(path: str, until: float) -> None:
        if server.requests:
            eventually(lambda: server._open)
            server._open[0].sendall(answer(400))

    client = Client(host=server.url, api_key="k", permission=permission)
    assert client.call("POST", PROFILES, body=b"[]", seconds=LONG).outcome is Outcome.DELIVERED
    server.hang_up()
    got = client.call("POST", PROFILES, body=b"[]", seconds=LONG)
    assert (got.outcome, got.sent) == (Outcome.RETRY_LATER, False)


@pytest.mark.parametrize(
    "data",
    [b"HTTP/1.1 abc Words\r\n\r\n", b"HTTP/1.1 202 A\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabcde\r\n0\r\n\r\n"],
)
def test_a_number_that_is_none_in_a_response_is_not_blamed_on_the_address(server: ScriptedServer, data: bytes) -> None:
    got = post(server, say(data))
    assert (got.outcome, "address" in got.reason) == (Outcome.RETRY_LATER, False)


def test_another_protocol_is_no_answer(server: ScriptedServer) -> None:
    got = post(server, say(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"))
    assert (got.outcome, got.status) == (Outcome.RETRY_LATER, None)


def test_a_redirect_is_not_unpacked(server: ScriptedServer) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    tracemalloc.start()
    post(server, say(answer(302, bomb, "Location: /x", "Content-Encoding: gzip")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize("body", [b"", b" ", b"\x00\x01", b"\xff\xfe", b"{}"])
@pytest.mark.parametrize("status", [400, 413, 503, 600, 999])
def test_a_reason_says_something(server: ScriptedServer, status: int, body: bytes) -> None:
    _, _, words = post(server, say(answer(status, body))).reason.partition(":")
    assert any(map(str.isalpha, words))


def test_a_response_that_quotes_the_key_does_not_spread_it(server: ScriptedServer) -> None:
    """Reasons are logged and sent to alert channels, and the beginning of a response is shown with its Delivery."""
    said = b'{"message":"The key public.secret-of-42 is unknown","detail":{"x-api-key":"public.secret-of-42"}}'
    server.script = say(answer(403, said))
    got = Client(host=server.url, api_key="public.secret-of-42").call("GET", PROFILES, seconds=LONG)
    assert got.reason == "403: The key ••• is unknown"
    assert "secret-of-42" not in f"{got.text}{got.json}"
    server.script = say(answer(403, b'{"message":"secret-of-42 is unknown"}'))
    got = Client(host=server.url, api_key="public.secret-of-42").call("GET", PROFILES, seconds=LONG)
    assert got.reason == "403: ••• is unknown"


def test_a_web_page_with_200_delivers_nothing(server: ScriptedServer) -> None:
    got = post(server, say(answer(200, b"<html>Welcome</html>", kind="Text/HTML; charset=utf-8")))
    assert (got.outcome, got.fixed_backoff) == (Outcome.RETRY_LATER, True)


@pytest.mark.parametrize("reason", [OUT_OF_TIME, NO_CONNECTION, *(reason for _, reason in network_errors._WORDS)])
def test_a_reason_of_ours_is_shown_whole_also_beside_another(reason: str) -> None:
    """Text between two apostrophes is masked as a value that ODP quotes."""
    assert redact.words(f"{reason}; {reason}") == f"{reason}; {reason}"


def test_the_text_of_a_web_page_is_no_reason(server: ScriptedServer) -> None:
    got = post(server, say(answer(502, b"<html>Bad gateway</html>", kind="text/html")))
    assert (got.outcome, got.reason) == (Outcome.RETRY_LATER, "502: the response is a web page, not from ODP")


def test_a_missing_list_is_a_rejection_and_any_other_404_a_wrong_host(server: ScriptedServer) -> None:
    server.script = say(answer(404, b'{"title":"Not Found"}'))
    outcomes = {path: client(server).call("POST", path, body=b"[]", seconds=LONG) for path in (
        "/v3/lists/subscriptions", "/v3/lists", "/v3/profiles", "/v3/events",
    )}  # fmt: skip
    assert [(got.outcome, got.fixed_backoff) for got in outcomes.values()] == [
        (Outcome.REJECTED, False),
        *[(Outcome.RETRY_LATER, True)] * 3,
    ]
    server.script = say(answer(404, b"<html>", kind="text/html"))
    got = client(server).call("POST", "/v3/lists/subscriptions", body=b"[]", seconds=LONG)
    assert (got.outcome, got.fixed_backoff) == (Outcome.RETRY_LATER, True)


def test_a_redirect_is_not_followed(server: ScriptedServer) -> None:
    with ScriptedServer(say(answer())) as elsewhere:
        for status in (301, 302, 303, 307, 308):
            got = post(server, say(answer(status, b"", f"Location: {elsewhere.url}/")))
            assert (got.outcome, got.fixed_backoff, got.status) == (Outcome.RETRY_LATER, True, status)
        assert elsewhere.connections == 0


def test_an_endless_answer_is_read_as_far_as_it_matters(server: ScriptedServer) -> None:
    def pour(connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\n\r\n")
        while True:
            connection.sendall(b"x" * 100_000)

    got = post(server, pour)
    assert (got.outcome, got.text) == (Outcome.REJECTED, "x" * EXCERPT)
    assert got.json is None
    assert post(server, say(answer())).outcome is Outcome.DELIVERED


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("application/json; charset=no-such-thing", b'{"message":"words"}'),
        ("application/json; charset=base64", b'{"message":"words"}'),
        ("application/json; charset=utf-16", b'{"message":"words"}'),
        ("application/json", b'{"message":"wor\\u0000ds"}'),
        ("application/json", b'{"message":"wor\x00ds"}'),
        ("application/json", b'{"message":"words\\ud800"}'),
        ("application/json", b'{"message":"words\xff"}'),
        ("application/json", b"[" * 100_000),
        ("application/json", b'{"message":' + b"9" * 5_000 + b"}"),
        ("text/plain", b"\x00\x00words"),
        ("", b"words"),
    ],
)
def test_an_odd_body_is_a_body(server: ScriptedServer, head: str, body: bytes) -> None:
    got = post(server, say(answer(400, body, kind=head)))
    assert got.outcome is Outcome.REJECTED
    assert got.reason.startswith("400: ")
    assert_can_be_stored(got)


def assert_can_be_stored(got: Answer) -> None:
    assert isinstance(got.outcome, Outcome)
    for words in (got.reason, got.text, *got.named.values()):
        assert "\x00" not in words
        words.encode()


# --- Half of something, or nothing ----------------------------------------------------------------------------

CUT = [
    b"",
    b"HTTP/1.1 2",
    b"HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\n",
    b"HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\n" + b"x" * 99,
    b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nhalf",
    b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    b"\x15\x03\x01\x00\x02\x02\x16",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\x00" * 50 + b"\r\n\r\n",
    b"HTTP/1.1 99 Low\r\n\r\n",
    b"HTTP/1.1 2000 High\r\n\r\n",
    b"HTTP/1.1 202 Many\r\n" + b"x: y\r\n" * 200 + b"\r\n",
    b"HTTP/1.1 202 Long\r\nx: " + b"y" * 70_000 + b"\r\n\r\n",
]


@pytest.mark.parametrize("data", CUT, ids=range(len(CUT)))
def test_half_a_response_is_not_a_response(server: ScriptedServer, data: bytes) -> None:
    got = post(server, say_and_close(data))
    assert (got.outcome, got.status, got.fixed_backoff) == (Outcome.RETRY_LATER, None, False)
    assert got.reason.startswith("ODP could not be reached: ")
    assert_can_be_stored(got)


def test_headers_that_are_cut_make_no_answer(server: ScriptedServer) -> None:
    got = post(server, say_and_close(b"HTTP/1.1 202 Accepted\r\nContent-Le"))
    assert (got.outcome, got.status) == (Outcome.RETRY_LATER, None)


def test_a_body_that_is_not_packed_as_it_says_has_the_meaning_of_its_status(server: ScriptedServer) -> None:
    for status, outcome in ((202, Outcome.RETRY_LATER), (400, Outcome.REJECTED)):
        got = post(server, say(answer(status, b"nope", "Content-Encoding: gzip")))
        assert (got.outcome, got.status) == (outcome, status)


def test_a_reset_after_odp_read_everything_is_worth_a_retry(server: ScriptedServer) -> None:
    got = post(server, reset)
    assert got.outcome is Outcome.RETRY_LATER
    assert got.reason == "ODP could not be reached: the connection broke off"
    assert got.sent
    assert len(server.requests) == 1


def test_a_closed_port_is_retried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    got = Client(host=f"http://127.0.0.1:{port}", api_key="k").call("GET", "/", seconds=LONG)
    assert got.outcome is Outcome.RETRY_LATER
    assert got.reason == "ODP could not be reached: the host refuses connections"
    assert not got.sent


@pytest.mark.parametrize(
    "host", ["http://[", "nonsense", "", "http://", "ftp://127.0.0.1", "http://a..b", "http://é\x00"]
)
def test_an_invalid_host_is_retried(host: str) -> None:
    got = Client(host=host, api_key="k").call("GET", "/v3/segments", seconds=LONG)
    assert got.outcome is Outcome.RETRY_LATER
    assert_can_be_stored(got)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[ScriptedServer]:
    with ScriptedServer(say(answer())) as running:
        yield running


@given(
    st.binary()
    | st.builds(
        lambda line, rest: line + rest,
        st.sampled_from([b"HTTP/1.1 202 OK\r\n", b"HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\n\r\n"]),
        st.binary(),
    )
)
def test_any_response_becomes_a_storable_answer(fuzzed: ScriptedServer, data: bytes) -> None:
    assert_can_be_stored(post(fuzzed, say_and_close(data)))


# --- Time -----------------------------------------------------------------------------------------------------
#
# The servers here are slow for seconds, but end. A call with a deadline returns earlier.

came_to_an_end = threading.Event()


@pytest.fixture(autouse=True)
def an_end_of_its_own() -> None:
    """A new event for each test: a server of an earlier one may still read what the kernel kept for it."""
    global came_to_an_end
    came_to_an_end = threading.Event()


def drip(data: bytes, *, pieces: int = 100) -> Script:
    ended = came_to_an_end

    def script(connection: socket.socket) -> None:
        size = -(-len(data) // pieces)
        for start in range(0, len(data), size):
            connection.sendall(data[start : start + size])
            time.sleep(SHORT / 10)
        ended.set()

    return script


def assert_cut(got: Answer, reason: str = OUT_OF_TIME) -> None:
    assert (got.outcome, got.reason, got.status) == (Outcome.RETRY_LATER, reason, None)
    assert not came_to_an_end.is_set()


def test_headers_that_drip_beyond_the_deadline_are_cut(server: ScriptedServer) -> None:
    got = post(server, drip(answer(202, b"{}", *["X-Padding: " + "p" * 80] * 10)), seconds=SHORT)
    assert_cut(got)


def test_a_body_that_drips_beyond_the_deadline_is_cut(server: ScriptedServer) -> None:
    whole = answer(202, b"[" + b" " * 1000 + b"]")
    head, _, body = whole.partition(b"\r\n\r\n")

    def script(connection: socket.socket) -> None:
        connection.sendall(head + b"\r\n\r\n")
        drip(body)(connection)

    got = post(server, script, seconds=SHORT)
    assert_cut(got)


def test_a_server_that_reads_the_body_too_slowly_is_cut_off() -> None:
    """It reads just enough to keep every single operation going, and answers in the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        ended = came_to_an_end

        def read_slowly() -> None:
            connection, _ = listener.accept()
            with connection:
                got, whole = b"", 2_000_000
                while len(got) < whole and (piece := connection.recv(20_000)):
                    got += piece
                    time.sleep(SHORT / 20)
                if len(got) >= whole:
                    ended.set()
                connection.sendall(answer())

        threading.Thread(target=read_slowly, daemon=True).start()
        host = f"http://127.0.0.1:{listener.getsockname()[1]}"
        got = Client(host=host, api_key="k").call("POST", PROFILES, body=b" " * 4_000_000, seconds=SHORT)
    assert_cut(got)


def test_sending_may_take_longer_than_connecting(server: ScriptedServer) -> None:
    """Here the request has to start soon, and then takes longer than that to go out."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def read_late() -> None:
            connection, _ = listener.accept()
            with connection:
                time.sleep(SHORT * 2)
                got = b""
                while len(got) < 4_000_000 and (piece := connection.recv(1_000_000)):
                    got += piece
                connection.sendall(answer())

        threading.Thread(target=read_late, daemon=True).start()
        asking = Client(host=f"http://127.0.0.1:{listener.getsockname()[1]}", api_key="k")
        soon = time.monotonic() + SHORT
        got = asking.call("POST", PROFILES, body=b" " * 4_000_000, seconds=LONG, start_before=soon)
    assert got.outcome is Outcome.DELIVERED


def test_a_server_that_never_answers_is_cut(server: ScriptedServer) -> None:
    given_up = threading.Event()

    def be_silent(connection: socket.socket) -> None:
        if not given_up.wait(PATIENCE):
            came_to_an_end.set()

    got = post(server, be_silent, seconds=SHORT)
    given_up.set()
    assert_cut(got)


def test_a_call_after_a_cut_one_is_not_answered_by_the_rest_of_the_cut_one(server: ScriptedServer) -> None:
    post(server, drip(answer(400)), seconds=SHORT)
    assert post(server, say(answer(202, b'"mine"'))).json == "mine"


def test_a_call_that_ended_in_time_is_not_cut_afterwards(server: ScriptedServer) -> None:
    """Its timer must not hit the next call on the same connection."""
    first = post(server, seconds=SHORT)

    def after_the_first_ones_deadline(connection: socket.socket) -> None:
        time.sleep(SHORT * 1.5)
        connection.sendall(answer())

    second = post(server, after_the_first_ones_deadline)
    assert [first.outcome, second.outcome] == [Outcome.DELIVERED] * 2
    assert server.connections == 1


class Watched:
    """A call as the watch thread sees it."""

    def __init__(self) -> None:
        self.was_cut = threading.Event()

    def cut(self) -> None:
        self.was_cut.set()


def test_deadlines_are_enforced_in_the_order_in_which_they_expire() -> None:
    watch: Any = _Watch()
    late, soon, ended = Watched(), Watched(), Watched()
    watch.expect(late, time.monotonic() + 900)
    eventually(lambda: watch._looks_again_at < float("inf"))
    watch.expect(ended, time.monotonic() + SHORT)
    watch.forget(ended)
    watch.expect(soon, time.monotonic() + SHORT)
    assert soon.was_cut.wait(PATIENCE)
    assert [call.was_cut.is_set() for call in (late, ended)] == [False, False]
    watch.forget(late)
    assert watch._due == {}


def test_a_watch_that_had_nothing_to_do_is_there_for_the_next_call() -> None:
    watch: Any = _Watch()
    for _ in range(2):
        call = Watched()
        watch.expect(call, time.monotonic())
        assert call.was_cut.wait(PATIENCE)
        eventually(lambda: watch._looks_again_at == float("inf"))


def test_the_watch_thread_is_restarted_after_a_fork() -> None:
    watch: Any = _Watch()
    gone = threading.Thread(target=lambda: None)
    gone.start()
    gone.join()
    watch._thread, call = gone, Watched()
    watch.expect(call, time.monotonic())
    assert call.was_cut.wait(PATIENCE)


def test_a_call_whose_connection_is_closed_already_is_cut_without_an_error() -> None:
    """An exception would end the watch thread before it has cut the other calls."""
    call: Any
    with socket.socket() as closed, deadline(seconds=LONG) as call:
        closed.close()
        call._connection = SimpleNamespace(sock=closed)
        call.cut()
    assert call.passed


def test_several_calls_have_one_end_together(server: ScriptedServer) -> None:
    together = Client(host=server.url, api_key="k", ends_at=time.monotonic() + 4 * SHORT)
    assert together.call("GET", "/", seconds=LONG).outcome is Outcome.DELIVERED
    server.script = drip(answer())
    assert together.call("GET", "/", seconds=LONG).reason == OUT_OF_TIME
    server.script = say(answer())
    assert together.call("GET", "/", seconds=LONG).reason == OUT_OF_TIME
    assert len(server.requests) == 2


def test_the_one_end_holds_also_after_waiting_for_permission(server: ScriptedServer) -> None:
    def permission(path: str, until: float) -> None:
        time.sleep(SHORT * 2)

    def answer_late(connection: socket.socket) -> None:
        time.sleep(SHORT * 2)
        connection.sendall(answer())

    server.script = answer_late
    asking = Client(host=server.url, api_key="k", ends_at=time.monotonic() + SHORT * 3, permission=permission)
    assert_cut(asking.call("GET", "/", seconds=LONG))


# --- Not a byte too late, and not one without permission ------------------------------------------------------


def test_a_call_whose_start_deadline_has_passed_does_not_connect(server: ScriptedServer) -> None:
    with pytest.raises(TooLateError):
        client(server).call("POST", PROFILES, body=b"[]", seconds=LONG, start_before=time.monotonic())
    assert post(server).outcome is Outcome.DELIVERED
    assert (server.connections, len(server.requests)) == (1, 1)


def test_a_server_that_accepts_no_connection_holds_a_call_no_longer_than_it_may_start() -> None:
    """With the queue of connections full, the kernel lets a further one wait for minutes."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        returned = threading.Event()

        def give_way() -> None:
            if not returned.wait(PATIENCE):
                came_to_an_end.set()
                listener.close()

        watch = threading.Thread(target=give_way)
        watch.start()
        asking = Client(host=f"http://127.0.0.1:{address[1]}", api_key="k")
        got = asking.call("GET", "/", seconds=LONG, start_before=time.monotonic() + SHORT)
        returned.set()
        watch.join()
        for one in waiting:
            one.close()
    assert (got.outcome, got.status) == (Outcome.RETRY_LATER, None)
    assert not came_to_an_end.is_set()


def test_a_look_up_that_took_too_long_sends_nothing_and_counts_as_no_connection(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, start_before = socket.getaddrinfo, time.monotonic() + SHORT

    def look_up_slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(SHORT * 1.5)
        return look_up(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up_slowly)
    asking = Client(host=server.url, api_key="k", permission=lambda path, until: pytest.fail("asked too late"))
    got = asking.call("GET", "/", seconds=LONG, start_before=start_before)
    assert_cut(got, NO_CONNECTION)
    assert not got.sent
    assert server.bytes_received == 0


def test_permission_is_requested_on_an_open_connection_before_the_first_byte(server: ScriptedServer) -> None:
    seen = []

    def permission(path: str, until: float) -> None:
        server.was_reached()
        seen.append((path, server.connections, server.bytes_received))

    asking = Client(host=server.url, api_key="k", permission=permission)
    for _ in range(2):
        before = server.bytes_received
        assert asking.call("POST", PROFILES, body=b"[]", seconds=LONG).outcome is Outcome.DELIVERED
        assert seen.pop() == (PROFILES, 1, before)


def test_permission_that_comes_too_late_sends_nothing(server: ScriptedServer) -> None:
    def permission(path: str, until: float) -> None:
        server.was_reached()
        while time.monotonic() < until:
            time.sleep(0.01)

    asking = Client(host=server.url, api_key="k", permission=permission)
    with pytest.raises(TooLateError):
        asking.call("POST", PROFILES, body=b"[]", seconds=LONG, start_before=time.monotonic() + SHORT)
    assert post(server).outcome is Outcome.DELIVERED
    assert len(server.requests) == 1


def test_waiting_for_permission_does_not_shorten_the_time_for_the_response(server: ScriptedServer) -> None:
    def permission(path: str, until: float) -> None:
        time.sleep(SHORT * 1.5)

    asking = Client(host=server.url, api_key="k", permission=permission)
    assert asking.call("POST", PROFILES, body=b"[]", seconds=SHORT).outcome is Outcome.DELIVERED


def test_a_permission_that_fails_sends_nothing_and_keeps_its_cause(server: ScriptedServer) -> None:
    """Django's database errors have their SQLSTATE in the cause."""
    cause = KeyError()

    def permission(path: str, until: float) -> None:
        raise LookupError from cause

    with pytest.raises(LookupError) as raised:
        Client(host=server.url, api_key="k", permission=permission).call("GET", "/", seconds=LONG)
    assert raised.value.__cause__ is cause
    assert post(server).outcome is Outcome.DELIVERED
    assert len(server.requests) == 1


# --- TLS ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    return tls_server(certificate)


def test_over_tls_a_call_is_a_call(tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(odp_client, "TRUSTED", str(certificate))
    with ScriptedServer(say(answer()), tls=tls) as server:
        assert post(server).outcome is Outcome.DELIVERED
        assert post(server).outcome is Outcome.DELIVERED
        assert server.connections == 1
        got = post(server, drip(answer()), seconds=SHORT)
    assert_cut(got)


def test_a_server_with_an_untrusted_certificate_receives_nothing(tls: ssl.SSLContext) -> None:
    with ScriptedServer(say(answer()), tls=tls) as server:
        got = post(server)
        assert got.outcome is Outcome.RETRY_LATER
        assert "certificate is not trusted" in got.reason
        assert server.requests == []


def test_a_handshake_that_drips_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that promises 16 KiB and comes byte by byte keeps every single operation going for minutes."""
    with ScriptedServer(say(b"")) as server:

        def permission(path: str, until: float) -> None:
            pytest.fail("asked without a connection")

        def drip_a_record(connection: socket.socket) -> bytes:
            for byte in b"\x16\x03\x03\x3f\xff" + bytes(200):
                connection.sendall(bytes([byte]))
                time.sleep(SHORT / 10)
            came_to_an_end.set()
            return b""

        monkeypatch.setattr(server, "_request", drip_a_record)
        host = server.url.replace("http:", "https:")
        asking = Client(host=host, api_key="k", permission=permission)
        got = asking.call("GET", "/", seconds=LONG, start_before=time.monotonic() + SHORT)
    assert (got.outcome, got.status) == (Outcome.RETRY_LATER, None)
    assert not came_to_an_end.is_set()


def test_the_limit_on_responses_is_far_above_those_of_odp() -> None:
    assert ANSWER_BYTES >= 500 * 1000
