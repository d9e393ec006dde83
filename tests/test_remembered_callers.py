"""Remembered callers cost one round trip less, and get the responses of a caller that is looked up."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, cast

import pytest
from django.http.response import HttpResponseBase
from django.test import Client
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.models import Event, Install, Receipt, Token
from audiences.receiving import authentication, backlog, tokens
from tests.messages import body, message, transition
from tests.test_webhook import counts, is_later, send

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _remembered(install: Install) -> Iterator[None]:
    """The install's caller is remembered: its last call was plain."""
    authentication._remembered.clear()
    for _ in range(2):
        assert counts(send(install, body(message())))[1] == 1
    assert len(authentication._remembered) == 1
    yield
    authentication._remembered.clear()


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The installs whose tokens were looked up."""
    found: list[str] = []
    authenticate = tokens.authenticate

    def noted(*, public_id: str, authorization: str) -> Any:
        found.append(public_id)
        return authenticate(public_id=public_id, authorization=authorization)

    monkeypatch.setattr(tokens, "authenticate", noted)
    return found


def test_a_plain_call_of_a_remembered_caller_needs_no_look_up(install: Install, looked_up: list[str]) -> None:
    assert counts(send(install, body(message())))[1] == 1
    assert counts(send(install, b"[]"))[1] == 0
    assert looked_up == []


@pytest.mark.parametrize("content", [body(message()), b"[]", b"junk", body(message(transition(segment="new")))])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda: Token.objects.update(revoked_at=now()), id="revoked"),
        pytest.param(lambda: Token.objects.update(expires_at=now() - timedelta(seconds=1)), id="expired"),
        pytest.param(lambda: Token.objects.all().delete(), id="deleted"),
    ],
)
def test_a_token_that_is_not_live_any_more_is_rejected_with_the_next_call(
    install: Install, secret: str, change: Callable[[], object], content: bytes
) -> None:
    change()
    for _ in range(2):
        assert call(install, content, secret).status_code == 401
        assert authentication._remembered == {}, "the body of its next call would be read before the token"
    assert Receipt.objects.count() == 2


@pytest.mark.parametrize("too_much", ["events", "bytes"])
def test_a_rejected_token_is_401_even_while_calls_are_asked_to_come_back(
    install: Install, secret: str, settings: Settings, monkeypatch: pytest.MonkeyPatch, too_much: str
) -> None:
    if too_much == "events":
        monkeypatch.setattr(backlog, "FRESH_SECONDS", 0.0)
        settings.BACKLOG_HIGH_WATER = 0
    else:
        settings.WEBHOOK_BODY_LIMIT = 10
    assert is_later(call(install, body(message()), secret))
    Token.objects.update(revoked_at=now())
    assert call(install, body(message()), secret).status_code == 401


def test_an_install_that_is_switched_off_is_asked_to_come_back(install: Install) -> None:
    Install.objects.update(enabled=False)
    assert is_later(send(install, body(message())))
    assert Receipt.objects.count() == 2
    Install.objects.update(enabled=True)
    assert counts(send(install, body(message())))[1] == 1


def test_a_changed_identifier_field_counts_with_the_next_call(install: Install) -> None:
    Install.objects.update(identifier_field="other")
    assert counts(send(install, body(message())))[2] == 1
    Install.objects.update(identifier_field="_id")
    assert counts(send(install, body(message())))[1] == 1


def test_a_changed_place_of_the_identifier_counts_with_the_next_call(install: Install) -> None:
    beside = body({**message(), "data": {"segment_events": [transition()]}, "_id": "kim"})
    assert counts(send(install, beside))[2] == 1
    for _ in range(2):
        assert counts(send(install, body(message())))[1] == 1
    Install.objects.update(allow_top_level_identifier=True)
    assert counts(send(install, beside))[1] == 1


def test_lists_are_compared_with_the_next_call_after_that_is_switched_on(
    install: Install, looked_up: list[str]
) -> None:
    Install.objects.update(forget_missing_identifiers=True)
    for _ in range(2):
        assert counts(send(install, body(message())))[1] == 1
    assert len(looked_up) == 2


def test_a_call_with_flaws_is_read_once_when_the_one_before_had_flaws(install: Install, looked_up: list[str]) -> None:
    for _ in range(3):
        assert counts(send(install, body(message(), "flawed")))[1:3] == (1, 1)
    assert len(looked_up) == 3
    assert authentication._remembered == {}


def test_another_secret_or_install_is_another_caller(install: Install, secret: str) -> None:
    assert call(install, b"[]", secret + "x").status_code == 401
    other = Install.objects.create(name="Other", odp_api_key="a.b")
    assert call(other, b"[]", secret).status_code == 401
    assert Event.objects.count() == 2


def test_the_memory_for_callers_is_bounded(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "REMEMBERED_AT_MOST", 1)
    second = tokens.create(install).secret
    assert call(install, body(message()), second).status_code == 200
    assert [digest for _, digest in authentication._remembered] == [tokens.digest(second)]


@pytest.fixture
def secret(install: Install) -> str:
    return str(Token.objects.get(install=install).secret)


def call(install: Install, content: bytes, secret: str) -> HttpResponseBase:
    url = f"/webhooks/lytics/{install.public_id}"
    return cast(
        HttpResponseBase,
        Client().post(url, content, content_type="application/json", HTTP_AUTHORIZATION=f"Bearer {secret}"),
    )
