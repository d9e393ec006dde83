"""A real PostgreSQL and a real Redis-compatible server for each test process, on free ports.

A pytest plugin (``-p tests.servers`` in pyproject.toml), because Django's settings read the environment when they are
imported and pytest-django imports them before any conftest. The servers stop when pytest ends, also when it is killed.
``TEST_DATABASE_URL`` and ``TEST_REDIS_URL`` name servers to use instead, for a run in one process.

``initdb`` and the migrations take ten seconds or more. They run once for each state of the migrations: the result is
kept in ``.pytest_cache`` and every later process starts on a copy of it.
"""

import atexit
import gc
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg import sql

from local import embedded
from local.processes import Fleet, StackError, free_port, is_alive
from local.stack import Stack

PREFIX = "lytics-sync-tests-"
HOUSE = Path(__file__).parents[1]
CACHE = HOUSE / ".pytest_cache" / "postgres"
# The name that pytest-django gives the database of the tests: Django's prefix before the usual name.
TEST_DATABASE = f"test_{embedded.NAME}"
# A copy of this database without connections, so that PostgreSQL can copy it. A server given from outside has none.
TEMPLATE = "migrated"

_undo = ExitStack()
# And not only in pytest_unconfigure: pytest doesn't get there when a conftest can't be imported.
atexit.register(_undo.close)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Iterator[None]:
    asked = early_config.known_args_namespace
    only_looking = asked.help or asked.version or getattr(asked, "collectonly", False)
    in_parallel = bool(getattr(asked, "numprocesses", None)) and "PYTEST_XDIST_WORKER" not in os.environ
    if in_parallel and {"TEST_DATABASE_URL", "TEST_REDIS_URL"} & set(os.environ):
        raise pytest.UsageError("TEST_DATABASE_URL and TEST_REDIS_URL are for one test process; leave out -n.")
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    _undo.callback(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {
        "DATA_DIR": str(folder),
        "SECRET_KEY": secrets.token_urlsafe(50),
        "FIELD_ENCRYPTION_KEYS": Fernet.generate_key().decode(),
        "DEBUG": "0",
        "DATABASE_URL": os.environ.get("TEST_DATABASE_URL", "postgres://nobody@127.0.0.1:1/none"),
        "REDIS_URL": os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:1/0"),
    }
    if in_parallel:  # this process only hands out tests; those that run them start servers of their own
        migrated()
    else:
        gc.disable()  # hardly any of what is imported and collected becomes garbage; tests/conftest.py enables it again
        if not only_looking:
            _start_servers(folder)
    return (yield)


def pytest_unconfigure() -> None:
    _undo.close()


def _sweep() -> None:
    """Remove what killed test runs have left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not is_alive(int(folder.name.removeprefix(PREFIX).split("-")[0])):
            shutil.rmtree(folder, ignore_errors=True)


def _start_servers(folder: Path) -> None:
    fleet = Fleet(folder=folder, env=os.environ, tell=print)
    _undo.callback(fleet.stop)
    if "TEST_DATABASE_URL" not in os.environ:
        cluster = shutil.copytree(migrated(), folder / "cluster", symlinks=True)
        os.environ["DATABASE_URL"] = _start_postgres(fleet, cluster)
    if "TEST_REDIS_URL" not in os.environ:
        password, port = secrets.token_hex(16), free_port()
        os.environ["REDIS_URL"] = embedded.redis_url(port=port, password=password)
        fleet.start(embedded.redis(folder=folder / "redis", port=port, password=password))


def _start_postgres(fleet: Fleet, cluster: Path) -> str:
    """Start PostgreSQL in ``cluster``, made there if need be. Returns its ``DATABASE_URL``."""
    port, password = free_port(), (cluster / "password").read_text(encoding="ascii")
    fleet.start(embedded.postgres(folder=cluster / "data", port=port, password=password, durable=False))
    embedded.create_database(port=port, password=password, name=TEST_DATABASE)
    return embedded.postgres_url(port=port, password=password)


def migrated() -> Path:
    """A stopped PostgreSQL cluster whose test database has every migration; made when there is none for these."""
    kept = CACHE / _state_of_migrations()
    if kept.exists():
        return kept
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="new-") as name, ExitStack() as stack:
        new = Path(name) / "cluster"
        new.mkdir()
        (new / "password").touch(mode=0o600)
        (new / "password").write_text(secrets.token_hex(16), encoding="ascii")
        fleet = Fleet(folder=Path(name), env=os.environ, tell=print)
        stack.callback(fleet.stop)
        url = _start_postgres(fleet, new)
        env = {**os.environ, "DATABASE_URL": f"{url.rpartition('/')[0]}/{TEST_DATABASE}"}
        migrate = [sys.executable, str(HOUSE / "manage.py"), "migrate", "--verbosity", "0"]
        done = subprocess.run(migrate, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StackError(f"The migrations failed: {done.stderr[-2000:]}")
        with psycopg.connect(env["DATABASE_URL"], autocommit=True) as server:
            # So that each test has numbers of five digits, not only those after a test with many rows.
            server.execute(
                "SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, 12345) FROM pg_sequences"
                " WHERE sequencename LIKE 'audiences_%'"
            )
        with psycopg.connect(f"{url.rpartition('/')[0]}/postgres", autocommit=True) as server:
            server.execute(f"CREATE DATABASE {TEMPLATE} TEMPLATE {TEST_DATABASE}")
            _make_logins_cheap(server, (new / "password").read_text(encoding="ascii"))
        fleet.stop()
        for old in CACHE.iterdir():
            if old.name != Path(name).name and not old.name.startswith("new-"):
                shutil.rmtree(old, ignore_errors=True)
        try:
            new.rename(kept)
        except OSError:  # another run was quicker
            assert kept.exists()
    return kept


def _make_logins_cheap(server: "psycopg.Connection[Any]", password: str) -> None:
    """Let a login hash the password once and not 4096 times, which takes 3 ms of CPU. PostgreSQL 15 has no choice."""
    server.execute("SELECT set_config(name, '1', false) FROM pg_settings WHERE name = 'scram_iterations'")
    role, secret = sql.Identifier(embedded.NAME), sql.Literal(password)
    server.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, secret))


class Migrated:
    """A stack whose PostgreSQL begins with a copy of the cluster that ``CLUSTER`` names."""

    def __init__(self, cluster: Path, stack: Stack) -> None:
        self._stack = stack
        shutil.copytree(cluster / "data", stack.folder / "postgres", symlinks=True)
        password = (cluster / "password").read_text(encoding="ascii")
        stack.memory.keep(DATABASE_URL=embedded.postgres_url(port=free_port(), password=password))

    @classmethod
    def given(cls, stack: Stack) -> "Migrated | None":
        cluster = os.environ.get("CLUSTER")
        return cls(Path(cluster), stack) if cluster else None

    def name_database(self) -> None:
        """As soon as PostgreSQL runs."""
        server = self._stack.memory.values["DATABASE_URL"].rpartition("/")[0]
        with psycopg.connect(f"{server}/postgres", autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {TEST_DATABASE} RENAME TO {embedded.NAME}")


def _state_of_migrations() -> str:
    """A digest of all that the migrated database depends on: migrations, the models' app, and pinned versions."""
    digest = hashlib.sha256(sys.version.encode())
    for file in sorted((*HOUSE.glob("*/migrations/*.py"), *HOUSE.glob("requirements*.txt"), Path(__file__))):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
