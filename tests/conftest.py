"""What the tests share: Hypothesis without a stopwatch, a quick database, an install to receive for, and an ODP."""

import gc
import os
import socket
from collections.abc import Iterator
from dataclasses import is_dataclass
from threading import Thread
from typing import Any

import django.conf
import pytest
import redis
from django.db import IntegrityError, connection, transaction
from django.template.base import Variable, VariableDoesNotExist
from django.test import Client, TransactionTestCase
from hypothesis import settings
from pytest_django.fixtures import Settings
from xdist.scheduler import LoadFileScheduling

from audiences import redis_client, tallies
from audiences.insight import certificate, failures, schedule
from audiences.models import Install
from audiences.operations import attempts
from audiences.receiving import invalid_tokens, rejected_calls, tokens
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import make_install, sandbox
from tests.lytics_api import Lytics
from tests.people import someone

# A machine that is busy with something else is no bug. Continuous integration tries the same cases each time, so that
# no commit fails for a case that the others were not tried with. Every other run tries new cases.
settings.register_profile("patient", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("patient")

# The production hasher is slow on purpose, and hundreds of tests make accounts.
django.conf.settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# WhiteNoise reads this folder for each test client, 6 ms each; only processes that a test starts serve its files.
django.conf.settings.STATIC_ROOT = None

# The test customer and the doctor call this address. At the default, a developer's own stack may listen.
django.conf.settings.PUBLIC_URL = "http://127.0.0.1:9"

# Rows that migrations wrote and every test relies on, among them the roles and the first part of the log.
WRITTEN_BY_MIGRATIONS = (
    "django_migrations",
    "django_content_type",
    "auth_permission",
    "auth_group",
    "auth_group_permissions",
    "audiences_logpart",
)

# Rows are deleted up to this size and truncated above it. TRUNCATE makes new files for a table and each of its indexes,
# which takes 70 ms of CPU for a handful of rows; DELETE takes 2 ms. Above it, TRUNCATE also ends the bloat.
DELETED_BYTES = 1 << 20

BROWSER = "browser/"

# The files with the longest duration, and those of the browser together, longest first. A test process runs whole files
# in this order; a long file started last would keep one process busy while the others are idle.
LONGEST_FIRST = (
    BROWSER,
    "test_chaos.py",
    "test_rights.py",
    "test_changes.py",
    "test_database_sessions.py",
    "test_local_runner.py",
    "test_database_errors.py",
    "test_slow_senders.py",
    "test_million.py",
    "test_pgbouncer.py",
    "test_bench.py",
    "test_connections.py",
    "test_history.py",
    "test_learn_account.py",
    "test_heartbeat_monitor.py",
    "test_overload.py",
    "test_health.py",
    "test_front_door.py",
    "test_redis_tls.py",
    "test_resend.py",
    "test_provision.py",
    "test_drain.py",
    "test_sandbox_lytics.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each test process whole files, and one process all files of the browser, which share a site."""
    if config.getoption("dist") != "loadfile":
        return None
    scheduling = LoadFileScheduling(config, log)
    of_file = scheduling._split_scope
    scheduling._split_scope = lambda nodeid: BROWSER if nodeid.startswith(f"tests/{BROWSER}") else of_file(nodeid)
    return scheduling


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.nodeid.removeprefix("tests/")
        return next((at for at, name in enumerate(LONGEST_FIRST) if file.startswith(name)), len(LONGEST_FIRST))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """The imported modules and the collected tests are kept until the end, so the garbage collector skips them.

    It runs after 20,000 new objects and not after 700, which takes 5 % of the CPU in tests that render pages.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session")
def django_db_keepdb(request: pytest.FixtureRequest) -> bool:
    """The database that tests/servers.py has migrated is used as it is; the servers remove it with their folder."""
    return "TEST_DATABASE_URL" not in os.environ or bool(request.config.getoption("reuse_db"))


@pytest.fixture(scope="session")
def django_db_modify_db_settings_xdist_suffix() -> None:
    """No suffix: each test process has its own PostgreSQL."""


@pytest.fixture(scope="session", autouse=True)
def tables_are_emptied_and_roles_stay() -> Iterator[None]:
    """After a test with transactions of its own, empty the tables that have rows, except what migrations wrote.

    Django would truncate every table, the roles included, so that no later test and no ``--reuse-db`` could use them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", lambda _: _empty_tables())
        # Each test would open a session of its own, 6 ms of CPU.
        patch.setattr(TransactionTestCase, "_should_reload_connections", lambda _: False)
        yield


def _empty_tables() -> None:
    tables = [name for name in connection.introspection.table_names() if name not in WRITTEN_BY_MIGRATIONS]
    with connection.cursor() as cursor:
        cursor.execute(
            " UNION ALL ".join(
                f"(SELECT '{name}', pg_relation_size('{name}') FROM \"{name}\" LIMIT 1)" for name in tables
            )
        )
        sizes = dict(cursor.fetchall())
        filled = [f'"{name}"' for name in sizes]
        if not filled or (sum(sizes.values()) <= DELETED_BYTES and _deleted(filled)):
            return
        cursor.execute(f"TRUNCATE {', '.join(filled)} CASCADE")


def _deleted(tables: list[str]) -> bool:
    """Delete all rows of ``tables``; False if a process that is still running added a row that refers to one."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:  # foreign keys are checked at the end
            cursor.execute("; ".join(f"DELETE FROM {table}" for table in tables))
    except IntegrityError:
        return False
    return True


@pytest.fixture
def nobody_there() -> Iterator[str]:
    """A reserved address without a listener."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}/0"


# What templates read of a dataclass or a named tuple that doesn't have it; a template takes it for false.
MISSING: set[str] = set()


def _note_missing(resolve: Any) -> Any:
    def noting(self: Variable, context: Any) -> Any:
        try:
            return resolve(self, context)
        except VariableDoesNotExist as missing:
            holder = missing.params[1]
            if is_dataclass(holder) or hasattr(holder, "_fields"):
                MISSING.add(f"{self.var} in {context.template_name}: {type(holder).__name__} has no such field")
            raise

    return noting


Variable._resolve_lookup = _note_missing(Variable._resolve_lookup)  # type: ignore[attr-defined] # not in the stubs


@pytest.fixture(autouse=True)
def templates_read_what_there_is() -> Iterator[None]:
    yield
    found = sorted(MISSING)
    MISSING.clear()
    assert found == []


@pytest.fixture(autouse=True)
def nobody_was_refused_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin each test without what this process remembers: rejected calls, which go to Redis only when a test sends
    them, sums for metrics, and failed work that waits.
    """
    monkeypatch.setattr(rejected_calls, "_counter", rejected_calls._Counter(is_automatic=False))
    monkeypatch.setattr(attempts, "_failed", {})
    monkeypatch.setattr(tallies, "_sums", tallies.Sums(is_automatic=False))
    monkeypatch.setattr(invalid_tokens, "_this_minute", invalid_tokens._Minute())
    # The count restarts with each minute of the clock, also when a minute ends during a test.
    monkeypatch.setattr(invalid_tokens, "_minute", lambda: 0)


@pytest.fixture(scope="session")
def emptied() -> Iterator[redis.Redis]:
    with redis.Redis.from_url(django.conf.settings.REDIS_URL) as connected:
        yield connected


@pytest.fixture(autouse=True)
def redis_shows_nothing_of_earlier_tests(emptied: redis.Redis) -> None:
    """Rejected calls, failed tasks, the time of the last scheduled one, and the certificate are on *Now*."""
    rejected = emptied.keys(f"{rejected_calls._PREFIX}*")
    emptied.delete(schedule.KEY, certificate.KEY, *map(failures._key, failures.TASKS), *rejected)


@pytest.fixture
def viewer(db: None) -> Client:
    return someone("viewer")


@pytest.fixture
def operator(db: None) -> Client:
    return someone("operator")


@pytest.fixture
def boss(db: None) -> Client:
    return someone("admin")


@pytest.fixture
def broker() -> Iterator[redis.Redis]:
    redis_client.client.cache_clear()
    with redis.Redis.from_url(django.conf.settings.REDIS_URL) as connected:
        yield connected
    redis_client.client.cache_clear()


@pytest.fixture
def install(db: None) -> Install:
    made = Install.objects.create(name="Shop", odp_api_key="odp-key", odp_host="http://127.0.0.1:9")
    tokens.create(made)
    return made


@pytest.fixture
def odp() -> Iterator[ThreadedSandbox]:
    with sandbox() as running:
        yield running


@pytest.fixture
def shop(odp: ThreadedSandbox, db: None) -> Install:
    """An install that delivers to the sandbox ODP."""
    return make_install(odp)


@pytest.fixture
def lytics(settings: Settings) -> Iterator[Lytics]:
    made = Lytics()
    thread = Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    settings.LYTICS_API_URL = made.url
    settings.AUDIT_SCAN_DELAY_SECONDS = 0  # it shows at once what it sent
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()
