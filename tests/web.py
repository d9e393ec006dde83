"""The web process as it is really run: gunicorn from the project's own command line, with relays before its servers."""

import os
import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from gunicorn.config import Config
from gunicorn.glogging import Logger
from pytest_django.plugin import DjangoDbBlocker

from local.processes import Fleet, free_port, read_pid
from local.stack import Memory, Stack
from tests.relay import Relay
from tests.threads import PATIENCE


def logger_of(config: Config) -> Logger:
    """gunicorn's logger. It takes its loggers out of the root's hands, which other tests of this process read."""
    made = Logger(config)
    for logger in (made.error_log, made.access_log):
        logger.handlers.clear()
        logger.propagate = True
    return made


class Web:
    """gunicorn on loopback; ``database`` and ``broker`` are what it reaches its servers through."""

    BODY_LIMIT = 2_000_000

    def __init__(self, folder: Path, **settings: str) -> None:
        self.database = Relay(os.environ["DATABASE_URL"])
        self.broker = Relay(os.environ["REDIS_URL"])
        self.port = free_port()
        name = connection.settings_dict["NAME"]  # the test database, which pytest-django has made
        own = {
            "DATABASE_URL": self.database.url.rsplit("/", 1)[0] + f"/{name}",
            "REDIS_URL": self.broker.url,
            "WEBHOOK_BODY_LIMIT": str(self.BODY_LIMIT),
            "RETRY_AFTER_SECONDS": "17",
            # After what ends by itself; at random from 1 on, so always 1.
            "RETRY_SOON_SECONDS": "1",
            "BAD_TOKENS_PER_MINUTE": "20",
            "BEHIND_PROXY": "1",
            "PUBLIC_URL": "http://sync.example.com",
            "PORT": str(self.port),
            **settings,
        }
        self._folder = folder
        self.fleet = Fleet(folder=folder, env={**os.environ, **own}, tell=print)
        memory = Memory(file=folder / "local.env", values={})
        self.log = folder / "log" / "web.log"
        self.fleet.start(Stack(folder=folder, port=self.port, host="127.0.0.1", memory=memory).web())

    def stop(self) -> None:
        self.fleet.stop()
        for relay in (self.database, self.broker):
            relay.close()

    def http(self, *, timeout: float = PATIENCE) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> HTTPResponse:
        """One request on a new connection. A body that is an iterator is sent in chunks."""
        caller = self.http()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        caller.request(method, path, body=body, headers=sent, encode_chunked=hasattr(body, "__next__"))
        answer = caller.getresponse()
        answer.read = _kept(answer.read())  # type: ignore[method-assign] # may be read after the connection is closed
        caller.close()
        return answer

    def workers(self) -> list[int]:
        master = read_pid(self._folder / "run" / "web.pid")
        return [int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text(encoding="ascii").split()]

    def peaks(self) -> list[int]:
        """The most memory that each of its processes has had since ``forget_peaks``, in megabytes."""
        return [_megabytes(pid, "VmHWM") for pid in self.workers()]

    def forget_peaks(self) -> list[int]:
        """What each has now, from which on its peak is counted."""
        for pid in self.workers():
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
        return self.peaks()

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)


def web_of_a_module(**settings: str) -> Any:
    """A fixture: one web process for all tests of a module, with these settings."""

    @pytest.fixture(scope="module")
    def web(
        django_db_setup: None, django_db_blocker: DjangoDbBlocker, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Web]:
        with django_db_blocker.unblock():
            started = Web(tmp_path_factory.mktemp("web"), **settings)
        yield started
        started.stop()

    return web


def _megabytes(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) >> 10


def _kept(content: bytes) -> Any:
    return lambda: content
