"""The certificate of the public address on Now and in alerts: known to a task, and not asked for by a page."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.front import troubles as front
from audiences.insight import certificate
from audiences.models import Trouble
from audiences.receiving import rejected_calls
from odp import client as http
from tests.certificates import self_signed, tls_server
from tests.wire import ScriptedServer, answer, say
from workers import tasks

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("broker")]


def alerts() -> list[Any]:
    return [alert for alert in front.alerts(front.facts()) if alert.kind == "certificate"]


@pytest.mark.parametrize(
    ("days", "tone", "words"),
    [(60, None, ""), (10, "held", "in 9 days"), (3, "bad", "in 2 days"), (-1, "bad", "expired")],
)
def test_now_says_when_the_certificate_ends(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    viewer: Client,
    days: int,
    tone: str | None,
    words: str,
) -> None:
    file = self_signed(tmp_path, days=days)
    monkeypatch.setattr(http, "TRUSTED", str(file))
    with ScriptedServer(say(answer()), tls=tls_server(file)) as server:
        settings.PUBLIC_URL = server.url.replace("127.0.0.1", "localhost")
        assert alerts() == []
        tasks.look_at_certificate()
    # The server is gone: the page reads what the task has stored.
    found = alerts()
    assert [alert.tone for alert in found] == ([tone] if tone else [])
    assert all(words in alert.why for alert in found)
    shown = viewer.get(reverse("admin:index")).content.decode()
    assert ("The certificate of localhost" in shown) == bool(tone)
    # An address that can't be reached from here says nothing new.
    tasks.look_at_certificate()
    assert len(alerts()) == len(found)
    settings.PUBLIC_URL = "https://other.example.com"
    assert alerts() == []


@pytest.mark.parametrize(
    ("lifetime", "left", "word"),
    [(90, 22, "good"), (90, 20, "warning"), (90, 6, "bad"), (45, 14, "good"), (45, 5, "warning"), (45, 3, "bad")],
)
def test_a_certificate_of_a_short_lifetime_is_renewed_later(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, lifetime: int, left: int, word: str
) -> None:
    ends_at = now() + timedelta(days=left)
    shown = certificate.Certificate(ends_at, begins_at=ends_at - timedelta(days=lifetime))
    monkeypatch.setattr(certificate, "ask", lambda **_: shown)
    settings.PUBLIC_URL = "https://sync.example.com"
    certificate.look()
    known = certificate.known()
    assert known == shown
    assert known.word == word


@pytest.mark.parametrize(
    ("problem", "cure"),
    [
        ("certificate has expired", certificate.RENEW),
        ("self-signed certificate", certificate.REPLACE),
        ("Hostname mismatch, certificate is not valid for 'localhost'.", certificate.REPLACE),
    ],
)
def test_only_a_certificate_that_ends_is_to_be_renewed(problem: str, cure: str) -> None:
    found = certificate.Certificate(problem=problem)
    assert (found.cure, found.words.endswith("..")) == (cure, False)
    assert certificate.Certificate(now()).cure == certificate.RENEW


def test_an_address_without_https_has_no_certificate(settings: Settings, broker: Any) -> None:
    broker.set(certificate.KEY, "{}")
    settings.PUBLIC_URL = "http://sync.example.com"
    tasks.look_at_certificate()
    assert broker.get(certificate.KEY) is None
    assert alerts() == []


def test_the_trouble_is_not_resolved_while_redis_is_away(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "known", lambda: certificate.Certificate(problem="self-signed certificate"))
    front.check()
    assert Trouble.objects.filter(kind="certificate", resolved_at=None).exists()
    monkeypatch.setattr(rejected_calls, "last_hour", lambda public_ids: None)
    for _ in range(3):
        front.check()
    assert Trouble.objects.filter(kind="certificate", resolved_at=None, gone_at=None).exists()


def test_the_trouble_is_not_resolved_because_redis_was_emptied(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.PUBLIC_URL = "https://localhost"
    monkeypatch.setattr(certificate, "known", lambda: certificate.Certificate(problem="self-signed certificate"))
    front.check()
    Trouble.objects.update(last_seen_at=now() - timedelta(days=1))
    front.check()
    monkeypatch.setattr(certificate, "known", lambda: None)
    front.check()
    open_one = Trouble.objects.filter(kind="certificate", gone_at=None)
    assert open_one.exists()
    open_one.update(last_seen_at=now() - timedelta(minutes=16))
    front.check()
    assert not open_one.exists(), "no worker can read it any more"
