"""The Retry-After of a 503 depends on the cause that kept the call from being stored."""

import json
import random
from typing import Any

import psycopg
import pytest
from django.db import DataError, Error, InterfaceError, InternalError, OperationalError
from django.test import Client

from audiences.models import Install
from audiences.operations import installs
from tests.messages import body, message

pytestmark = pytest.mark.django_db(transaction=True)

CALL = body(message())


def call(install: Install) -> Any:
    caller = Client(headers={"Authorization": installs.authorization(install.tokens.get())})
    return caller.post(f"/webhooks/lytics/{install.public_id}", CALL, content_type="application/json")


def test_twenty_callers_get_different_retry_after_values(
    install: Install, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OperationalError("the database went away")

    monkeypatch.setattr("audiences.receiving.ingest.receive", fails)
    settings.RETRY_SOON_SECONDS = 3
    random.seed(1)
    waits = set()
    for _ in range(30):
        answer = call(install)
        assert answer.status_code == 503
        waits.add(answer.headers["Retry-After"])
    assert waits == {"1", "2", "3"}


def test_lasting_causes_get_a_longer_retry_after(install: Install, settings: Any) -> None:
    Install.objects.update(enabled=False)
    answer = call(install)
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
def test_the_cause_decides_the_retry_after(
    install: Install, monkeypatch: pytest.MonkeyPatch, settings: Any, error: Exception, asked: str
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("audiences.receiving.ingest.receive", fails)
    settings.RETRY_SOON_SECONDS, settings.RETRY_AFTER_SECONDS = 1, 30
    answer = call(install)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, asked)
