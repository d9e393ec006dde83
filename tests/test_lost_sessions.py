"""A worker that loses its database session gives up what it had leased as soon as PostgreSQL is back."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from django.db import Error, OperationalError, connection
from psycopg import sql

from audiences import sessions
from audiences.delivery import claims, leases, provision, settling
from audiences.models import Audience, Install
from tests.delivering import (
    assert_all_is_well,
    claim,
    drain_all,
    enter,
    lane_of,
    lease_runs_out,
    make_audience,
    step_of,
)
from tests.threads import eventually
from workers import drain

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def gold(shop: Install) -> Audience:
    made = make_audience(shop, "gold", provisioned=False)
    enter(made, "a")
    assert provision.provision_one(shop.pk)
    return made


@contextmanager
def admin() -> "Iterator[psycopg.Connection[Any]]":
    url = os.environ["DATABASE_URL"].rsplit("/", 1)[0] + "/postgres"
    with psycopg.connect(url, autocommit=True) as connected:
        yield connected


def end_session() -> None:
    """What the death of PostgreSQL is to the session of this thread."""
    with admin() as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.connection.info.backend_pid])


def make_read_only() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")


def accept_connections(accepted: bool) -> None:
    with admin() as other:
        name = sql.Identifier(str(connection.settings_dict["NAME"]))
        other.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(name, accepted))


def lose(monkeypatch: pytest.MonkeyPatch, module: Any, function: str, how: Callable[[], None]) -> None:
    """The session is of no use from right before the first call of ``module.function`` on."""
    original = getattr(module, function)

    def lost_first(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(module, function, original)
        how()
        return original(*args, **kwargs)

    monkeypatch.setattr(module, function, lost_first)


@pytest.mark.parametrize(
    ("where", "how"),
    [("open_delivery", make_read_only), ("settle", make_read_only), ("_write_ledger", end_session)],
)
def test_lanes_are_given_up_at_once_when_a_drain_loses_its_session(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch, where: str, how: Callable[[], None]
) -> None:
    lose(monkeypatch, step_of(where), where, how)
    with pytest.raises(Error):
        drain.turn(shop.pk)
    assert lane_of(gold).lease_token is None
    shop.refresh_from_db()
    assert shop.backoff_reason == ""
    drain_all(shop)
    assert_all_is_well(gold)


def test_lanes_are_given_up_when_the_session_is_lost_before_the_claim_is_answered(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*args: Any) -> Any:
        raise OperationalError("the server closed the connection")

    with monkeypatch.context() as patched:
        patched.setattr(claims, "Span", lost)
        with pytest.raises(OperationalError):
            claims.claim(shop.pk, capacity=10)
    assert lane_of(gold).lease_token is None


def test_lanes_are_given_up_when_postgresql_is_back_and_not_before(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[float] = []

    def comes_back(seconds: float) -> None:
        paused.append(seconds)
        if len(paused) == 3:
            accept_connections(True)

    def goes_away() -> None:
        accept_connections(False)
        end_session()

    monkeypatch.setattr(sessions, "time", SimpleNamespace(sleep=comes_back, monotonic=time.monotonic))
    lose(monkeypatch, settling, "_write_ledger", goes_away)
    try:
        with pytest.raises(Error):
            drain.turn(shop.pk)
    finally:
        accept_connections(True)
    assert len(paused) == 3
    assert lane_of(gold).lease_token is None


def test_lanes_that_another_worker_has_claimed_meanwhile_stay_its_own(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[leases.Lease] = []

    def taken_over(*args: Any, **kwargs: Any) -> None:
        lease_runs_out(gold)
        others.append(claim(shop))
        raise OperationalError("the server closed the connection")

    monkeypatch.setattr(settling, "settle", taken_over)
    with pytest.raises(OperationalError):
        drain.turn(shop.pk)
    assert lane_of(gold).lease_token == others[0].token


@pytest.mark.parametrize("where", ["mechanism_for", "_end"])
def test_a_making_is_given_up_at_once_when_its_session_is_lost(
    shop: Install, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    silver = make_audience(shop, "silver", provisioned=False)
    enter(silver, "a")

    def lost(*args: Any, **kwargs: Any) -> Any:
        raise OperationalError("the server closed the connection")

    with monkeypatch.context() as patched:
        patched.setattr(provision, where, lost)
        with pytest.raises(OperationalError):
            provision.provision_one(shop.pk)
    silver.refresh_from_db()
    assert (silver.making_token, silver.hold_failures) == (None, 0)
    drain_all(shop)
    assert_all_is_well(silver)


def test_a_statement_without_an_answer_is_cancelled_and_costs_its_session() -> None:
    """Until PostgreSQL answers again, only one thread at a time waits for it."""
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%' AND state = 'active'"
    try:
        sessions.bound(0.5)
        with pytest.raises(OperationalError, match=r"no answer for 0\.5 s"), connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(600)")
        assert connection.connection is None
        assert sessions.silence._silent
        with admin() as other:
            eventually(lambda: other.execute(running).fetchone() == (0,))
        connection.ensure_connection()
        assert not sessions.silence._silent
    finally:
        sessions.bound(0)
        sessions.silence.ends()
