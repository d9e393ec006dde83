"""PostgreSQL has no free connection: calls get 503, workers retry, and nothing is lost."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.db import connection
from pytest_django.plugin import DjangoDbBlocker

from audiences.models import Event, Install, Receipt, Worker
from audiences.operations import db_role
from local.processes import Fleet
from local.stack import Memory, Stack
from tests.delivering import assert_all_is_well, cursor_of, enter, make_audience, make_install, numbered, sandbox
from tests.messages import body, message
from tests.threads import eventually, together
from tests.web import Web

pytestmark = pytest.mark.django_db(transaction=True)

CALLS = 40


class Account:
    """A database role like that of the processes, with a limited number of connections."""

    def __init__(self) -> None:
        self.name = f"processes_{secrets.token_hex(4)}"
        password = secrets.token_hex(8)
        self._execute(f"CREATE ROLE {self.name} LOGIN PASSWORD '{password}'")
        db_role.grant(self.name)
        server = urlsplit(os.environ["DATABASE_URL"])
        netloc = f"{self.name}:{password}@{server.hostname}:{server.port or 5432}"
        self.url = server._replace(netloc=netloc, path=f"/{connection.settings_dict['NAME']}").geturl()

    def may_have(self, connections: int) -> None:
        self._execute(f"ALTER ROLE {self.name} CONNECTION LIMIT {connections}")

    def loses_all(self) -> None:
        self._execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{self.name}'")

    def has_run(self, pattern: str) -> int:
        """The role's sessions whose last statement begins like this."""
        with connection.cursor() as cursor:
            ran = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND query LIKE %s"
            cursor.execute(ran, [self.name, pattern])
            row = cursor.fetchone()
        return int(row[0]) if row else 0

    def drop(self) -> None:
        self._execute(f"DROP OWNED BY {self.name}; DROP ROLE {self.name}")

    @staticmethod
    def _execute(statement: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)


@pytest.fixture(scope="module")
def account(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[Account]:
    with django_db_blocker.unblock():
        made = Account()
    yield made
    with django_db_blocker.unblock():
        made.drop()


def test_calls_come_back_until_there_are_connections_again(install: Install, account: Account, tmp_path: Path) -> None:
    token, where = install.tokens.get().secret, f"/webhooks/lytics/{install.public_id}"
    account.may_have(0)
    web = Web(tmp_path, DATABASE_URL=account.url)

    def call(who: str) -> tuple[int, str | None]:
        answer = web.call("POST", where, body(message(who=who)), Authorization=token)
        return answer.status, answer.headers["Retry-After"]

    try:
        assert [call("nobody") for _ in range(3)] == [(503, "1")] * 3
        assert (web.call("GET", "/health/live").status, web.call("GET", "/health/ready").status) == (200, 503)
        account.may_have(3)  # for twenty threads
        answers = dict(
            zip(numbered(CALLS), together(*[lambda who=who: call(who) for who in numbered(CALLS)]), strict=True)
        )
        assert {(200, None)} <= set(answers.values()) <= {(200, None), (503, "1")}
        stored = set(Event.objects.values_list("identifier", flat=True))
        assert stored == {who for who, (status, _) in answers.items() if status == 200}
        account.may_have(-1)
        assert {call(who)[0] for who in numbered(CALLS)} == {200}
    finally:
        web.stop()


@contextmanager
def a_longer_name() -> Iterator[None]:
    """A column of the install as a migration may leave it: PostgreSQL refuses a statement prepared before that."""

    def alter(length: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE audiences_install ALTER name TYPE varchar({length})")

    length = Install._meta.get_field("name").max_length
    assert length
    alter(length + 1)
    try:
        yield
    finally:
        alter(length)


def test_each_web_process_is_warm_before_its_first_call_and_no_migration_stops_it(
    install: Install, account: Account, tmp_path: Path
) -> None:
    token, where = install.tokens.get().secret, f"/webhooks/lytics/{install.public_id}"
    web = Web(tmp_path, DATABASE_URL=account.url)

    def call(who: str) -> int:
        return int(web.call("POST", where, body(message(who=who)), Authorization=token).status)

    try:
        eventually(lambda: account.has_run("%grown AS MATERIALIZED%") == len(web.workers()) == 2)
        assert "not warmed up" not in web.log.read_text(encoding="utf-8")
        assert not Receipt.objects.exists()
        assert {call(who) for who in numbered(CALLS)} == {200}
        with a_longer_name():
            assert {call(who) for who in numbered(CALLS)} == {200}
    finally:
        web.stop()


@pytest.fixture(scope="module")
def started(account: Account, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    settings, folder = {"DATABASE_URL": account.url, "SWEEP_SECONDS": "0.1"}, tmp_path_factory.mktemp("worker")
    fleet = Fleet(folder=folder, env={**os.environ, **settings}, tell=print)
    stack = Stack(folder=folder, port=0, host="127.0.0.1", memory=Memory(file=folder / "env", values={}))
    fleet.start(*stack.workers(["worker-1"]), stack.beat())
    yield fleet
    fleet.stop()


@pytest.fixture
def fleet(transactional_db: None, started: Fleet) -> Iterator[Fleet]:
    """A worker and beat. Both are still running at the end of the test."""
    eventually(Worker.objects.exists)
    yield started
    assert not any(child.has_ended() or child.quick_ends for group in started.groups for child in group)


def said(fleet: Fleet, words: str) -> bool:
    return words in (fleet.logs / "worker-1.log").read_text(encoding="utf-8")


def test_a_worker_without_a_connection_delivers_once_there_is_one(fleet: Fleet, account: Account) -> None:
    with sandbox() as odp:
        gold = make_audience(make_install(odp), provisioned=False)
        account.may_have(0)
        account.loses_all()
        enter(gold, *numbered(9))
        eventually(lambda: said(fleet, "too many connections"))
        assert odp.requests() == []
        account.may_have(-1)
        eventually(lambda: cursor_of(gold) == 9)
        assert odp.members("lytics_gold") == numbered(9)
        assert_all_is_well(gold)


def test_a_migration_stops_no_worker(fleet: Fleet) -> None:
    with sandbox() as odp:
        gold = make_audience(make_install(odp), provisioned=False)
        # Until a thread that had prepared its statements before the table was changed uses them.
        for is_changed in [False, True] * 50:
            with a_longer_name() if is_changed else nullcontext():
                enter(gold, *numbered(1))
                eventually(lambda: cursor_of(gold) == Event.objects.count())
            if said(fleet, "cached plan must not change"):
                break
        else:
            pytest.fail("no session had its statements prepared")
        assert_all_is_well(gold)
