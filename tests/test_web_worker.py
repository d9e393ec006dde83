"""The parts of gunicorn that lytics_sync/web_worker.py builds on. None of them is a documented interface."""

import ast
import inspect
import socket
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
    "enqueue_req": ["self", "conn"],
    "finish_request": ["self", "conn", "fs"],
    "handle_request": ["self", "req", "conn"],
    "handle_error": ["self", "req", "client", "addr", "exc"],
}
# What Worker reads of gunicorn's worker and of its connections.
OF_A_WORKER = {"tpool", "poller", "nr_conns"}
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
    own: set[str] = set(vars(web_worker.Worker)) | {"_waiting"}
    assert used["self"] - own == OF_A_WORKER
    assert used["conn"] == OF_A_CONNECTION
    assert {name for name in own if hasattr(ThreadWorker, name) and not name.startswith("__")} == set(OVERRIDDEN)


def test_a_certificate_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    config: Any = Config()
    config.set("certfile", str(PROJECT_DIR / "README.md"))
    with pytest.raises(SystemExit):
        web_worker.Worker.check_config(config, logger_of(config))
    assert "TLS is the proxy's task" in capsys.readouterr().err
