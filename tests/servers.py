"""A real PostgreSQL and a real Redis-compatible server for the tests, on ports of their own.

A pytest plugin (``-p tests.servers`` in pyproject.toml), because Django's settings read the environment when they are
imported and pytest-django imports them before any conftest. The servers stop when pytest does, whatever ends it.
``TEST_DATABASE_URL`` and ``TEST_REDIS_URL`` name servers to use instead.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from lytics_sync import embedded
from lytics_sync.processes import Program, free_port, spawn, stop, wait_until_ready

_everything = ExitStack()


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Iterator[None]:
    asked = early_config.known_args_namespace
    only_looking = asked.help or asked.version or getattr(asked, "collectonly", False)
    folder = Path(tempfile.mkdtemp(prefix="lytics-sync-tests-"))
    _everything.callback(shutil.rmtree, folder, ignore_errors=True)
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
    _everything.close()


def _start_servers(folder: Path) -> None:
    password = secrets.token_hex(16)
    if "TEST_DATABASE_URL" not in os.environ:
        port = free_port()
        postgres = embedded.postgres(folder=folder / "postgres", port=port, password=password, durable=False)
        os.environ["DATABASE_URL"] = embedded.postgres_url(port=port, password=password)
        _everything.enter_context(_running(postgres, folder))
    if "TEST_REDIS_URL" not in os.environ:
        port = free_port()
        redis = embedded.redis(folder=folder / "redis", port=port, password=password)
        os.environ["REDIS_URL"] = embedded.redis_url(port=port, password=password)
        _everything.enter_context(_running(redis, folder))


@contextmanager
def _running(program: Program, folder: Path) -> Iterator[None]:
    log = folder / f"{program.name}.log"
    process = spawn(program, log=log)
    try:
        wait_until_ready(program, process, seconds=30, log=log)
        yield
    finally:
        stop(program, process, seconds=5)
