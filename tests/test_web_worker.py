"""The parts of gunicorn that lytics_sync/web_worker.py builds on. None of them is a documented interface."""

import ast
import inspect
import math
import os
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.unreader import Unreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from benchmarks import usage
from lytics_sync import connection_counts, web_worker
from lytics_sync.connection_counts import ConnectionCounts
from lytics_sync.env import PROJECT_DIR
from tests.threads import eventually
from tests.web import Web, logger_of

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
OF_A_WORKER = {"age", "alive", "tpool", "poller", "nr_conns"}
# The attributes that Worker adds.
OWN = {
    *("_waiting", "_accept_again_at", "_yields_since", "_yielded_at", "_most_conns", "_second_ends_at"),
    "_notify_again_at",
}
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
    """A worker that listens. A test sets how many connections the other process has."""

    def __init__(self, undo: ExitStack) -> None:
        self.undo = undo
        self.listener = undo.enter_context(socket.create_server(("127.0.0.1", 0)))
        config = Config()
        self.worker = web_worker.Worker(1, 1, [self.listener], None, 30, config, logger_of(config))
        undo.callback(self.worker.tmp.close)
        self.worker.poller = undo.enter_context(selectors.DefaultSelector())
        self.worker.set_accept_enabled(True)

    def other(self, connections: int, *, seconds_ago: float = 0.0) -> None:
        web_worker._counts.tell(2, connections, at=time.monotonic() - seconds_ago)

    def connect(self) -> bool:
        """A caller connects. Whether this process takes it, instead of leaving it to the other one."""
        self.undo.enter_context(socket.create_connection(self.listener.getsockname()))
        return self._accepts()

    def _accepts(self) -> bool:
        before = self.worker.nr_conns
        self.worker.accept(self.listener)
        return bool(self.worker.nr_conns > before)

    def close(self) -> None:
        conn = next(iter(self.worker._waiting))
        self.worker._forget(conn)
        self.worker._close(conn)

    def look_again(self) -> bool:
        """The end of a pause: the main loop listens again, and finds that the connection is still there."""
        assert not self.listens()
        self.worker._accept_again_at = 0.0
        assert self.listens()
        return self._accepts()

    def listens(self) -> bool:
        """After gunicorn's main loop asks for it, as it does in each round."""
        self.worker.set_accept_enabled(True)
        return self.listener in {key.fileobj for key in self.worker.poller.get_map().values()}


@pytest.fixture
def accepting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accepting]:
    monkeypatch.setattr(web_worker, "ACCEPT_PAUSE_SECONDS", 3_600.0)
    monkeypatch.setattr(web_worker, "ACCEPT_PATIENCE_SECONDS", 3_600.0)
    monkeypatch.setattr(web_worker, "_counts", ConnectionCounts())
    with ExitStack() as undo:
        yield Accepting(undo)


def test_a_process_alone_takes_every_connection(accepting: Accepting) -> None:
    assert all(accepting.connect() for _ in range(5))


def test_a_process_with_more_connections_leaves_a_new_one_to_the_other(accepting: Accepting) -> None:
    accepting.other(1)
    assert accepting.connect()
    assert accepting.connect()
    assert not accepting.connect()
    assert not accepting.look_again()
    accepting.other(2)
    assert accepting.look_again()


def test_callers_that_open_a_connection_for_each_call_are_not_held_up(accepting: Accepting) -> None:
    accepting.connect()
    accepting.connect()
    accepting.other(0)
    accepting.close()
    assert accepting.connect()
    # Connections of an earlier second don't count.
    accepting.close()
    accepting.worker._second_ends_at = 0.0
    accepting.worker.notify()
    assert not accepting.connect()


def test_the_process_with_the_fewest_connections_decides(accepting: Accepting) -> None:
    accepting.connect()
    accepting.other(9)
    web_worker._counts.tell(3, 0, at=time.monotonic())
    assert not accepting.connect()


def test_a_connection_that_nobody_takes_is_accepted_after_a_while(
    accepting: Accepting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process may be busy, or stopped a moment ago."""
    accepting.connect()
    accepting.other(0)
    assert not accepting.connect()
    began, accepting.worker._yields_since = accepting.worker._yields_since, -math.inf
    assert began > 0
    assert accepting.look_again()
    # Patience begins again with each connection.
    monkeypatch.setattr(web_worker, "ACCEPT_PATIENCE_SECONDS", 0.01)
    time.sleep(0.02)
    assert not accepting.connect()


@pytest.mark.parametrize("ended", ["without news", "stopping"])
def test_a_process_that_has_ended_gets_no_connection(accepting: Accepting, ended: str) -> None:
    accepting.connect()
    accepting.other(0, seconds_ago=connection_counts.STALE_SECONDS + 0.1 if ended == "without news" else 0)
    if ended == "stopping":
        web_worker._counts.leave(2)
    assert accepting.connect()


def test_the_main_loop_waits_no_longer_than_a_pause(accepting: Accepting, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(ThreadWorker, "wait_for_and_dispatch_events", lambda worker, timeout: waits.append(timeout))
    accepting.connect()
    accepting.other(0)
    accepting.worker.wait_for_and_dispatch_events(timeout=9_000.0)
    assert not accepting.connect()
    for timeout in (9_000.0, 1.0):
        accepting.worker.wait_for_and_dispatch_events(timeout=timeout)
    assert waits == [9_000.0, pytest.approx(3_600, abs=60), 1.0]


def test_a_process_whose_number_is_above_the_slots_counts_too(accepting: Accepting) -> None:
    """gunicorn gives each process that it starts the next number."""
    accepting.worker.age += connection_counts.SLOTS
    accepting.connect()
    assert web_worker._counts.fewest_elsewhere(2, at=time.monotonic()) == 1


def test_a_connection_without_a_whole_header_or_of_a_caller_who_never_closes_is_closed(accepting: Accepting) -> None:
    worker = accepting.worker
    for _ in range(2):
        accepting.connect()
    incomplete, answered = worker._waiting
    worker._forget(answered)
    worker._close_gently(answered)
    seconds = [conn.sock.wait_until - time.monotonic() for conn in (incomplete, answered)]
    assert seconds == [pytest.approx(20, abs=1), pytest.approx(2, abs=1)]
    worker.notify()
    assert (worker._waiting, worker.nr_conns) == ({incomplete, answered}, 2)
    for left, conn in ((1, incomplete), (0, answered)):
        conn.sock.wait_until = time.monotonic()
        worker.notify()
        assert (len(worker._waiting), worker.nr_conns) == (left, left)


def test_a_process_tells_the_others_of_connections_that_come_and_go(accepting: Accepting) -> None:
    def told() -> int | None:
        return web_worker._counts.fewest_elsewhere(2, at=time.monotonic())

    assert told() is None
    accepting.connect()
    accepting.connect()
    assert told() == 2
    accepting.close()
    accepting.worker.notify()
    assert told() == 1
    accepting.worker.alive = False
    accepting.worker.notify()
    assert told() is None


def test_callers_are_spread_evenly_over_real_processes(tmp_path: Path, db: None) -> None:
    """One process would otherwise be the limit while the other one is idle."""
    web = Web(tmp_path)
    try:
        (process,) = (child.process for group in web.fleet.groups for child in group)
        assert process
        processes = usage.family(process.pid)[1:]
        for pid in processes:  # until each of them listens
            eventually(partial(_accepts, web, processes, pid))
        with ExitStack() as undo:
            for place in range(1, 31):
                undo.enter_context(web.raw())
                eventually(partial(_have, processes, web.port, place))
            found = sorted(connections(pid, web.port) for pid in processes)
        # A process that gets no CPU time for longer than the other one's patience misses a connection.
        assert found[0] >= 13, found
    finally:
        web.stop()


def _accepts(web: Web, processes: list[int], pid: int) -> bool:
    with web.raw():
        eventually(partial(_have, processes, web.port, 1))
        return bool(connections(pid, web.port))


def _have(processes: list[int], port: int, some: int) -> bool:
    return sum(connections(pid, port) for pid in processes) == some


def connections(pid: int, port: int) -> int:
    """The connections to a port that a process has accepted and whose callers haven't closed."""
    ends = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()]
    inodes = {end[9] for end in ends if end[1].endswith(f":{port:04X}") and end[3] == "01"}
    return sum(
        _name(file).removeprefix("socket:[").removesuffix("]") in inodes for file in Path(f"/proc/{pid}/fd").iterdir()
    )


def _name(file: Path) -> str:
    try:
        return os.readlink(file)
    except FileNotFoundError:  # closed meanwhile
        return ""


def test_the_master_is_told_twice_a_second_that_the_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in each round of the loop, which would be a system call for each request."""
    config = Config()
    worker = web_worker.Worker(1, 1, [], None, 30, config, logger_of(config))
    worker.alive = False
    told: list[float] = []
    for moment in (100.0, 100.1, 100.4, 100.5, 100.6, 101.0, 130.0):
        with monkeypatch.context() as patched:
            patched.setattr(web_worker, "time", SimpleNamespace(monotonic=lambda moment=moment: moment))
            patched.setattr(ThreadWorker, "notify", lambda _worker, moment=moment: told.append(moment))
            worker.notify()
    worker.tmp.close()
    assert told == [100.0, 100.5, 101.0, 130.0]
