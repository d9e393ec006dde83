"""The parts of gunicorn that lytics_sync/web_worker.py builds on. None of them is a documented interface."""

import ast
import inspect
import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.unreader import Unreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from lytics_sync import web_worker
from lytics_sync.env import PROJECT_DIR
from tests.web import logger_of

SOURCE = Path(str(web_worker.__file__)).read_text(encoding="utf-8")
# What Worker overrides, with the parameters that gunicorn passes.
OVERRIDDEN = {
    "check_config": ["cfg", "log"],
    "run": ["self"],
    "notify": ["self"],
    "accept": ["self", "listener"],
    "set_accept_enabled": ["self", "enabled"],
    "wait_for_and_dispatch_events": ["self", "timeout"],
    "enqueue_req": ["self", "conn"],
    "finish_request": ["self", "conn", "fs"],
    "handle_request": ["self", "req", "conn"],
    "handle_error": ["self", "req", "client", "addr", "exc"],
}
# What Worker reads of gunicorn's worker and of its connections.
OF_A_WORKER = {"tpool", "poller", "nr_conns"}
# The attributes that Worker adds.
OWN = {"_waiting", "_accept_again_at", "_most_conns", "_second_ends_at"}
OF_A_CONNECTION = {"sock", "parser", "data_ready", "close"}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_gunicorn_still_calls_what_the_worker_overrides(name: str) -> None:
    method = inspect.getattr_static(ThreadWorker, name)
    parameters = list(inspect.signature(getattr(method, "__func__", method)).parameters)
    assert [one for one in parameters if one != "cls"] == OVERRIDDEN[name]
    gunicorn = Path(inspect.getfile(ThreadWorker)).parents[1]
    assert any(f".{name}" in file.read_text(encoding="utf-8") for file in gunicorn.rglob("*.py"))


def test_gunicorn_still_has_what_the_worker_reads() -> None:
    config = Config()
    worker = ThreadWorker(1, 1, [], None, 30, config, logger_of(config))
    assert set(vars(worker)) >= OF_A_WORKER
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert set(dir(TConn(config, ours, None, None))) >= OF_A_CONNECTION
    reader = Unreader()
    reader.unread(b"left")
    assert (reader.take_buffered(), reader.take_buffered()) == (b"left", b"")
    worker.tmp.close()


def test_the_worker_uses_nothing_else_of_gunicorn() -> None:
    used: dict[str, set[str]] = {"self": set(), "conn": set()}
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in used:
            used[node.value.id].add(node.attr)
    own: set[str] = set(vars(web_worker.Worker)) | OWN
    assert used["self"] - own == OF_A_WORKER
    assert used["conn"] == OF_A_CONNECTION
    assert {name for name in own if hasattr(ThreadWorker, name) and not name.startswith("__")} == set(OVERRIDDEN)


def test_a_certificate_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    config: Any = Config()
    config.set("certfile", str(PROJECT_DIR / "README.md"))
    with pytest.raises(SystemExit):
        web_worker.Worker.check_config(config, logger_of(config))
    assert "TLS is the proxy's task" in capsys.readouterr().err


class Accepting:
    """A worker that listens, whose pause after a connection ends when a test says so."""

    def __init__(self, undo: ExitStack) -> None:
        self.undo = undo
        self.listener = undo.enter_context(socket.create_server(("127.0.0.1", 0)))
        config = Config()
        self.worker = web_worker.Worker(1, 1, [self.listener], None, 30, config, logger_of(config))
        undo.callback(self.worker.tmp.close)
        self.worker.poller = undo.enter_context(selectors.DefaultSelector())
        self.worker.set_accept_enabled(True)

    def connect(self) -> None:
        self.undo.enter_context(socket.create_connection(self.listener.getsockname()))
        self.worker.accept(self.listener)

    def close(self) -> None:
        conn = next(iter(self.worker._waiting))
        self.worker._forget(conn)
        self.worker._close(conn)

    def end_pause(self) -> None:
        self.worker._accept_again_at = 0.0
        self.worker.set_accept_enabled(True)

    def accepts(self) -> bool:
        """After gunicorn's main loop asks for it, as it does in each round."""
        self.worker.set_accept_enabled(True)
        return self.listener in {key.fileobj for key in self.worker.poller.get_map().values()}


@pytest.fixture
def accepting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accepting]:
    monkeypatch.setattr(web_worker, "ACCEPT_PAUSE_SECONDS", 3_600.0)
    with ExitStack() as undo:
        yield Accepting(undo)


def test_after_a_connection_that_adds_to_its_own_a_process_leaves_the_next_to_others(accepting: Accepting) -> None:
    for _ in range(3):
        accepting.connect()
        assert not accepting.accepts()
        accepting.end_pause()
        assert accepting.accepts()


def test_a_connection_that_replaces_another_causes_no_pause(accepting: Accepting) -> None:
    for _ in range(2):
        accepting.connect()
        accepting.end_pause()
    for _ in range(3):
        accepting.close()
        accepting.connect()
        assert accepting.accepts()


def test_connections_of_an_earlier_second_do_not_count(accepting: Accepting) -> None:
    accepting.connect()
    accepting.close()
    accepting.end_pause()
    accepting.worker._second_ends_at = 0.0
    accepting.worker.notify()
    accepting.connect()
    assert not accepting.accepts()
