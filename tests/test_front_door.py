"""No layer answers Lytics 400, 404 or 413, because Lytics then drops the batch for good.

A request that gunicorn or Django would answer 400 gets 503, and the front page says why. A POST to an unknown path is
answered 401. The causes of other 503 are in ``test_retry_after.py``.
"""

import re
import socket
from contextlib import suppress
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from audiences.models import Event, Install, Receipt
from audiences.receiving import rejected_calls
from lytics_sync.request_socket import with_encoded_query
from tests.messages import body, message
from tests.people import someone
from tests.threads import eventually
from tests.web import Web, web_of_a_module

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("broker")]

CONTENT = body(message())
HOOK, TOKEN = b"{HOOK}", b"{TOKEN}"

web = web_of_a_module(WEBHOOK_READ_SECONDS="1", BAD_TOKENS_PER_MINUTE="0")


def request(
    line: bytes = b"POST {HOOK} HTTP/1.1",
    *more: bytes,
    length: bytes | None = b"Content-Length: %d" % len(CONTENT),
    host: bytes | None = b"Host: 127.0.0.1",
    content: bytes = CONTENT,
) -> bytes:
    head = [line, host, b"Authorization: {TOKEN}", b"Connection: close", length, *more]
    return b"\r\n".join([one for one in head if one is not None] + [b"", b""]) + content


def answers(web: Web, install: Install, raw: bytes) -> bytes:
    """All bytes received until the connection is closed."""
    token = install.tokens.get().secret.encode()
    raw = raw.replace(HOOK, f"/webhooks/lytics/{install.public_id}".encode()).replace(TOKEN, token)
    said = b""
    with web.raw() as caller:
        with suppress(ConnectionResetError, BrokenPipeError):
            caller.sendall(raw)
        with suppress(OSError):
            caller.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while piece := caller.recv(65536):
                said += piece
    return said


def status(answer: bytes) -> int:
    return int(answer[9:12])


NO_LENGTH: dict[str, Any] = {"length": None}
CHUNKED = b"Transfer-Encoding: chunked"
# Each of gunicorn's own refusals, and what the front page says of it.
UNPARSED: dict[str, tuple[bytes, str]] = {
    "a blank in the path": (request(b"POST {HOOK}x y HTTP/1.1"), "blank"),
    "a blank before the query": (request(b"POST {HOOK} ?a=b HTTP/1.1"), "blank"),
    "a tab in the query": (request(b"POST {HOOK}?a=b\tc HTTP/1.1"), "first line"),
    "a second version": (request(b"POST {HOOK}?a HTTP/1.1 HTTP/1.1"), "blank"),
    "bytes in the path": (request(b"POST {HOOK}/\xff HTTP/1.1"), "first line"),
    "no version": (request(b"POST {HOOK}"), "first line"),
    "no target": (request(b"POST"), "first line"),
    "an asterisk": (request(b"POST * HTTP/1.1"), "first line"),
    "an authority": (request(b"POST localhost:80 HTTP/1.1"), "first line"),
    "not HTTP at all": (b"\x16\x03\x01\x02\x00 hello\r\n\r\n", "first line"),
    "a lower-case method": (request(b"post {HOOK} HTTP/1.1"), "method"),
    "a method of odd characters": (request(b"PO(ST {HOOK} HTTP/1.1"), "method"),
    "HTTP/2.0": (request(b"POST {HOOK} HTTP/2.0"), "version"),
    "HTTP/3.0": (request(b"POST {HOOK} HTTP/3.0"), "version"),
    "HTTP without a number": (request(b"POST {HOOK} HTTP/1.x"), "version"),
    "HTTP/0.9": (request(b"POST {HOOK} HTTP/0.9"), "version"),
    "HTTPS/1.1": (request(b"POST {HOOK} HTTPS/1.1"), "version"),
    "a long URL": (request(b"POST {HOOK}?" + b"a" * 9000 + b" HTTP/1.1"), "URL longer"),
    "a long path": (request(b"POST {HOOK}" + b"a" * 6000 + b" HTTP/1.1"), "URL longer"),
    "no slash before the path": (request(b"POST webhooks/lytics/x HTTP/1.1"), "first line"),
    "bytes for a path": (request(b"POST /webhooks/lytics/\xff\xfe HTTP/1.1"), "first line"),
    "a long header": (request(b"POST {HOOK} HTTP/1.1", b"X-Long: " + b"a" * 9000), "one longer"),
    "many headers": (request(b"POST {HOOK} HTTP/1.1", *[b"X-%d: y" % n for n in range(200)]), "too many"),
    "headers of 90 KB": (
        request(b"POST {HOOK} HTTP/1.1", *[b"X-%d: %b" % (n, b"y" * 1000) for n in range(90)]),
        "too many",
    ),
    "a header without an end": (b"POST {HOOK} HTTP/1.1\r\n" + b"X: y\r\n" * 15_000, "too many"),
    "a header without a colon": (request(b"POST {HOOK} HTTP/1.1", b"lysync_secret"), "header"),
    "a header without a name": (request(b"POST {HOOK} HTTP/1.1", b": x"), "header"),
    "a blank in a header's name": (request(b"POST {HOOK} HTTP/1.1", b"X Y: z"), "header name"),
    "a blank after a header's name": (request(b"POST {HOOK} HTTP/1.1", b"X-Y : z"), "header name"),
    "NUL in a header": (request(b"POST {HOOK} HTTP/1.1", b"X-Y: a\0b"), "header"),
    "a folded header": (request(b"POST {HOOK} HTTP/1.1", b"X-Y: a", b" b"), "second line"),
    "LF alone": (request().replace(b"\r\n", b"\n"), "first line"),
    "LF within the headers": (request(b"POST {HOOK} HTTP/1.1", b"X: y\nZ: w"), "header"),
    "two hosts": (request(b"POST {HOOK} HTTP/1.1", b"Host: other"), "header"),
    "two content types": (request(b"POST {HOOK} HTTP/1.1", b"Content-Type: a/b", b"Content-Type: c/d"), "header"),
    "two lengths": (request(b"POST {HOOK} HTTP/1.1", b"Content-Length: 2"), "header"),
    "a negative length": (request(length=b"Content-Length: -1"), "header"),
    "a length with a sign": (request(length=b"Content-Length: +5"), "header"),
    "a length in words": (request(length=b"Content-Length: ten"), "header"),
    "a length of other digits": (request(length=b"Content-Length: \xb2"), "header"),
    "an empty length": (request(length=b"Content-Length:"), "header"),
    "a length and chunks": (request(b"POST {HOOK} HTTP/1.1", CHUNKED), "header"),
    "chunks of HTTP/1.0": (request(b"POST {HOOK} HTTP/1.0", CHUNKED, **NO_LENGTH), "header"),
    "chunks twice": (request(b"POST {HOOK} HTTP/1.1", CHUNKED, CHUNKED, **NO_LENGTH), "header"),
    "chunks twice in one line": (request(b"POST {HOOK} HTTP/1.1", CHUNKED + b", chunked", **NO_LENGTH), "header"),
    "a length that is a word": (request(length=b"Content-Length: many"), "header"),
    "an unknown coding": (request(b"POST {HOOK} HTTP/1.1", b"Transfer-Encoding: br", **NO_LENGTH), "transfer coding"),
    "a coding without chunks": (
        request(b"POST {HOOK} HTTP/1.1", b"Transfer-Encoding: gzip", **NO_LENGTH),
        "header",
    ),
    "another expectation": (request(b"POST {HOOK} HTTP/1.1", b"Expect: coffee"), "Expect"),
    "an expectation of several words": (request(b"POST {HOOK} HTTP/1.1", b"Expect: a miracle"), "Expect"),
    "contradicting schemes": (
        request(b"POST {HOOK} HTTP/1.1", b"X-Forwarded-Proto: https", b"X-Forwarded-Ssl: off"),
        "contradict",
    ),
    "a chunk of nonsense": (
        request(b"POST {HOOK} HTTP/1.1", CHUNKED, length=None, content=b"zz\r\n[]\r\n0\r\n\r\n"),
        "chunk",
    ),
    "a chunk without an end": (
        request(b"POST {HOOK} HTTP/1.1", CHUNKED, length=None, content=b"2\r\n[]xx0\r\n\r\n"),
        "chunk",
    ),
    "a chunk of a longer one": (
        request(b"POST {HOOK} HTTP/1.1", CHUNKED, length=None, content=b"5\r\nabcdefgh\r\n0\r\n\r\n"),
        "chunk",
    ),
    "a chunk of negative length": (request(b"POST {HOOK} HTTP/1.1", CHUNKED, length=None, content=b"-1\r\n"), "chunk"),
    "a chunk with NUL in its extension": (
        request(b"POST {HOOK} HTTP/1.1", CHUNKED, length=None, content=b"5;\0\r\nabcde\r\n0\r\n\r\n"),
        "chunk",
    ),
    "a host with a blank": (request(host=b"Host: exa mple"), "ALLOWED_HOSTS"),
    "a host of another address": (request(host=b"Host: 10.1.2.3"), "ALLOWED_HOSTS"),
    "a whole URL of elsewhere": (
        request(b"POST http://elsewhere{HOOK} HTTP/1.1", host=b"Host: elsewhere"),
        "ALLOWED_HOSTS",
    ),
    "a host that is not ours": (request(host=b"Host: example.com"), "ALLOWED_HOSTS"),
    "an unusable host": (request(host=b"Host: a b,c"), "ALLOWED_HOSTS"),
}


@pytest.mark.parametrize("what", UNPARSED)
def test_an_unparsable_request_is_answered_503_and_counted(web: Web, install: Install, what: str) -> None:
    raw, words = UNPARSED[what]
    answer = answers(web, install, raw)
    assert status(answer) == 503, answer
    assert b"\r\nRetry-After: 17\r\n" in answer
    assert re.search(rb"\r\nX-Request-ID: [0-9a-f]{32}\r\n", answer)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not Receipt.objects.exists()
    told = eventually(lambda: (rejected_calls.last_hour([]) or {}).get(rejected_calls.UNREADABLE))
    assert (told.count, words in told.what) == (1, True), told
    assert "lysync" not in told.what
    assert f"{told.source}" == "127.0.0.1"
    assert status(answers(web, install, request())) == 200, "whatever it was, the next call is taken"


READ = {
    "a blank in the query": b"POST {HOOK}?source=lytics prod HTTP/1.1",
    "blanks at its ends": b"POST {HOOK}?source= lytics  HTTP/1.1",
    "bytes in the query": b"PUT {HOOK}?who=J\xc3\xbcrgen&x=\xff HTTP/1.1",
    "a whole URL": b"POST http://127.0.0.1{HOOK}?a=b HTTP/1.1",
    "a whole URL of elsewhere with our host": b"POST http://elsewhere{HOOK} HTTP/1.1",
    "broken escapes in the query": b"PATCH {HOOK}?%zz=%&%00 HTTP/1.1",
}


@pytest.mark.parametrize("what", READ)
def test_an_odd_query_costs_no_call(web: Web, install: Install, what: str) -> None:
    assert status(answers(web, install, request(READ[what]))) == 200
    assert Receipt.objects.count() == 1


def test_a_call_without_a_host_header_is_accepted(web: Web, install: Install) -> None:
    assert status(answers(web, install, request(host=None))) == 200


@pytest.mark.parametrize(
    "line",
    [
        b"POST /webhooks/lytics/x HTTP/1.1",
        b"GET /webhooks/lytics/x?a b HTTP/1.1",
        b"POST /webhooks/lytics/x y?a HTTP/1.1",
        b"POST /webhooks/lytics/x?a HTTP/1.1 b HTTP/1.1",
        b"POST /admin/?a b HTTP/1.1",
        b"POST /webhooks/?a\rb HTTP/1.1",
    ],
)
def test_no_other_request_line_is_changed(line: bytes) -> None:
    assert with_encoded_query(line) == line


def test_nothing_behind_an_unparsed_request_is_read_as_another_one(web: Web, install: Install) -> None:
    hidden = request()
    both = request(b"POST {HOOK} HTTP/1.1", CHUNKED, content=b"0\r\n\r\n")
    for first in (request(length=b"Content-Length: -1", content=b""), request(b"POST x HTTP/1.1", content=b""), both):
        answer = answers(web, install, first.replace(b"Connection: close\r\n", b"") + hidden)
        assert (status(answer), answer.count(b"HTTP/1.1 ")) == (503, 1)
    assert not Receipt.objects.exists()
    assert not Event.objects.exists()


def test_a_body_that_breaks_after_its_answer_gets_no_second_one(web: Web, install: Install) -> None:
    """The sender would take it for the answer to its next call."""
    raw = request(b"GET /health/live HTTP/1.1", CHUNKED, length=None, content=b"2\r\n[]\r\nzz\r\n")
    answer = answers(web, install, raw.replace(b"Connection: close\r\n", b""))
    assert (status(answer), answer.count(b"HTTP/1.1 ")) == (200, 1)


ELSEWHERE = [
    *("/", "//", "/webhook/lytics/x", "/webhooks", "/webhooks/", "/Webhooks/Lytics/x", "/WEBHOOKS/lytics/x"),
    *("//webhooks/lytics/x", "/webhooks//lytics/x", "/webhooks/lytics/x/y/", "/webhooks/lytics", "/lytics", "/x%00y"),
    *("/webhooks/lytic/x", "/lytics/x", "/webhooks/lytics/x/y", "/webhooks/lytics/%E2%80%8Bx"),
    *("/nothing/here", "/nothing", "/static/none.js", "/webhooks/lytics/%ff%fe", "/webhooks/lytics/%00"),
    *(
        "/%ff",
        "/%zz",
        "/..",
        "/../webhooks/lytics/x",
        "/static/x",
        "/admin",
        "/health/live",
        "/favicon.ico",
        "/" + "a" * 999,
    ),
]


@pytest.mark.parametrize("path", ELSEWHERE)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_a_post_to_an_unknown_path_is_answered_401(install: Install, method: str, path: str) -> None:
    answer = Client().generic(method, path, CONTENT, "application/json")
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("path", ["/WEBHOOKS/lytics/x", "/Webhooks/Lytics/x", "/webhook/lytics/x", "/api/webhooks/x"])
def test_a_job_set_to_get_whose_url_is_off_by_a_letter_is_answered_401(install: Install, path: str) -> None:
    assert Client().get(path).status_code == Client().head(path).status_code == 401


@pytest.mark.parametrize("path", [*ELSEWHERE, "/webhooks/lytics/x/"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_gunicorn_passes_on_every_path(web: Web, install: Install, method: str, path: str) -> None:
    """A redirect would lead a job to the login page, whose 200 would count as a stored batch."""
    assert status(answers(web, install, request(f"{method} {path} HTTP/1.1".encode()))) == 401


def test_people_keep_their_pages(install: Install) -> None:
    assert Client().get("/nothing-here").status_code == 404
    assert someone("operator").get("/nothing/here").status_code == 404
    assert someone("admin").get("/admin/nothing/here").status_code == 404
    assert Client().get("/").status_code == 302
    assert someone("viewer").get("/admin/audiences/nothing/").status_code == 404
    assert Client(enforce_csrf_checks=True).post("/admin/login/", {}).status_code == 403
    assert Client().get("/", headers={"Host": "example.com"}).status_code == 400


def test_the_front_page_shows_unreadable_requests(install: Install) -> None:
    Client().post("/webhooks/lytics/x", b"[]", "application/json", headers={"Host": "<b>example.com"})
    Client().get(f"/webhooks/lytics/{install.public_id}")
    rejected_calls._counter.sender.send()
    alerts = someone("viewer").get(reverse("admin:index")).context["alerts"]
    told = {one.what: str(one.why) for one in alerts}
    assert "ALLOWED_HOSTS" in told["1 request could not be read and got 503"]
    assert "<b>" not in told["1 request could not be read and got 503"]
    assert f"GET /webhooks/lytics/{install.public_id}" in told["1 call got 405: the method is not POST"]


def test_the_front_page_sums_the_unreadable_requests_of_all_server_processes(
    web: Web, install: Install, admin_client: Client
) -> None:
    def shown() -> bool:
        """The newest one is named, and each process of the server hands in its own once a second."""
        answers(web, install, UNPARSED["a long header"][0])
        page = admin_client.get(reverse("admin:index")).content.decode()
        counts = re.search(r"(\d+) requests could not be read and got 503", page)
        return bool(counts and int(counts[1]) > 2 and "too many headers, or one longer than 8,190 bytes" in page)

    assert eventually(shown)
    assert (rejected_calls.last_hour([]) or {})[rejected_calls.UNREADABLE].source == "127.0.0.1"


@pytest.mark.parametrize("method", ["post", "put", "delete"])
@pytest.mark.parametrize("path", ["{hook}", "/webhooks/", "/no/such/page"])
def test_a_call_of_lytics_gets_no_session_and_no_messages(method: str, path: str, install: Install) -> None:
    headers = {"cookie": "sessionid=x; messages=x", "authorization": install.tokens.get().secret}
    url = path.format(hook=reverse("webhook", args=[install.public_id]))
    answer = Client().generic(method.upper(), url, CONTENT, content_type="application/json", headers=headers)
    assert answer.status_code in (200, 401, 405)
    assert not {"session", "_messages"} & set(vars(answer.wsgi_request))
    assert not answer.cookies


@pytest.mark.parametrize(("host", "status"), [("testserver", 200), ("elsewhere.example", 503)])
def test_a_call_of_lytics_gets_the_security_headers_of_a_page(install: Install, host: str, status: int) -> None:
    url = reverse("webhook", args=[install.public_id])
    headers = {"authorization": install.tokens.get().secret, "host": host}
    call = Client().post(url, CONTENT, content_type="application/json", headers=headers)
    page = Client().get(reverse("admin:login"))
    names = (
        *("X-Content-Type-Options", "X-Frame-Options", "Content-Security-Policy"),
        *("Referrer-Policy", "Cross-Origin-Opener-Policy"),
    )
    assert call.status_code == status
    assert {name: call.headers[name] for name in names} == {name: page.headers[name] for name in names}
    assert call.headers["X-Request-ID"]
    assert call.headers["Content-Length"] == str(len(call.content))


def test_a_page_has_a_session_an_account_and_messages() -> None:
    request = Client().get(reverse("admin:login")).wsgi_request
    assert {"session", "user", "_messages"} <= set(vars(request))
