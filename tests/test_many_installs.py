"""Many installs on one worker: those that hang, fail or have a backlog leave slots to the others.

A real Celery worker runs on a thread, with Redis and PostgreSQL. The ODP accounts are servers on loopback that respond
when the test says so.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery.contrib.testing import worker as celery_worker
from celery.worker import state
from django.conf import settings as configured
from pytest_django.fixtures import Settings

from audiences import redis_client, wake
from audiences.models import Install
from tests.delivering import cursor_of, enter, make_audience, make_install, numbered
from tests.threads import PATIENCE, eventually
from workers import app as worker_app
from workers import slots, tasks

pytestmark = pytest.mark.django_db(transaction=True)

SLOTS = 12


class Odp:
    """Accounts of several names on one server. A request waits for the gate of its account, then gets its status."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.opens: dict[str, threading.Event] = {}
        self.statuses: dict[str, int] = {}
        odp = self

        class Account(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                name = self.headers["x-api-key"].partition(".")[0]
                odp.seen.append(name)
                odp.opens[name].wait(2 * PATIENCE)
                status = odp.statuses[name]
                body = json.dumps({"title": "Accepted" if status == 202 else "Bad Request", "status": status}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """The test looks at ``seen``."""

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    self.close_connection = True  # the deadline ended the request

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Account)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def install(
        self, name: str, *, audiences: int, status: int = 202, events: int = 1, is_open: bool = True
    ) -> Install:
        """An install each of whose events is a request, with ``events`` waiting in each audience."""
        self.statuses[name], self.opens[name] = status, threading.Event()
        if is_open:
            self.opens[name].set()
        install = make_install(None, name=name, odp_host=self.url, odp_api_key=f"{name}.secret", batch_size=1)
        for number in range(audiences):
            enter(make_audience(install, f"{name}-{number}"), *numbered(events))
        return install


@pytest.fixture
def odp() -> Iterator[Odp]:
    made = Odp()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    for gate in made.opens.values():
        gate.set()
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def run_worker(odp: Odp, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Iterator[Callable[[int], Any]]:
    """Starts a worker with that many slots. A request may hang for longer than a test waits."""
    settings.DELIVERY_DEADLINE_SECONDS, settings.LEASE_SECONDS = 3 * PATIENCE, 4 * PATIENCE
    settings.DRAIN_SECONDS = 2 * PATIENCE
    monkeypatch.setattr(slots, "_slots", None)
    monkeypatch.setattr(slots, "_waiting", int)
    monkeypatch.setattr(slots, "_slow", set())
    monkeypatch.setattr(celery_worker, "setup_app_for_worker", lambda *args: None)
    redis_client.client.cache_clear()
    with redis.Redis.from_url(configured.REDIS_URL) as broker:
        broker.flushall()

    @contextmanager
    def run(count: int) -> Iterator[None]:
        with celery_worker.start_worker(
            worker_app.app, pool="threads", concurrency=count, perform_ping_check=False, shutdown_timeout=PATIENCE
        ) as running:
            worker_app._share_out_slots(SimpleNamespace(concurrency=count))
            try:
                yield
            finally:
                for gate in odp.opens.values():
                    gate.set()
        pool: Any = running.pool
        pool.executor.shutdown(cancel_futures=True)  # it waits for tasks that are still running

    yield run
    redis_client.client.cache_clear()


def has_taken_all(odp: Odp) -> bool:
    """All slots are taken, or each message was taken and each task that is still running waits for ODP."""
    running = len(state.active_requests)
    return running == SLOTS or (not messages_waiting() and running == len(odp.seen))


def messages_waiting() -> int:
    with redis.Redis.from_url(configured.REDIS_URL) as broker:
        queued: Any = broker.llen("lytics-sync:drain")
    return int(queued) + len(state.reserved_requests) - len(state.active_requests)


@pytest.mark.parametrize(("count", "answered_before"), [(2, 1), (3, 1), (11, 0)])
def test_installs_that_hang_leave_a_slot_to_one_that_answers(
    odp: Odp, run_worker: Callable[[int], Any], count: int, answered_before: int
) -> None:
    hanging = [odp.install(f"hanging{number}", audiences=SLOTS, is_open=False) for number in range(count)]
    healthy = odp.install("healthy", audiences=1)
    (audience,) = healthy.audiences.all()
    with run_worker(SLOTS):
        for place, install in enumerate(hanging):
            for _ in range(SLOTS):
                if place < answered_before:
                    slots.note_request(install.pk, 0.1)
                tasks.drain.delay(install.pk)
                eventually(lambda: has_taken_all(odp))
        wake.wake(healthy.pk)
        eventually(lambda: cursor_of(audience) == 1)


@pytest.mark.parametrize(
    ("audiences", "events", "status"), [(1, 40, 202), (1, 40, 400), (40, 1, 202)], ids=["backlog", "rejected", "many"]
)
def test_an_install_with_much_to_send_gives_its_slot_back_after_one_request(
    odp: Odp, run_worker: Callable[[int], Any], audiences: int, events: int, status: int
) -> None:
    """With one slot, another install waits for two turns at most, because a hint of the large one may come first."""
    large = odp.install("large", audiences=audiences, events=events, status=status, is_open=False)
    small = odp.install("small", audiences=1)
    (audience,) = small.audiences.all()
    with run_worker(1):
        wake.wake(large.pk)
        eventually(lambda: odp.seen == ["large"])
        tasks.drain.delay(small.pk)
        eventually(lambda: messages_waiting() == 2)
        odp.opens["large"].set()
        eventually(lambda: cursor_of(audience) == 1)
        first = odp.seen.index("small")
        eventually(lambda: odp.seen.count("large") > first)
    assert first <= 2 * (1 if status == 202 else 3)
