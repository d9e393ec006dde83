"""A database error at any statement of a drain leaves no hold, no block and no lease."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from django.db import (
    DataError,
    Error,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    connection,
)

from audiences import sessions
from audiences.database.base import _Connection
from audiences.delivery import reading
from audiences.models import Audience, Install
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import assert_all_is_well, drain_all, enter, lane_of, make_audience, make_install
from tests.test_lost_sessions import admin
from workers import drain

pytestmark = pytest.mark.django_db(transaction=True)

# More statements than making one audience and delivering to it take.
MANY = 200
# Errors of the server or the session, by SQLSTATE: none says anything about the events that were to be delivered.
OF_THE_SERVER = {
    "25006": "the session is read-only",
    "0A000": "a prepared statement is older than a migration",
    "26000": "a prepared statement is not in this session",
    "40P01": "deadlock",
    "53100": "the disk is full",
    "57P02": "another process of the server crashed",
    "XX000": "an error inside PostgreSQL",
}
# Every table into which a drain writes.
WRITTEN = ("audience", "delivery", "install", "lane", "membership", "run")


# A context in which statements fail: the first failing one and their number. Yields whether the first was reached.
Failing = Callable[[int, int], AbstractContextManager[Callable[[], bool]]]


@pytest.fixture
def shop(odp: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch) -> Install:
    monkeypatch.setattr(sessions, "time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: 0.0))
    return make_install(odp)


@contextmanager
def ended_sessions(first: int, times: int, *, done: bool) -> Iterator[Callable[[], bool]]:
    """PostgreSQL ends the session at the ``first`` round trip and at each of the next ``times`` - 1.

    With ``done`` it ends after the statement was executed, so that only the result is lost.
    """
    wait = _Connection.wait
    round_trips = 0

    def end(pid: int) -> None:
        with admin() as other:
            other.execute("SELECT pg_terminate_backend(%s)", [pid])
            # pg_terminate_backend itself would look only every 100 ms whether the session has ended.
            while other.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]).rowcount:
                time.sleep(0.001)

    def ended(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal round_trips
        round_trips += 1
        if first <= round_trips < first + times:
            if done:
                wait(self, *args, **kwargs)
            end(self.info.backend_pid)
            if done:
                raise psycopg.OperationalError("server closed the connection unexpectedly")
        return wait(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_Connection, "wait", ended)
        yield lambda: round_trips >= first


def deliver_in_spite_of(failing: Failing, shop: Install, *, times: Sequence[int]) -> int:
    """Make one audience after the other and deliver to it; the first statement fails for the first audience, the second
    for the second, and so on, with the next one of ``times``. Returns how many drains ended with an error."""
    ended = 0
    for first in range(1, MANY):
        audience = make_audience(shop, f"a{first}", provisioned=False)
        enter(audience, "kim")
        with failing(first, times[first % len(times)]) as was_reached:
            try:
                drain_all(shop)
            except Error:
                ended += 1
            reached = was_reached()
        nobody_is_blamed(shop, audience)
        drain_all(shop)
        assert_all_is_well(audience)
        if not reached:
            return ended
    raise AssertionError("the statements never come to an end")


def nobody_is_blamed(shop: Install, audience: Audience) -> None:
    for row in (shop, audience):
        row.refresh_from_db()
    lane = lane_of(audience)
    held = (shop.backoff_failures, shop.backoff_reason, shop.backoff_until_at)
    assert held == (0, "", None)
    assert (audience.hold_failures, audience.hold_reason, audience.making_token) == (0, "", None)
    assert (lane.fault_reason, lane.fault_since_at, lane.block_reason, lane.lease_token) == ("", None, "", None)


# Once; and again in the new session, as when PostgreSQL dies while it recovers. Each round trip has one of the two if
# the session ends before the statement, and the other one if it ends after it.
@pytest.mark.parametrize(("done", "times"), [(False, (1, 3)), (True, (3, 1))])
def test_a_session_that_ends_at_any_round_trip_leaves_no_hold_and_no_lease(
    shop: Install, done: bool, times: Sequence[int]
) -> None:
    assert deliver_in_spite_of(partial(ended_sessions, done=done), shop, times=times) > 10


@contextmanager
def failing_writes(state: str) -> Iterator[Failing]:
    """PostgreSQL itself raises the error, at a statement that writes, as it would in the middle of its work."""

    @contextmanager
    def failing(first: int, times: int) -> Iterator[Callable[[], bool]]:
        run(
            "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$"
            " DECLARE number bigint := nextval('writes'); BEGIN"
            f" IF number BETWEEN {first} AND {first + times - 1} THEN"
            f" RAISE EXCEPTION 'out of order' USING ERRCODE = '{state}'; END IF; RETURN NULL; END $$",
            "SELECT setval('writes', 1, false)",
            *(
                f"CREATE OR REPLACE TRIGGER fail AFTER INSERT OR UPDATE ON audiences_{table}"
                " FOR EACH STATEMENT EXECUTE FUNCTION fail()"
                for table in WRITTEN
            ),
        )
        yield lambda: bool(run(f"SELECT last_value >= {first} FROM writes"))
        run("DROP FUNCTION fail CASCADE")

    run("CREATE SEQUENCE writes")
    try:
        yield failing
    finally:
        run("DROP SEQUENCE writes", "DROP FUNCTION IF EXISTS fail CASCADE")


def run(*statements: str) -> Any:
    """The first value of the last statement's result."""
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


@pytest.mark.parametrize("state", OF_THE_SERVER, ids=lambda state: f"{state}: {OF_THE_SERVER[state]}")
def test_an_error_of_the_server_at_any_write_leaves_no_hold_and_no_lease(shop: Install, state: str) -> None:
    with failing_writes(state) as failing:
        assert deliver_in_spite_of(failing, shop, times=[1]) > 5


def test_damaged_data_puts_its_audience_on_hold(shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retrying doesn't help, and an operator must see which audience is affected."""

    def damaged(*args: Any) -> Any:
        raise InternalError("invalid page in block 7") from psycopg.errors.DataCorrupted()

    audience = make_audience(shop)
    enter(audience, "kim")
    monkeypatch.setattr(reading, "read", damaged)
    assert drain.turn(shop.pk)
    assert "invalid page" in lane_of(audience).fault_reason


# Every SQLSTATE that this service treats in a way of its own, and others of its kind. PostgreSQL raises each here.
ENDS_SESSION = ["25006", "25P03", "57P01", "57P02", "57P03", "57P04", "57P05", "08000", "08003", "08006", "08P01"]
OF_SERVER = [
    *ENDS_SESSION,
    *["0A000", "26000", "34000", "3D000", "40001", "40P01", "53100", "53300", "55P03", "57014", "58030", "XX000"],
]
OF_WORK = ["22003", "22021", "23502", "23505", "42501", "42703", "42P01", "XX001", "XX002"]


@pytest.mark.parametrize("state", [*OF_SERVER, *OF_WORK])
def test_an_error_belongs_to_the_session_the_server_or_the_work(state: str) -> None:
    """The first needs a new session, the first two the same work again, and the last one a person."""
    with pytest.raises(Error) as failed:
        run(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$")
    assert sessions.state_of(failed.value) == state
    assert sessions.ends_session(failed.value.__cause__ or failed.value) is (state in ENDS_SESSION)
    assert sessions.is_database_error(failed.value) is (state in OF_SERVER)


def test_a_lost_connection_is_of_the_session() -> None:
    for error in (psycopg.OperationalError("lost"), psycopg.InterfaceError("closed")):
        assert sessions.ends_session(error)
    for lost in (OperationalError("lost"), InterfaceError("closed")):
        assert sessions.is_database_error(lost)


@pytest.mark.parametrize("error", [sessions.NoAnswerError, psycopg.errors.ConnectionTimeout])
def test_a_read_that_postgresql_does_not_answer_is_not_repeated(error: type[psycopg.Error]) -> None:
    """The second one would wait as long again."""
    tries = []

    def work() -> None:
        tries.append(1)
        raise OperationalError("no answer") from error("no answer")

    with pytest.raises(OperationalError):
        sessions.read(work)
    assert len(tries) == 1


def test_another_failed_read_is_repeated_once_in_a_new_session() -> None:
    pids = []

    def work() -> None:
        pids.append(run("SELECT pg_backend_pid()"))
        run("SELECT 1 / 0")

    with pytest.raises(DataError):
        sessions.read(work)
    assert len(set(pids)) == len(pids) == 2


@pytest.mark.parametrize(("error", "tries"), [(ProgrammingError("no such column"), 1), (OperationalError("away"), 3)])
def test_work_that_waits_for_postgresql_ends_at_its_limit_or_with_another_error(
    monkeypatch: pytest.MonkeyPatch, error: Error, tries: int
) -> None:
    at, began = [0.0], []
    clock = SimpleNamespace(sleep=lambda _: at.append(at[-1] + 3), monotonic=lambda: at[-1])
    monkeypatch.setattr(sessions, "time", clock)

    def work() -> None:
        began.append(1)
        raise error

    with pytest.raises(type(error)):
        sessions.when_back(work, seconds=5)
    assert len(began) == tries


def test_more_time_is_allowed_only_until_the_end_of_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_bound_seconds", 10.0)
    with sessions.allow_more(5):
        assert sessions.limit_seconds() == 15
    assert sessions.limit_seconds() == 10
    monkeypatch.setattr(sessions, "_bound_seconds", 0.0)
    with sessions.allow_more(5):
        assert sessions.limit_seconds() is None
