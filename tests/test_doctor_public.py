"""The doctor's checks of the public address: through a real nginx to a real web process, and with real certificates."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.insight import certificate
from audiences.models import Event, Install, Parked, Receipt, Token
from audiences.operations.doctor import CHECKS, Case, examine, public_address
from audiences.receiving import checked_calls, ingest
from local.processes import free_port
from odp import client as http
from tests.certificates import self_signed, tls_server
from tests.messages import body, message
from tests.nginx import Nginx, needs_nginx
from tests.test_doctor import states, the
from tests.web import Web, web_of_a_module
from tests.wire import Script, ScriptedServer, answer, reset, say

pytestmark = pytest.mark.django_db(transaction=True)
web = web_of_a_module(BEHIND_PROXY="0")

Proxy = Callable[[str], None]


@pytest.fixture
def shop(install: Install, web: Web, settings: Settings) -> Install:
    settings.PUBLIC_URL = f"http://127.0.0.1:{web.port}"
    settings.WEBHOOK_BODY_LIMIT = Web.BODY_LIMIT
    return install


@pytest.fixture
def proxy(shop: Install, web: Web, settings: Settings, tmp_path: Path) -> Iterator[Proxy]:
    """Put an nginx with these lines in front; PUBLIC_URL is its address then."""
    running: list[Nginx] = []

    def start(location: str) -> None:
        folder = tmp_path / str(len(running))
        folder.mkdir()
        location = location.format(service=f"http://127.0.0.1:{web.port}")
        running.append(Nginx(folder, f"location / {{ {location} }}"))
        settings.PUBLIC_URL = f"http://127.0.0.1:{running[-1].port}"

    yield start
    for nginx in running:
        nginx.stop()


def both(install: Install, *names: str) -> dict[str, str]:
    """Checks of one examination, as they build on one another."""
    found = examine(Case(Install.objects.get(pk=install.pk)), [CHECKS["public_url"], *(CHECKS[name] for name in names)])
    return {line.check: f"{line.state}: {line.evidence}" for line in found}


def test_public_url(shop: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    line = the(shop, "public_url")
    assert (line.state, "address of this machine" in line.evidence) == ("warning", True)
    monkeypatch.setattr(public_address, "is_local", lambda _: False)
    line = the(shop, "public_url")
    assert (line.state, "https only" in line.evidence) == ("bad", True)
    assert not Receipt.objects.exists()
    Token.objects.update(revoked_at=now())
    assert states(shop, "public_url") == ["unknown"]


def test_public_url_where_nothing_or_something_else_answers(shop: Install, settings: Settings) -> None:
    settings.PUBLIC_URL = f"http://127.0.0.1:{free_port()}"
    line = the(shop, "public_url")
    assert (line.state, "refuses connections" in line.evidence) == ("bad", True)
    assert both(shop, "public_body", "public_query")["public_body"].startswith("unknown")
    ingest.receive(shop, body(message()))
    assert states(shop, "public_url") == ["warning"], "Lytics reaches it"
    Receipt.objects.update(received_at=now() - timedelta(hours=2))
    assert states(shop, "public_url") == ["bad"]
    ingest.receive(shop, body(message()))
    assert states(shop, "public_url") == ["warning"]
    with ScriptedServer(say(answer(200, b'{"queued": 1}'))) as other:
        settings.PUBLIC_URL = other.url
        line = the(shop, "public_url")
        assert (line.state, "another server" in line.evidence) == ("bad", True)
        other.script = say(answer(200, b'{"check": true, "bytes": 5}'))
        assert both(shop, "public_body")["public_body"].endswith("5 bytes arrived.")
        for status, words in ((401, "did not arrive"), (413, "in front of this service")):
            other.script = say(answer(status, b"{}"))
            line = the(shop, "public_url")
            assert (line.state, f"answered {status}" in line.evidence, words in line.evidence) == ("bad", True, True)
        other.script = say(answer(503, b'{"detail": "Redis is full."}'))
        assert the(shop, "public_url").evidence.endswith("answered 503: Redis is full.")


def test_an_address_at_which_this_service_answers_503_itself_is_not_called_wrong(shop: Install) -> None:
    Install.objects.update(enabled=False)
    line = the(shop, "public_url")
    assert (line.state, "This install is switched off." in line.evidence) == ("unknown", True)
    assert "PUBLIC_URL" not in line.cure


@pytest.mark.parametrize(
    ("script", "seconds", "words"),
    [
        (say(answer(404)), 20.0, "bad: A call of 2 MB was answered 404. Lytics drops such a batch."),
        (say(answer(502)), 20.0, "bad: A call of 2 MB was answered 502."),
        (reset, 20.0, "bad: A call of 2 MB was answered not at all: the connection broke off."),
        (say(b""), 0.3, "unknown: A call of 2 MB was not answered within 0 s."),
    ],
)
def test_a_large_call_that_does_not_arrive(
    shop: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch, script: Script, seconds: float, words: str
) -> None:
    monkeypatch.setattr(public_address, "LARGE_BODY_SECONDS", seconds)
    scripts = iter([say(answer(200, b'{"check": true}')), script])
    with ScriptedServer(lambda connection: next(scripts)(connection)) as other:
        settings.PUBLIC_URL = other.url
        assert both(shop, "public_body")["public_body"] == words


def test_nothing_of_the_checks_is_stored(shop: Install) -> None:
    found = both(shop, "public_query", "public_body")
    assert [words.partition(":")[0] for words in found.values()] == ["warning", "good", "good"]
    assert not Receipt.objects.exists()
    assert not Parked.objects.exists()
    assert not Event.objects.exists()
    assert Token.objects.get().last_used_at is None


@needs_nginx
def test_public_query(shop: Install, proxy: Proxy) -> None:
    proxy("proxy_pass {service}; proxy_set_header Host $host;")
    assert both(shop, "public_query")["public_query"] == "good: A query behind the URL arrives unchanged."
    proxy("proxy_pass {service}$uri; proxy_set_header Host $host;")
    assert both(shop, "public_query")["public_query"].startswith("warning")
    proxy("if ($args) {{ return 403; }} proxy_pass {service}; proxy_set_header Host $host;")
    assert both(shop, "public_query")["public_query"].startswith("bad: With a query behind it, the URL answered 403")


@needs_nginx
def test_public_body(shop: Install, proxy: Proxy) -> None:
    proxy("client_max_body_size 64m; proxy_pass {service}; proxy_set_header Host $host;")
    assert both(shop, "public_body")["public_body"].startswith("good: A call of 2 MB arrived whole")
    proxy("proxy_pass {service}; proxy_set_header Host $host;")
    words = both(shop, "public_body")["public_body"]
    assert words.startswith("bad: A call of 2 MB was answered 413. Lytics drops"), "nginx's own default is 1 MB"
    assert not Receipt.objects.exists()


@needs_nginx
def test_a_proxy_that_takes_the_token_away_is_named(shop: Install, proxy: Proxy) -> None:
    proxy('proxy_pass {service}; proxy_set_header Host $host; proxy_set_header Authorization "";')
    assert "removes the Authorization header" in both(shop)["public_url"]


# --- certificates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "state", "words"),
    [(60, "good", "in 59 days"), (10, "warning", "in 9 days"), (3, "bad", "in 2 days"), (-1, "bad", "expired")],
)
def test_public_certificate(
    install: Install,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    days: int,
    state: str,
    words: str,
) -> None:
    file = self_signed(tmp_path, days=days)
    monkeypatch.setattr(http, "TRUSTED", str(file))
    with ScriptedServer(say(answer()), tls=tls_server(file)) as server:
        settings.PUBLIC_URL = server.url.replace("127.0.0.1", "localhost")
        line = the(install, "public_certificate")
        assert (line.state, words in line.evidence) == (state, True), line.evidence
        monkeypatch.setattr(http, "TRUSTED", True)
        line = the(install, "public_certificate")
        assert (line.state, "not trusted" in line.evidence) == ("bad", True)


def test_public_certificate_of_a_silent_server_ends_in_time(
    install: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "SECONDS", 0.3)
    with ScriptedServer(say(b"")) as server:
        settings.PUBLIC_URL = server.url.replace("http://", "https://")
        began = time.monotonic()
        assert states(install, "public_certificate") == ["unknown"]
        assert time.monotonic() - began < 30
    settings.PUBLIC_URL = "http://sync.example.com"
    assert states(install, "public_certificate") == ["unknown"]


# --- the call itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b'{"lytics_sync_check":"check:1abc:forged"}',
        b'{"lytics_sync_check":"',
        b'{"lytics_sync_check":5}',
        b'[{"lytics_sync_check":"x"}]',
        b"[]",
        b"",
    ],
)
def test_a_body_without_our_signature_is_an_ordinary_call(content: bytes) -> None:
    assert checked_calls.answer(content, query="") is None


def test_a_signed_body_is_answered_for_some_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    signed: Any = checked_calls.body(1_000)
    assert checked_calls.answer(signed, query="a=b") == {"check": True, "bytes": 1_000, "query": "a=b"}
    later = time.time() + checked_calls.VALID_SECONDS + 2
    monkeypatch.setattr("django.core.signing.time.time", lambda: later)
    assert checked_calls.answer(signed, query="") is None


def test_a_forged_check_is_stored_as_any_call(shop: Install, web: Web) -> None:
    """Were it taken for a check, a batch behind it would be lost."""
    (token,) = shop.tokens.all()
    said = web.call(
        "POST",
        f"/webhooks/lytics/{shop.public_id}",
        b'{"lytics_sync_check":"check:1abc:forged","data":[]}',
        Authorization=f"Bearer {token.secret}",
        Host="127.0.0.1",
    )
    assert said.status == 200
    assert Receipt.objects.count() == 1
