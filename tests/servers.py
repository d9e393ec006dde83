"""A real PostgreSQL and a real Redis-compatible server for the tests, on ports of their own.

A pytest plugin (``-p tests.servers`` in pyproject.toml), because Django's settings read the environment when they are
imported and pytest-django imports them before any conftest. The servers stop when pytest does, whatever ends it.
``TEST_DATABASE_URL`` and ``TEST_REDIS_URL`` name servers to use instead.
"""

import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from lytics_sync import embedded
from lytics_sync.processes import Fleet, free_port, is_alive

PREFIX = "lytics-sync-tests-"

_undo = ExitStack()
# And not only in pytest_unconfigure: pytest doesn't get there when a conftest can't be imported.
atexit.register(_undo.close)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Iterator[None]:
    asked = early_config.known_args_namespace
    only_looking = asked.help or asked.version or getattr(asked, "collectonly", False)
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
    password = secrets.token_hex(16)
    if "TEST_DATABASE_URL" not in os.environ:
        port = free_port()
        os.environ["DATABASE_URL"] = embedded.postgres_url(port=port, password=password)
        fleet.start(embedded.postgres(folder=folder / "postgres", port=port, password=password, durable=False))
    if "TEST_REDIS_URL" not in os.environ:
        port = free_port()
        os.environ["REDIS_URL"] = embedded.redis_url(port=port, password=password)
        fleet.start(embedded.redis(folder=folder / "redis", port=port, password=password))
