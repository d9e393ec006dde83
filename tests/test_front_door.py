"""Lytics is never answered 400, 404 or 413, whichever layer answers: on those it drops a batch for good."""

import json
import re
from typing import Any

import psycopg
import pytest
from django.db import DataError, Error, InterfaceError, InternalError, OperationalError
from django.test import Client
from django.urls import reverse

from audiences import installs, refused
from audiences.models import Event, Install
from tests.messages import body, message
from tests.threads import eventually
from tests.web import Web, web_of_a_module

pytestmark = pytest.mark.django_db(transaction=True)
web = web_of_a_module()

FATAL = (400, 404, 413)


@pytest.fixture
def shop(db: None) -> Install:
    made = Install(name="Shop", odp_api_key="key", odp_host="http://127.0.0.1:9")
    installs.create(made)
    return made


def lines_of(
    install: Install, *more: str, target: str = "", method: str = "POST", version: str = "HTTP/1.1"
) -> list[str]:
    (token,) = install.tokens.all()
    return [
        f"{method} {target or f'/webhooks/lytics/{install.public_id}'} {version}",
        "Host: 127.0.0.1",
        f"Authorization: {installs.authorization(token)}",
        *more,
    ]


def sent(web: Web, head: list[str], content: bytes = b"") -> tuple[int, str, bytes]:
    """Status, header and the rest of what came back until the server closed, or stayed silent."""
    with web.raw() as caller:
        caller.sendall("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + content)
        caller.settimeout(5)
        answer = b""
        try:
            while piece := caller.recv(65536):
                answer += piece
                if b"\r\n\r\n" in answer and b"onnection: close" not in answer:
                    break
        except TimeoutError:
            assert answer, "no answer at all"
    first, _, rest = answer.partition(b"\r\n\r\n")
    return int(first.split(b" ")[1]), first.decode("latin-1"), rest


CALL = body(message())
LENGTH = f"Content-Length: {len(CALL)}"
ODD: dict[str, Any] = {
    "a blank in the query": lambda one: lines_of(
        one, LENGTH, target=f"/webhooks/lytics/{one.public_id}?source=lytics prod"
    ),
    "a blank in the path": lambda one: lines_of(one, LENGTH, target=f"/webhooks/lytics/{one.public_id} x"),
    "a tab in the query": lambda one: lines_of(one, LENGTH, target=f"/webhooks/lytics/{one.public_id}?a\tb"),
    "no HTTP version": lambda one: ["POST /webhooks/lytics/x", *lines_of(one, LENGTH)[1:]],
    "another HTTP version": lambda one: lines_of(one, LENGTH, version="HTTP/3.0"),
    "no version number": lambda one: lines_of(one, LENGTH, version="HTTP/1.x"),
    "a small method": lambda one: lines_of(one, LENGTH, method="post"),
    "a method with odd characters": lambda one: lines_of(one, LENGTH, method="P(O)ST"),
    "a long URL": lambda one: lines_of(one, LENGTH, target="/webhooks/lytics/" + "x" * 6000),
    "a long header": lambda one: lines_of(one, LENGTH, "X-Long: " + "x" * 9000),
    "many headers": lambda one: lines_of(one, LENGTH, *(f"X-{number}: y" for number in range(200))),
    "a folded header": lambda one: lines_of(one, LENGTH, "X-Folded: a", " b"),
    "a header without a colon": lambda one: lines_of(one, LENGTH, "nonsense"),
    "a header name with a blank": lambda one: lines_of(one, LENGTH, "X Y: z"),
    "an empty header name": lambda one: lines_of(one, LENGTH, ": z"),
    "a header with NUL": lambda one: lines_of(one, LENGTH, "X: a\0b"),
    "a length that is no number": lambda one: lines_of(one, "Content-Length: many"),
    "a negative length": lambda one: lines_of(one, "Content-Length: -5"),
    "two lengths": lambda one: lines_of(one, LENGTH, "Content-Length: 3"),
    "a length and chunks": lambda one: lines_of(one, LENGTH, "Transfer-Encoding: chunked"),
    "an unknown coding": lambda one: lines_of(one, "Transfer-Encoding: br"),
    "chunked twice": lambda one: lines_of(one, "Transfer-Encoding: chunked, chunked"),
    "an unknown expectation": lambda one: lines_of(one, LENGTH, "Expect: a miracle"),
    "no host": lambda one: [line for line in lines_of(one, LENGTH) if not line.startswith("Host")],
    "two hosts": lambda one: lines_of(one, LENGTH, "Host: other"),
    "a host that is none": lambda one: [line.replace("127.0.0.1", "exa mple") for line in lines_of(one, LENGTH)],
    "a host that is not ours": lambda one: [line.replace("127.0.0.1", "10.1.2.3") for line in lines_of(one, LENGTH)],
    "a whole URL": lambda one: lines_of(one, LENGTH, target=f"http://elsewhere/webhooks/lytics/{one.public_id}"),
    "no path": lambda one: lines_of(one, LENGTH, target="webhooks/lytics/x"),
    "an asterisk": lambda one: lines_of(one, LENGTH, target="*"),
    "broken percent signs": lambda one: lines_of(one, LENGTH, target=f"/webhooks/lytics/{one.public_id}?a=%zz%"),
    "no UTF-8 in the path": lambda one: lines_of(one, LENGTH, target="/webhooks/lytics/%ff%fe"),
    "bytes in the path": lambda one: lines_of(one, LENGTH, target="/webhooks/lytics/\xff\xfe"),
    "NUL in the path": lambda one: lines_of(one, LENGTH, target="/webhooks/lytics/%00"),
}


@pytest.mark.parametrize("name", ODD)
def test_no_odd_request_gets_an_answer_that_drops_the_batch(web: Web, shop: Install, name: str) -> None:
    status, head, _ = sent(web, ODD[name](shop), CALL)
    assert status not in FATAL
    assert status in (200, 401, 405, 503), head
    assert (status == 503) == ("retry-after:" in head.lower())
    # Whatever it was, the next call is taken.
    assert (
        web.call("POST", f"/webhooks/lytics/{shop.public_id}", CALL, Authorization=lines_of(shop)[2][15:]).status == 200
    )


@pytest.mark.parametrize(
    "chunks", [b"zz\r\nx\r\n0\r\n\r\n", b"5\r\nabcdefgh\r\n0\r\n\r\n", b"-1\r\n", b"5;\0\r\nabcde\r\n0\r\n\r\n"]
)
def test_chunks_that_make_no_sense_ask_to_come_back(web: Web, shop: Install, chunks: bytes) -> None:
    status, head, _ = sent(web, lines_of(shop, "Transfer-Encoding: chunked"), chunks)
    assert status == 503, head
    assert "Retry-After" in head


def test_what_follows_an_unreadable_request_is_never_taken_for_another(web: Web, shop: Install) -> None:
    """No request may be smuggled in behind one that was refused."""
    hidden = "\r\n".join(lines_of(shop, LENGTH)).encode() + b"\r\n\r\n" + CALL
    status, _, rest = sent(web, lines_of(shop, LENGTH, "Transfer-Encoding: chunked"), b"0\r\n\r\n" + hidden)
    assert status == 503
    assert b"HTTP/1.1" not in rest
    assert not Event.objects.exists()


def test_the_front_page_counts_what_could_not_be_read_and_says_what_it_was(
    web: Web, shop: Install, broker: Any, admin_client: Client
) -> None:
    def shown() -> bool:
        """The newest one is named, and each process of the server hands in its own once a second."""
        sent(web, ODD["a long header"](shop), CALL)
        page = admin_client.get(reverse("admin:index")).content.decode()
        counts = re.search(r"(\d+) requests could not be read and got 503", page)
        return bool(counts and int(counts[1]) > 2 and "too many headers, or one longer than 8,190 bytes" in page)

    assert eventually(shown)
    assert (refused.last_hour([]) or {})[refused.UNREADABLE].source == "127.0.0.1"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize(
    "path",
    [
        "/webhook/lytics/x",
        "/webhooks/lytic/x",
        "/lytics/x",
        "//webhooks/lytics/x",
        "/webhooks//lytics/x",
        "/Webhooks/Lytics/x",
        "/webhooks/lytics/x/y",
        "/webhooks/lytics/x/",
        "/nothing/here",
        "/nothing",
        "/static/none.js",
        "/favicon.ico",
        "/webhooks/lytics/%E2%80%8Bx",
    ],
)
def test_a_path_that_is_off_is_answered_as_a_stranger_is(web: Web, method: str, path: str) -> None:
    with web.raw() as caller:
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]"
        caller.sendall(head.encode())
        answer = caller.recv(65536)
    assert re.match(rb"HTTP/1\.1 (401|429) ", answer), answer[:200]


@pytest.mark.parametrize("path", ["/nothing/here", "/admin/nothing/here"])
def test_people_get_404_for_pages_that_are_not_there(admin_client: Client, path: str) -> None:
    assert admin_client.get(path).status_code == 404


def test_who_writes_to_the_front_is_a_stranger_and_who_reads_is_led_on() -> None:
    """Led on, a job would end at the login page, whose 200 says that its batch is stored."""
    assert Client().post("/").status_code == 401
    assert Client().get("/").status_code == 302


@pytest.mark.parametrize("times", [30])
def test_twenty_callers_are_not_asked_back_at_one_moment(
    shop: Install, monkeypatch: pytest.MonkeyPatch, settings: Any, times: int
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OperationalError("the database went away")

    monkeypatch.setattr("audiences.ingest.receive", fails)
    settings.RETRY_SOON_SECONDS = 3
    caller = Client(headers={"Authorization": lines_of(shop)[2][15:]})
    waits = set()
    for _ in range(times):
        answer = caller.post(f"/webhooks/lytics/{shop.public_id}", CALL, content_type="application/json")
        assert answer.status_code == 503
        waits.add(answer.headers["Retry-After"])
    assert waits == {"1", "2", "3"}


def test_what_lasts_asks_for_a_longer_wait(shop: Install, settings: Any) -> None:
    Install.objects.update(enabled=False)
    caller = Client(headers={"Authorization": lines_of(shop)[2][15:]})
    answer = caller.post(f"/webhooks/lytics/{shop.public_id}", CALL, content_type="application/json")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, str(settings.RETRY_AFTER_SECONDS))
    assert json.loads(answer.content)["detail"] == "This install is switched off."


def caused(error: Error, sqlstate: str) -> Error:
    """As Django raises them: with psycopg's own error behind."""
    error.__cause__ = psycopg.errors.lookup(sqlstate)()
    return error


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (caused(OperationalError(), "40P01"), "1"),  # deadlock
        (caused(OperationalError(), "55P03"), "1"),  # lock timeout
        (caused(OperationalError(), "57P01"), "1"),  # ended by a restart
        (caused(OperationalError(), "53300"), "1"),  # no connection is free
        (caused(InternalError(), "25006"), "1"),  # read only, until a failover is over
        (InterfaceError("closed"), "1"),
        (caused(OperationalError(), "53100"), "30"),  # the disk is full
        (caused(DataError(), "22P02"), "30"),
        (KeyError("a fault of ours"), "30"),
    ],
)
def test_the_cause_decides_how_long_a_job_is_asked_to_wait(
    shop: Install, monkeypatch: pytest.MonkeyPatch, settings: Any, error: Exception, asked: str
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("audiences.ingest.receive", fails)
    settings.RETRY_SOON_SECONDS, settings.RETRY_AFTER_SECONDS = 1, 30
    caller = Client(headers={"Authorization": lines_of(shop)[2][15:]})
    answer = caller.post(f"/webhooks/lytics/{shop.public_id}", CALL, content_type="application/json")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, asked)
