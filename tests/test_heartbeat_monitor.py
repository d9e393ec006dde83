"""A worker that receives no messages isn't ready, and exits when it can't receive any again."""

import json
import os
import signal
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import DEFAULT, Mock

import pytest
import redis
from celery.bootsteps import RUN, TERMINATE  # type: ignore[attr-defined] # the stubs lack both
from celery.utils.nodenames import worker_direct
from celery.worker.consumer.consumer import Consumer
from django.db import connection
from django.test import Client
from django.utils.timezone import now
from kombu import Connection
from pytest_django.plugin import DjangoDbBlocker

from audiences.insight import heartbeats
from audiences.models import Worker
from local.processes import Fleet, free_port
from local.stack import Memory, Stack
from tests.relay import Relay
from tests.threads import eventually
from workers import heartbeat_monitor
from workers.app import _start_heart, app
from workers.heartbeat_monitor import SENT_IN_VAIN, HeartbeatMonitor

pytestmark = pytest.mark.django_db(transaction=True)


class RunningWorker:
    """A worker as it is really run, with relays before its servers and frequent heartbeats."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.database, self.broker = Relay(os.environ["DATABASE_URL"]), Relay(os.environ["REDIS_URL"])
        self.port = free_port()
        name = connection.settings_dict["NAME"]
        own = {
            "DATABASE_URL": self.database.url.rsplit("/", 1)[0] + f"/{name}",
            "REDIS_URL": self.broker.url,
            "HEARTBEAT_SECONDS": "0.3",
            **settings,
        }
        self.fleet = Fleet(folder=folder, env={**os.environ, **own}, tell=print)
        stack = Stack(folder=folder, port=0, host="127.0.0.1", memory=Memory(file=folder / "local.env", values={}))
        program = next(iter(stack.workers()))
        self.fleet.start(replace(program, env={**program.env, "WORKER_HEALTH_PORT": str(self.port)}))
        (self.child,) = self.fleet.groups[0]

    def health(self) -> tuple[int, str]:
        """Status, and why it is not ready."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=5) as answer:
                return answer.status, ""
        except urllib.error.HTTPError as refusal:
            return refusal.code, json.loads(refusal.read())["reason"]
        except OSError:
            return 0, ""

    def stop(self) -> None:
        self.fleet.stop()
        self.database.close()
        self.broker.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_each_line_of_a_worker_that_shuts_down_is_in_the_log_format(tmp_path: Path, how: signal.Signals) -> None:
    """With Celery's warning of users who are root, and with callers of the health page who leave without a response."""
    running = RunningWorker(tmp_path, LOG_FORMAT="json")
    try:
        eventually(lambda: running.health() == (200, ""))
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", running.port)) as caller:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                caller.sendall(b"GET /health/ready HTTP/1.1\r\n")
        assert running.child.process is not None
        running.child.process.send_signal(how)
        eventually(running.child.has_ended)
    finally:
        running.stop()
    log = (tmp_path / "log" / "worker-1.log").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in log.splitlines()]
    assert how.name in {line.get("signal") for line in lines if line["event"] == "worker shutting down"}


def test_a_heartbeat_goes_into_the_queue_of_its_worker_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the queue that all share, another worker takes it, and it says nothing about this one."""
    sends: list[Any] = []
    monkeypatch.setattr("workers.heartbeat_monitor.start", lambda name, *, send, every, port: sends.append(send))
    _start_heart(sender=SimpleNamespace(hostname="worker-1@here"))
    with Connection("memory://") as queues:
        monkeypatch.setattr(app, "producer_or_acquire", lambda producer=None: nullcontext(app.amqp.Producer(queues)))
        sends[0]()
        channel: Any = queues.default_channel
        filled = [name for name, queue in channel.queues.items() if queue.qsize()]
    (own,) = filled
    assert own == worker_direct("worker-1@here").name


# --- The heart alone, with a clock that is turned by hand -----------------------------------------------------


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = 1_000.0
        monkeypatch.setattr("workers.heartbeat_monitor.time.monotonic", lambda: self.time)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_it_does_not_end_for_heartbeats_that_could_not_be_sent(clock: Clock) -> None:
    ended: list[int] = []

    def fail() -> None:
        raise ConnectionError

    monitor = HeartbeatMonitor("w", send=fail, every=10, end=ended.append)
    for _ in range(20):
        clock.time += 10
        monitor.beat()
    assert ended == []
    assert monitor.problem()


def test_it_does_not_exit_before_the_broker_accepted_several_unanswered_heartbeats(clock: Clock) -> None:
    """The broker was away for long and has just come back: the first heartbeat is still on its way."""
    ended: list[int] = []
    monitor = HeartbeatMonitor("w", send=lambda: None, every=10, end=ended.append)
    clock.time += 1_000
    for _ in range(SENT_IN_VAIN):
        monitor.beat()
    assert ended == []
    monitor.beat()
    assert ended == [1]


def test_heartbeats_that_a_busy_slot_delays_do_not_end_it(clock: Clock) -> None:
    ended: list[int] = []
    monitor = HeartbeatMonitor("w", send=lambda: None, every=10, end=ended.append)
    for _ in range(4):
        clock.time += 10
        monitor.beat()
    assert ended == []
    clock.time += 10
    monitor.beat()
    assert ended == [1]


def test_an_arrived_heartbeat_resets_the_count(clock: Clock) -> None:
    ended: list[int] = []
    monitor = HeartbeatMonitor("w", send=lambda: None, every=10, end=ended.append)
    for _ in range(20):
        clock.time += 10
        monitor.beat()
        monitor.heard()
    assert (ended, monitor.problem()) == ([], "")


def test_it_reports_when_it_last_worked(clock: Clock) -> None:
    monitor = HeartbeatMonitor("w", send=lambda: None, every=10)
    monitor.heard()
    assert Worker.objects.get().worked_at is None
    monitor.worked()
    clock.time += 30
    monitor.heard()
    worked_at = Worker.objects.get().worked_at
    assert worked_at is not None
    assert timedelta(seconds=29) < now() - worked_at < timedelta(seconds=60)
    monitor.worked_at = None  # another process under the same name
    monitor.heard()
    assert Worker.objects.get().worked_at == worked_at


# --- What people see ------------------------------------------------------------------------------------------


def test_a_stopped_worker_is_not_reported_as_silent(clock: Clock) -> None:
    monitor = HeartbeatMonitor("w", send=lambda: None, every=10)
    monitor.heard()
    monitor.stop()
    assert not Worker.objects.exists()


def beat(name: str, *, seconds_ago: float = 0) -> None:
    heartbeats.note(name, worked_seconds_ago=None)
    Worker.objects.filter(name=name).update(beat_at=now() - timedelta(seconds=seconds_ago))


def test_a_silent_worker_is_listed_separately_and_forgotten_after_an_hour() -> None:
    beat("old", seconds_ago=7200)
    beat("silent", seconds_ago=120)
    beat("fresh")
    heartbeats.note("fresh", worked_seconds_ago=None)
    found = heartbeats.pulse()
    assert [worker.name for worker in found.answering] == ["fresh"]
    assert [worker.name for worker in found.silent] == ["silent"]


@pytest.mark.parametrize(
    ("names", "status"), [({}, 503), ({"a": 0}, 200), ({"a": 0, "b": 120}, 200), ({"a": 120}, 503)]
)
def test_the_web_process_knows_whether_a_worker_answers(names: dict[str, float], status: int) -> None:
    for name, seconds in names.items():
        beat(name, seconds_ago=seconds)
    answer = Client().get("/health/workers")
    told: dict[str, Any] = answer.json()
    assert answer.status_code == status
    assert {worker["name"] for worker in told["workers"]} == set(names)


def test_a_heartbeat_that_could_not_be_sent_resets_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats from before an outage of the broker say nothing about the time after it."""
    moment, is_away = 0.0, False
    ended: list[int] = []

    def send() -> None:
        if is_away:
            raise ConnectionError("refused")

    monkeypatch.setattr("workers.heartbeat_monitor.time.monotonic", lambda: moment)
    made = heartbeat_monitor.HeartbeatMonitor("me", send=send, every=10, end=ended.append)
    for _ in range(heartbeat_monitor.SENT_IN_VAIN):
        made.beat()
    is_away = True
    moment = 1_000.0
    made.beat()
    is_away = False
    for _ in range(heartbeat_monitor.SENT_IN_VAIN):
        made.beat()
    assert ended == []
    made.beat()
    assert ended == [1]


def test_a_heartbeat_of_another_worker_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    own = heartbeat_monitor.HeartbeatMonitor("me", send=lambda: None, every=10)
    monkeypatch.setattr(own, "heard", lambda: heard.append("mine"))
    monkeypatch.setattr(heartbeat_monitor, "_own", own)
    heartbeat_monitor.heard("me-before")
    heartbeat_monitor.heard("another")
    assert heard == []
    heartbeat_monitor.heard("me")
    assert heard == ["mine"]


# --- One worker for all of these; the last test ends it -------------------------------------------------------------


@pytest.fixture(scope="module")
def worker(
    django_db_setup: None, django_db_blocker: DjangoDbBlocker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningWorker]:
    with django_db_blocker.unblock():
        running = RunningWorker(tmp_path_factory.mktemp("worker"))
    yield running
    running.stop()


def test_a_worker_that_work_reaches_is_ready_and_in_the_table(worker: RunningWorker) -> None:
    eventually(lambda: worker.health() == (200, "") and Worker.objects.exists())
    (row,) = Worker.objects.all()
    assert row.name.startswith("worker-1@")
    first = row.beat_at
    eventually(lambda: Worker.objects.get().beat_at > first)


def test_a_worker_whose_broker_is_frozen_is_not_ready_and_recovers(worker: RunningWorker) -> None:
    eventually(lambda: Worker.objects.exists())
    with worker.broker.frozen():
        eventually(lambda: worker.health()[0] == 503)
        assert "no message from the broker" in worker.health()[1]
        assert not worker.child.has_ended()
    eventually(lambda: worker.health()[0] == 200)


def test_a_worker_without_a_database_is_not_ready_and_stays(worker: RunningWorker) -> None:
    eventually(lambda: Worker.objects.exists())
    with worker.database.cut():
        eventually(lambda: worker.health()[0] == 503)
        assert "database" in worker.health()[1]
        assert not worker.child.has_ended()
    eventually(lambda: worker.health()[0] == 200)


@pytest.mark.parametrize("error", [redis.exceptions.OutOfMemoryError, redis.exceptions.ReadOnlyError])
def test_a_worker_reconnects_to_a_broker_that_refuses_its_commands(error: type[Exception]) -> None:
    consumer = Mock(app=app, hub=None, restart_count=0, connection_errors=app.connection().connection_errors)
    consumer.channel_errors = app.connection().channel_errors
    consumer._get_connection_retry_type.return_value = "broker_connection_retry"

    def end(_: object) -> None:
        consumer.blueprint.state = TERMINATE

    consumer.blueprint = Mock(
        state=RUN, start=Mock(side_effect=[error("refused"), DEFAULT]), restart=Mock(side_effect=end)
    )
    Consumer.start(consumer)
    consumer.on_connection_error_after_connected.assert_called_once()


def test_a_worker_that_nothing_can_reach_any_more_ends_itself(worker: RunningWorker) -> None:
    """A half-open connection: heartbeats sent over a new connection arrive, but the worker never receives them."""
    eventually(lambda: Worker.objects.exists())
    worker.broker.leave_half_open()
    eventually(worker.child.has_ended)
    assert worker.child.process is not None
    assert worker.child.process.poll() == 1
