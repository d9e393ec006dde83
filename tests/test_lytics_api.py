"""Lytics' API against a server that says anything: one request, one answer, in time, and no secret in any text."""

import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_django.fixtures import Settings

from audiences import lytics_account
from lytics.api import client as api_client
from lytics.api.audiences import audience, audiences
from lytics.api.authorizations import Authorization, authorizations, create_authorization
from lytics.api.client import NO_CONNECTION, OUT_OF_TIME, UNUSABLE, Client
from lytics.api.jobs import Job, bounce, create_job, job, job_logs, jobs, pause, replace_job, resume
from lytics.api.members import MemberPage, scan
from lytics.api.outcomes import Answer, Outcome, answer_to
from lytics.api.people import person
from tests.test_webhook_settings import OURS
from tests.wire import Script, ScriptedServer, answer, reset, say, say_and_close

TOKEN = "at.c0ffee-very-secret"
SEGMENT = "0a" * 16
# What a request may take where the server is slow on purpose, and where it isn't.
SHORT, LONG = 0.3, 20.0
AUDIENCE = {"id": SEGMENT, "slug_name": "vip", "name": "VIP", "size": 1204318, "table": "user", "kind": "segment"}
JOB = {
    "id": "j1",
    "name": "To ODP",
    "workflow": "webhook_triggers",
    "status": "running",
    "auth_ids": ["a1"],
    "config": {"segment_ids": [SEGMENT], "batch_size": 300, "share": 0.25},
    "meta": {"unknown": [1, 2]},
}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(say(of({}))) as running:
        yield running


def of(body: Any, status: int = 200, *headers: str) -> bytes:
    return answer(status, json.dumps(body).encode(), *headers)


def client(server: ScriptedServer, *, seconds: float = LONG, **more: Any) -> Client:
    return Client(token=TOKEN, url=server.url, seconds=seconds, **more)


def ask(server: ScriptedServer, data: bytes | Script, *, seconds: float = LONG) -> Answer:
    server.script = say(data) if isinstance(data, bytes) else data
    return client(server, seconds=seconds).get("v2", "segment")


def requested(server: ScriptedServer) -> list[str]:
    """The request lines, without the protocol's version."""
    return [request.split(b"\r\n")[0].decode().removesuffix(" HTTP/1.1") for request in server.requests]


def body_of(request: bytes) -> Any:
    return json.loads(request.partition(b"\r\n\r\n")[2])


# --- What goes out --------------------------------------------------------------------------------------------


def test_the_token_goes_out_in_its_header_as_it_is_and_nowhere_else(server: ScriptedServer) -> None:
    audiences(client(server))
    (request,) = server.requests
    assert f"Authorization: {TOKEN}\r\n".encode() in request
    assert request.count(TOKEN.encode()) == 1
    assert TOKEN not in requested(server)[0]


def test_an_account_is_chosen_by_the_query(server: ScriptedServer) -> None:
    client(server, account_id="acc & 1").get("v2", "job", query={"workflow": "x"})
    assert requested(server) == ["GET /v2/job?workflow=x&account_id=acc+%26+1"]


@pytest.mark.parametrize("value", ["a/b?c#d", "é@example.com", "50%", "a b", "..a", "%2e%2e"])
def test_a_value_in_a_path_stays_one_part_of_it(server: ScriptedServer, value: str) -> None:
    person(client(server), "email", value)
    path = requested(server)[0].removeprefix("GET ").partition("?")[0]
    assert path.count("/") == 5
    assert path.endswith(quote(value, safe=""))


@pytest.mark.parametrize("value", ["", " ", ".", "..", "half an emoji \ud83d"])
def test_a_value_that_would_ask_for_something_else_is_not_sent(server: ScriptedServer, value: str) -> None:
    found = person(client(server), "_id", value)
    assert (found.answer.outcome, found.answer.sent, server.requests) == (Outcome.REJECTED, False, [])


@pytest.mark.parametrize("token", ["", "  ", "a\r\nHost: x", "tökèn", "\x00"])
def test_an_unusable_token_is_not_sent(server: ScriptedServer, token: str) -> None:
    got = Client(token=token, url=server.url).get("v2", "segment")
    assert (got.outcome, got.reason, got.sent, server.requests) == (Outcome.UNAUTHORISED, UNUSABLE, False, [])


def test_the_rate_limiter_is_asked_before_the_first_byte(server: ScriptedServer) -> None:
    asked: list[int] = []
    client(server, permission=lambda: asked.append(len(server.requests))).get("v2", "segment")
    assert asked == [0]


def test_an_error_of_the_rate_limiter_is_the_callers(server: ScriptedServer) -> None:
    cause = KeyError()

    def broken() -> None:
        raise LookupError("no limit is known") from cause

    with pytest.raises(LookupError) as raised:
        client(server, permission=broken).get("v2", "segment")
    assert raised.value.__cause__ is cause
    assert server.requests == []


def test_the_client_is_the_one_that_the_settings_describe(server: ScriptedServer, settings: Settings) -> None:
    settings.LYTICS_API_URL, settings.LYTICS_API_SECONDS = server.url + "/", 7
    made = lytics_account.client_with(TOKEN)
    made.get("v2", "segment")
    assert (made.seconds, requested(server)) == (7, ["GET /v2/segment"])


# --- What comes back ------------------------------------------------------------------------------------------

V2_ERROR = {"status": 400, "errors": [{"code": "BADREQ-001", "message": "bad field", "level": "warn"}]}
API_ERROR = {"data": None, "status": 400, "message": "bad field"}


@pytest.mark.parametrize(
    ("status", "body", "outcome", "reason"),
    [
        (400, V2_ERROR, Outcome.REJECTED, "400: bad field (BADREQ-001)"),
        (400, API_ERROR, Outcome.REJECTED, "400: bad field"),
        (400, {"errors": ["bad field"]}, Outcome.REJECTED, "400: bad field"),
        (400, {}, Outcome.REJECTED, "400: {}"),
        (401, {"message": "Not authorized", "status": 401}, Outcome.UNAUTHORISED, "401: Not authorized"),
        (403, V2_ERROR, Outcome.UNAUTHORISED, "403: bad field (BADREQ-001)"),
        (404, {"errors": [{"message": "no such job"}]}, Outcome.NOT_FOUND, "404: no such job"),
        (404, {"message": "no such job"}, Outcome.NOT_FOUND, "404: no such job"),
        (429, {"message": "slow down"}, Outcome.RETRY_LATER, "429: slow down"),
        (500, V2_ERROR, Outcome.RETRY_LATER, "500: bad field (BADREQ-001)"),
        (200, {"message": "Not Found", "data": {}}, Outcome.NOT_FOUND, "200: Not Found"),
        (200, V2_ERROR, Outcome.REJECTED, "400: bad field (BADREQ-001)"),
        (200, {"errors": [{"message": "half done"}]}, Outcome.REJECTED, "200: half done"),
        (200, {"status": 401, "message": "Not authorized"}, Outcome.UNAUTHORISED, "401: Not authorized"),
        (200, {"data": [], "status": 200, "message": "success", "errors": []}, Outcome.OK, ""),
        (200, [], Outcome.OK, ""),
    ],
)
def test_both_error_styles_are_read_for_every_path(
    server: ScriptedServer, status: int, body: Any, outcome: Outcome, reason: str
) -> None:
    got = ask(server, of(body, status))
    assert (got.outcome, got.reason) == (outcome, reason)


def test_a_429_has_no_wait_of_its_own_unless_lytics_sends_one(server: ScriptedServer) -> None:
    bare = ask(server, answer(429, b"", kind="text/plain"))
    assert (bare.outcome, bare.is_rate_limited, bare.retry_after) == (Outcome.RETRY_LATER, True, None)
    assert ask(server, answer(429, b"", "Retry-After: 7")).retry_after == 7


@pytest.mark.parametrize(
    ("status", "body", "kind", "reason"),
    [
        (200, b"<html>Welcome</html>", "text/html; charset=utf-8", "200: the response is a web page, not from Lytics"),
        (200, b" <!doctype html>", "application/json", "200: the response is a web page, not from Lytics"),
        (502, b"<html>Bad gateway</html>", "Text/HTML", "502: the response is a web page, not from Lytics"),
        (503, b"upstream connect error", "text/plain", "503: upstream connect error"),
        (404, b"404 page not found", "text/plain", "404: 404 page not found"),
        (404, b"<html>no</html>", "text/html", "404: the response is a web page, not from Lytics"),
        (200, b"", "application/json", "200: the response is empty"),
        (200, b"OK", "text/plain", "200: OK"),
        (200, b'"text"', "application/json", '200: "text"'),
        (200, b'{"data": [', "application/json", '200: {"data": ['),
        (200, b"[" * 200_000, "application/json", "200: " + "[" * 200),
        (200, b"\x1f\x8b\x00\x01\xff\xfe\xfd", "application/json", "200: Lytics gave no reason"),
        (302, b"", "text/html", "302: the response is a redirect. Check LYTICS_API_URL"),
    ],
)
def test_what_another_server_answers_is_retried_and_named(
    server: ScriptedServer, status: int, body: bytes, kind: str, reason: str
) -> None:
    got = ask(server, answer(status, body, kind=kind))
    assert (got.outcome, got.reason) == (Outcome.RETRY_LATER, reason)


def test_a_redirect_is_not_followed_with_the_token(server: ScriptedServer) -> None:
    with ScriptedServer(say(of({}))) as other:
        assert ask(server, answer(302, b"", f"Location: {other.url}/")).outcome is Outcome.RETRY_LATER
        assert other.connections == 0


def test_a_response_above_the_limit_is_rejected_and_not_held(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_client, "ANSWER_BYTES", 100)
    assert ask(server, answer(200, json.dumps({"data": []}).encode().ljust(100))).is_ok
    got = ask(server, answer(200, b'{"data": "' + b"x" * 100 + b'"}'))
    assert (got.outcome, got.json) == (Outcome.REJECTED, None)
    assert "fewer fields" in got.reason


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(SHORT / 10)


def silence(connection: socket.socket) -> None:
    connection.recv(1)


@pytest.mark.parametrize("script", [drip, silence])
def test_a_slow_response_ends_at_the_deadline(server: ScriptedServer, script: Script) -> None:
    got = ask(server, script, seconds=SHORT)
    assert (got.outcome, got.reason, got.sent) == (Outcome.RETRY_LATER, OUT_OF_TIME, True)


def test_a_client_whose_time_is_up_sends_nothing(server: ScriptedServer) -> None:
    got = client(server, ends_at=0.0).get("v2", "segment")
    assert (got.outcome, got.reason, got.sent, server.requests) == (Outcome.RETRY_LATER, OUT_OF_TIME, False, [])


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (reset, "the connection broke off"),
        (say_and_close(b""), "it closed the connection without a response"),
        (say_and_close(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), "its response ended early"),
        (say_and_close(b"SSH-2.0-OpenSSH\r\n"), "its response is not HTTP"),
    ],
)
def test_no_response_is_told_in_words(server: ScriptedServer, script: Script, words: str) -> None:
    got = ask(server, script)
    assert (got.outcome, got.reason, got.status) == (
        Outcome.RETRY_LATER,
        f"Lytics could not be reached: {words}",
        None,
    )
    assert got.sent, "a write may have been applied"


@pytest.mark.parametrize("url", ["not a url", "http://", "ftp://127.0.0.1", "http://[::1", "http://127.0.0.1:99999"])
def test_an_invalid_url_names_its_setting(url: str) -> None:
    got = Client(token=TOKEN, url=url).get("v2", "segment")
    assert (got.outcome, got.sent) == (Outcome.RETRY_LATER, False)
    assert "LYTICS_API_URL" in got.reason


def test_a_port_that_nobody_listens_on_is_told() -> None:
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        got = Client(token=TOKEN, url=f"http://127.0.0.1:{taken.getsockname()[1]}").get("v2", "segment")
    assert got.reason == "Lytics could not be reached: the host refuses connections"
    assert not got.sent
    assert NO_CONNECTION not in got.reason


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
def test_an_echo_of_the_token_or_the_person_is_masked(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = f"token {TOKEN} may not read ann-77 or ann@example.com"
    for body in (echo.encode(), json.dumps({"errors": [{"message": echo}]}).encode()):
        server.script = say(answer(status, body))
        made = client(server)
        found = person(made, "_id", "ann-77")
        assert not found.answer.is_ok
        for text in (found.answer.reason, repr(found), repr(made), str(vars(found.answer)["reason"])):
            assert "ann" not in text
            assert TOKEN not in text
    assert TOKEN not in caplog.text


MEMBER_NAMES = st.sampled_from(["data", "errors", "message", "status", "code"])


@given(
    status=st.integers(100, 599),
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(MEMBER_NAMES, inner),
        max_leaves=8,
    ),
)
def test_any_response_has_an_outcome_and_a_reason(status: int, body: Any) -> None:
    got = answer_to(status, body, text=json.dumps(body), headers={}, may_be_empty=False)
    assert got.is_ok == (got.reason == "")
    assert "\x00" not in got.reason


# --- Audiences ------------------------------------------------------------------------------------------------


def test_audiences_have_their_sizes(server: ScriptedServer) -> None:
    more = {"updated": "2026-03-01T10:00:00.123456789Z", "segment_ql": "FILTER x", "invalid": True, "new": {"a": 1}}
    server.script = say(of({"data": [{**AUDIENCE, **more}], "status": 200}))
    (found,) = audiences(client(server)).items
    assert (found.segment_id, found.slug, found.size, found.definition) == (SEGMENT, "vip", 1204318, "FILTER x")
    assert found.is_invalid
    assert found.updated_at is not None
    assert found.fields["new"] == {"a": 1}
    assert requested(server) == ["GET /v2/segment?table=user&kind=segment&sizes=true"]


@pytest.mark.parametrize(
    ("size", "read"),
    [
        *((0, 0), (12.0, 12), ("12", 12), (-1, None), (1.5, None), (True, None), (None, None)),
        *(("many", None), ([3], None)),
        *((2**63 - 1, 2**63 - 1), (2**63, None), (1e300, None)),
    ],
)
def test_a_size_is_a_whole_number_or_unknown(server: ScriptedServer, size: Any, read: int | None) -> None:
    server.script = say(of({"data": {**AUDIENCE, "size": size}}))
    found = audience(client(server), "vip")
    assert found.item is not None
    assert found.item.size == read


def test_an_unreadable_audience_is_counted_and_costs_no_other(server: ScriptedServer) -> None:
    server.script = say(
        of({"data": [None, 3, {"name": "no id"}, AUDIENCE, {"id": 7, "updated": "0001-01-01T00:00:00Z"}]})
    )
    found = audiences(client(server))
    assert [(item.segment_id, item.updated_at) for item in found.items] == [(SEGMENT, None), ("7", None)]
    assert found.unreadable == 3


@pytest.mark.parametrize("data", ["text", 3, {"id": "x"}, True])
def test_something_other_than_a_list_is_no_empty_list(server: ScriptedServer, data: Any) -> None:
    server.script = say(of({"data": data}))
    found = audiences(client(server))
    assert (found.answer.outcome, found.items) == (Outcome.RETRY_LATER, ())
    assert found.answer.reason == "200: the response has no list of audiences"


def test_null_is_an_empty_list(server: ScriptedServer) -> None:
    server.script = say(of({"data": None, "status": 200}))
    assert audiences(client(server)).answer.is_ok


def test_one_audience_may_be_missing(server: ScriptedServer) -> None:
    server.script = say(of({"errors": [{"message": "no segment"}]}, 404))
    found = audience(client(server), "gone")
    assert (found.answer.outcome, found.item) == (Outcome.NOT_FOUND, None)


# --- Members --------------------------------------------------------------------------------------------------


def pages(server: ScriptedServer, *bodies: tuple[int, Any]) -> None:
    """Answer the requests in turn, the last of ``bodies`` for ever."""
    rest = list(bodies)

    def script(connection: socket.socket) -> None:
        status, body = rest.pop(0) if len(rest) > 1 else rest[0]
        connection.sendall(of(body, status))

    server.script = script


def a_page(*names: str, after: str = "") -> tuple[int, Any]:
    return 200, {"data": [{"_id": name} for name in names], "total": 5, "_next": after, "status": 200}


def walk(server: ScriptedServer, token: str = "") -> list[MemberPage]:
    return list(scan(client(server), SEGMENT, fields=["_id", "email"], token=token))


def names_of(found: list[MemberPage]) -> list[str]:
    return [name for page in found for member in page.members for name in member.identifiers("_id")]


def test_a_scan_yields_page_after_page_until_the_token_is_empty(server: ScriptedServer) -> None:
    pages(server, a_page("a", "b", after="t/1"), a_page("c", "d", after="t2"), a_page("e"))
    found = walk(server)
    assert names_of(found) == ["a", "b", "c", "d", "e"]
    assert [page.is_last for page in found] == [False, False, True]
    assert {page.total for page in found} == {5}
    path = f"GET /api/segment/{SEGMENT}/scan?limit=100&fields=_id%2Cemail"
    assert requested(server) == [path, f"{path}&start=t%2F1", f"{path}&start=t2"]


def test_a_scan_resumes_from_the_token_of_the_page_that_failed(server: ScriptedServer) -> None:
    pages(server, a_page("a", after="t1"), (500, {"message": "oops"}), a_page("b"))
    first = walk(server)
    assert (first[-1].answer.outcome, first[-1].is_expired, first[-1].is_last) == (Outcome.RETRY_LATER, False, False)
    assert names_of(first + walk(server, first[-1].token)) == ["a", "b"]


@pytest.mark.parametrize("status", [400, 404, 410, 422])
def test_a_rejected_token_means_that_the_scan_begins_again(server: ScriptedServer, status: int) -> None:
    pages(server, (status, {"message": "scan id expired"}))
    (page,) = walk(server, "old")
    assert (page.is_expired, page.is_last) == (True, False)
    (page,) = walk(server)
    assert not page.is_expired, "without a token, nothing can have expired"


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_trouble_of_another_kind_keeps_the_token(server: ScriptedServer, status: int) -> None:
    pages(server, (status, {"message": "no"}))
    (page,) = walk(server, "t1")
    assert (page.is_expired, page.token) == (False, "t1")


def test_a_token_with_half_a_character_ends_in_an_answer(server: ScriptedServer) -> None:
    pages(server, a_page("a", after="t\ud800"), (400, {"message": "no such token"}))
    assert [page.is_expired for page in walk(server)] == [False, True]


def test_a_scan_that_goes_round_in_a_circle_ends(server: ScriptedServer) -> None:
    pages(server, a_page("a", after="t1"), a_page("b", after="t1"))
    found = walk(server)
    assert (len(found), found[-1].is_expired, found[-1].is_last) == (2, True, False)


@pytest.mark.parametrize("body", [{"message": "success"}, [], {"data": {}}, {"data": "x", "_next": "t"}])
def test_a_page_without_members_in_it_is_no_end_of_the_scan(server: ScriptedServer, body: Any) -> None:
    pages(server, (200, body))
    (page,) = walk(server)
    assert (page.answer.outcome, page.is_last, page.members) == (Outcome.RETRY_LATER, False, ())


def test_an_empty_audience_has_one_empty_page(server: ScriptedServer) -> None:
    pages(server, (200, {"data": None, "total": 0, "_next": ""}))
    (page,) = walk(server)
    assert (page.is_last, page.total, page.members) == (True, 0, ())


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('" u1 "', ("u1",)),
        ("9007199254740993", ("9007199254740993",)),
        ("12345.0", ("12345",)),
        ("1.2345e4", ("12345",)),
        ("0.5", ("0.5",)),
        ('["a", "b", "a", "", "\\u200b", null, true, {"x": 1}, 7]', ("a", "b", "7")),
        ("null", ()),
        ("true", ()),
        ('{"a": "b"}', ()),
    ],
)
def test_identifiers_are_read_as_those_of_a_webhook_call(
    server: ScriptedServer, written: str, read: tuple[str, ...]
) -> None:
    server.script = say(answer(200, f'{{"data": [{{"_id": {written}}}], "total": 1}}'.encode()))
    ((member,),) = [page.members for page in walk(server)]
    assert member.identifiers("_id") == read
    assert member.identifiers("absent") == ()
    assert "u1" not in repr(member)


# --- One person -----------------------------------------------------------------------------------------------


def test_a_person_is_in_the_audiences_that_lytics_names(server: ScriptedServer) -> None:
    server.script = say(of({"data": {"_id": "u1", "segments": ["all", "vip"], "segments_all": ["0b"]}}))
    found = person(client(server), "_id", "u1").item
    assert found is not None
    assert found.is_in(segment_id="x", slug="vip")
    assert found.is_in(segment_id="0b", slug="y")
    assert not found.is_in(segment_id=SEGMENT, slug="win_back")
    assert requested(server) == ["GET /api/entity/user/_id/u1?segments=true&allsegments=true"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"data": {"segments": ["not_found", "all"]}, "message": "Not Found", "status": 200}),
        (200, {"data": {"segments": ["not_found", "all"]}, "message": "success"}),
        (200, {"segments": ["not_found", "all"], "message": "not found"}),
        (200, {"data": ["not_found"], "message": "Not Found"}),
        (404, {"errors": [{"message": "no identity"}]}),
    ],
)
def test_a_person_who_does_not_exist_is_not_found_also_with_status_200(
    server: ScriptedServer, status: int, body: Any
) -> None:
    server.script = say(of(body, status))
    found = person(client(server), "_id", "u1")
    assert (found.answer.outcome, found.item) == (Outcome.NOT_FOUND, None)


# --- Jobs and authorizations ----------------------------------------------------------------------------------


def the_job(server: ScriptedServer, **changed: Any) -> Job:
    server.script = say(of({"data": {**JOB, **changed}}))
    found = job(client(server), "j1").item
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("status", "faults"),
    [
        *(("running", 0), ("fault-7", 7), ("Fault", 1), ("failed", 0), (None, 0), ("brand new", 0)),
        (f"fault-{'9' * 5000}", 999_999_999),
    ],
)
def test_a_job_in_error_says_how_often(server: ScriptedServer, status: Any, faults: int) -> None:
    found = the_job(server, status=status)
    assert (found.faults, found.state) == (faults, str(status or "unknown").lower())
    assert found.segment_ids == (SEGMENT,)


def test_texts_can_be_shown_and_stored(server: ScriptedServer) -> None:
    odd = {"webhook_url": "cut \ud83d", "segment_ids": ["nul \x00"]}
    found = the_job(server, name="To \ud83d\x00ODP", status="\x00", config=odd)
    assert (found.name, found.state, found.segment_ids) == ("To ?ODP", "unknown", ("nul ",))
    assert found.fields["config"] == odd, "a job is written back as it was read"
    assert "cut ?" in [each.theirs for each in OURS.differences(found.config)]


def test_jobs_are_listed_by_workflow_and_with_the_deleted_ones_on_request(server: ScriptedServer) -> None:
    server.script = say(of({"data": [JOB]}))
    assert [found.job_id for found in jobs(client(server)).items] == ["j1"]
    jobs(client(server), with_deleted=True)
    path = "GET /v2/job?workflow=webhook_triggers"
    assert requested(server) == [path, f"{path}&show_all=true"]


@pytest.mark.parametrize("wrapped", [True, False], ids=["data", "bare"])
def test_the_log_of_a_job_counts_what_was_omitted(server: ScriptedServer, wrapped: bool) -> None:
    entries = [
        {"job_id": "j1", "level": "INFO", "timestamp": "2026-03-19T14:30:00Z", "context": {"added": 145, "omitted": 3}},
        {"message": "Started by user ann@example.com", "context": None},
    ]
    server.script = say(of({"data": entries} if wrapped else entries))
    first, second = job_logs(client(server), "j1").items
    assert (first.added, first.omitted, first.removed, first.level) == (145, 3, None, "info")
    assert (second.omitted, second.logged_at) == (None, None)
    assert "ann" not in repr(second)


def test_a_job_is_made_so_that_it_does_not_run_yet(server: ScriptedServer) -> None:
    server.script = say(of({"data": JOB}, 201))
    made = create_job(client(server), name="To ODP", auth_ids=["a1"], config={"segment_ids": [SEGMENT]})
    assert made.item is not None
    assert requested(server) == ["POST /v2/job?run_job=false"]
    expected = {
        "name": "To ODP",
        "workflow": "webhook_triggers",
        "auth_ids": ["a1"],
        "config": {"segment_ids": [SEGMENT]},
    }
    assert body_of(server.requests[0]) == expected


def test_a_job_is_written_back_whole(server: ScriptedServer) -> None:
    known = the_job(server)
    replace_job(client(server), known, config={**known.config, "segment_ids": [SEGMENT, "b2"]})
    assert requested(server)[-1] == "PUT /v2/job/webhook_triggers/j1"
    config = {"segment_ids": [SEGMENT, "b2"], "batch_size": 300, "share": 0.25}
    assert body_of(server.requests[-1]) == {**JOB, "config": config}


@pytest.mark.parametrize(("verb", "name"), [(pause, "pause"), (resume, "resume"), (bounce, "bounce")])
@pytest.mark.parametrize("response", [of({"data": JOB}), b"HTTP/1.1 204 No Content\r\n\r\n", answer(200, b"")])
def test_a_job_is_paused_resumed_and_restarted(server: ScriptedServer, verb: Any, name: str, response: bytes) -> None:
    server.script = say(response)
    assert verb(client(server), "j1").is_ok
    assert requested(server) == [f"POST /v2/job/j1/{name}"]


def test_an_authorization_holds_the_header_and_no_text_of_ours_does(server: ScriptedServer) -> None:
    secret = "Bearer whsec-1234567890"
    server.script = say(of({"errors": [{"message": "header whsec-1234567890 is taken"}]}, 400))
    failed = create_authorization(client(server), label="To ODP", header=secret)
    assert failed.answer.reason == "400: header ••• is taken"
    server.script = say(of({"data": {"id": "a1", "label": "To ODP", "webhook_request_headers": secret}}))
    made = create_authorization(client(server), label="To ODP", header=secret)
    assert "whsec" not in repr(made)
    assert made.item is not None
    assert requested(server)[-1] == "POST /v2/auth/header_param_auth"
    content = {"label": "To ODP", "webhook_request_headers": f"Authorization: {secret}"}
    assert body_of(server.requests[-1]) == content


def test_authorizations_are_listed(server: ScriptedServer) -> None:
    server.script = say(of({"data": [{"id": "a1", "name": "To ODP", "type": "header_param_auth"}]}))
    (found,) = authorizations(client(server)).items
    assert isinstance(found, Authorization)
    assert (found.auth_id, found.label, found.kind) == ("a1", "To ODP", "header_param_auth")
