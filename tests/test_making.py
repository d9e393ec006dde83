"""Many new audiences are made at once by the threads of one task; one that hangs delays no other."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.db import OperationalError, connection

from audiences.delivery import provision
from audiences.models import Audience, Install
from audiences.wake import MAKE
from tests.delivering import enter, make_audience, make_install
from tests.threads import PATIENCE, eventually, start
from workers import making, pace, slots, tasks

pytestmark = pytest.mark.django_db(transaction=True)
SECONDS = 60.0


class Odp:
    """The part of ODP that making audiences needs. The first requests wait until ``at_once`` of them have arrived."""

    def __init__(self, *, at_once: int = 0, hanging: str = "nothing") -> None:
        self.fields: dict[str, Any] = {}
        self.segments: dict[str, Any] = {}
        self.lock = threading.Lock()
        self.barrier = threading.Barrier(at_once, timeout=PATIENCE) if at_once else None
        self.first = at_once
        self.hanging = hanging
        self.hung: set[str] = set()
        self.go_on = threading.Event()
        self.under_way: set[str] = set()
        self.most = 0

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if method == "POST":
            with self.lock:
                self.fields[body["name"]] = body
            return 200, body
        odp_id = path.rpartition("/")[2]
        stored = self.segments if "/segments/" in path else self.fields
        with self.lock:
            if method == "PUT":
                stored[odp_id] = body
            found = stored.get(odp_id)
        if found is None:
            self.wait(odp_id)
        with self.lock:  # an audience is under way from its first request to its last
            if stored is self.segments and method == "GET" and found is not None:
                self.under_way.discard(odp_id)
        return (404, {"title": "Not Found"}) if found is None else (200, found)

    def wait(self, odp_id: str) -> None:
        with self.lock:
            is_new = odp_id not in self.under_way
            self.under_way.add(odp_id)
            self.most = max(self.most, len(self.under_way))
            is_first, self.first = is_new and self.first > 0, self.first - is_new
        if odp_id.startswith(f"lytics_{self.hanging}"):
            self.hung.add(odp_id)
            self.go_on.wait(PATIENCE)
        if is_first and self.barrier is not None:
            self.barrier.wait()


@contextmanager
def serving(odp: Odp) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one write for head and body; with two, the second waits 40 ms for an acknowledgement

        def reply(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, found = odp.answer(self.command, self.path, json.loads(sent) if sent else None)
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = reply

        def log_message(self, *args: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        odp.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


def new_audiences(url: str, count: int, *, slug: str = "new", **values: Any) -> Install:
    shop = make_install(odp_host=url, **values)
    for number in range(count):
        add(shop, f"{slug}{number}")
    return shop


def add(shop: Install, slug: str) -> None:
    enter(make_audience(shop, slug, provisioned=False), "kim")


def made(shop: Install) -> int:
    return Audience.objects.filter(install=shop, provisioned_at__isnull=False).count()


def sessions() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        (count,) = cursor.fetchone() or (0,)
    return int(count)


def test_two_hundred_new_audiences_are_made_eight_at_a_time() -> None:
    odp = Odp(at_once=8)
    with serving(odp) as url:
        shop = new_audiences(url, 200)
        before = sessions()
        assert making.make(shop.pk, seconds=SECONDS) == 200
        eventually(lambda: sessions() == before)  # PostgreSQL ends a session a moment after the client
    assert odp.barrier is not None
    assert not odp.barrier.broken, "eight were never under way together"
    assert odp.most == making.AT_ONCE == 8
    assert made(shop) == len(odp.segments) == len(odp.fields) == 200


def test_an_audience_that_hangs_delays_none_of_the_others() -> None:
    odp = Odp(hanging="new0")
    with serving(odp) as url:
        shop = new_audiences(url, 40)
        (task,) = start(lambda: making.make(shop.pk, seconds=SECONDS))
        eventually(lambda: made(shop) == 39)
        assert not task.done()
        assert odp.hung == {"lytics_new0"}
        odp.go_on.set()
        assert task.result(PATIENCE) == 40
    assert made(shop) == 40


def test_a_new_audience_is_made_while_another_one_hangs() -> None:
    odp = Odp(hanging="hanging")
    with serving(odp) as url:
        shop = new_audiences(url, 1, slug="hanging")
        (task,) = start(lambda: making.make(shop.pk, seconds=SECONDS))
        eventually(lambda: odp.hung)
        add(shop, "new")
        eventually(lambda: made(shop) == 1)
        assert not task.done()
        odp.go_on.set()
        assert task.result(PATIENCE) == 2


def test_an_install_that_hangs_leaves_threads_to_the_others() -> None:
    odp = Odp(hanging="hanging")
    with serving(odp) as url:
        sick, well = new_audiences(url, 20, slug="hanging"), new_audiences(url, 20)
        (task,) = start(lambda: making.make(sick.pk, seconds=SECONDS))
        eventually(lambda: len(odp.hung) == making.AT_ONCE)
        assert making.make(well.pk, seconds=SECONDS) == made(well) == 20
        assert len(odp.hung) == making.AT_ONCE
        odp.go_on.set()
        assert task.result(PATIENCE) == made(sick) == 20


def test_a_second_task_of_the_install_leaves_the_work_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def make(install_id: int, *, seconds: float) -> int:
        ran.append(install_id)
        return 0

    monkeypatch.setattr(making, "make", make)
    monkeypatch.setattr("audiences.wake.heard", lambda *args: None)
    with making.alone(1) as first, slots.slot(1):
        assert first
        tasks.make(1)
        tasks.make(2)
    tasks.make(1)
    assert ran == [2, 1], MAKE


def test_an_error_of_the_database_fails_the_task_and_returns_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> bool:
        raise OperationalError("the server is gone")

    monkeypatch.setattr(provision, "provision_one", fails)
    for _ in range(making.THREADS + 1):
        with pytest.raises(OperationalError):
            making.make(1, seconds=SECONDS)


def test_a_task_whose_time_is_over_wakes_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[int] = []
    monkeypatch.setattr(making, "wake_making", woken.append)
    with serving(Odp()) as url:
        shop = new_audiences(url, 3)
        assert making.make(shop.pk, seconds=-1) == 0
        assert woken == [shop.pk]
        assert making.make(shop.pk, seconds=SECONDS) == 3
    assert woken == [shop.pk]


def test_the_threads_obey_the_rate_limit_of_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[str] = []
    monkeypatch.setattr(pace, "pass_gate", lambda install, path, until: passed.append(path))
    with serving(Odp()) as url:
        shop = new_audiences(url, 3)
        assert making.make(shop.pk, seconds=SECONDS) == 3
    assert len(passed) == 3 * 6
