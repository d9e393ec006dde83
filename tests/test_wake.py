"""Wake-ups: a hint that is sent once, never waited for, and never missed when it gets lost."""

import json
import socket
import threading
from base64 import b64decode
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from django.conf import settings
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import redis_client, wake
from tests.delivering import assert_all_is_well, enter, make_audience, make_install, sandbox
from tests.threads import PATIENCE, eventually
from workers import drain, tasks
from workers.app import app

QUEUE = "lytics-sync:drain"


@pytest.fixture
def broker() -> Iterator[redis.Redis]:
    connected = redis.Redis.from_url(settings.REDIS_URL)
    connected.flushall()
    yield connected
    connected.flushall()


@pytest.fixture
def waker(monkeypatch: pytest.MonkeyPatch) -> wake._Waker:
    """A separate waker without state of another test."""
    fresh = wake._Waker()
    monkeypatch.setattr(wake, "_waker", fresh)
    redis_client.client.cache_clear()
    return fresh


@pytest.fixture(autouse=True)
def forget_connections() -> Iterator[None]:
    yield
    redis_client.client.cache_clear()


def hints(broker: Any) -> list[tuple[str, list[int]]]:
    """The messages in the queue: task and arguments."""
    found = []
    for raw in broker.lrange(QUEUE, 0, -1):
        message = json.loads(raw)
        body = json.loads(b64decode(message["body"]))
        found.append((message["headers"]["task"], body[0]))
    return found


def test_a_hint_names_the_task_and_the_install(broker: Any, waker: wake._Waker) -> None:
    wake.wake(7)
    assert eventually(lambda: hints(broker)) == [("workers.tasks.drain", [7])]
    assert "workers.tasks.drain" in app.tasks


def test_several_hints_for_one_install_are_one_until_a_worker_acknowledges_it(broker: Any, waker: wake._Waker) -> None:
    for _ in range(50):
        waker._send(7)
        waker._send(8)
    assert sorted(hints(broker)) == [("workers.tasks.drain", [7]), ("workers.tasks.drain", [8])]
    wake.heard(7)
    waker._send(7)
    waker._send(8)
    assert sorted(args for _, args in hints(broker)) == [[7], [7], [8]]


def test_hints_that_come_while_one_is_being_sent_are_sent_after_it(
    waker: wake._Waker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending, go_on, sent = threading.Event(), threading.Event(), []

    def send(install_id: int) -> None:
        sending.set()
        go_on.wait(PATIENCE)
        sent.append(install_id)

    monkeypatch.setattr(waker, "_send", send)
    wake.wake(1)
    sending.wait(PATIENCE)
    for _ in range(9):
        wake.wake(1)
        wake.wake(2)
    go_on.set()
    eventually(lambda: len(sent) == 3)
    assert (sent[0], sorted(sent[1:])) == (1, [1, 2])


def test_a_lost_hint_is_made_up_for_by_the_next_one_after_a_moment(broker: Any, waker: wake._Waker) -> None:
    waker._send(7)
    broker.flushall()
    waker._send(7)
    assert [args for _, args in hints(broker)] == [[7]]
    remaining = broker.pttl(wake._pending(7))
    assert 0 < remaining <= wake.PENDING_MS


def test_an_unacknowledged_hint_expires(broker: Any, waker: wake._Waker) -> None:
    waker._send(7)
    (raw,) = broker.lrange(QUEUE, 0, -1)
    assert json.loads(raw)["headers"]["expires"] is not None


def test_a_worker_whose_clock_is_minutes_ahead_drops_no_message(broker: Any, waker: wake._Waker) -> None:
    """Celery drops a message that has expired by the worker's clock, and the sender's clock said when that is."""
    waker._send(7)
    (raw,) = broker.lrange(QUEUE, 0, -1)
    ahead = now() + timedelta(minutes=5)
    assert datetime.fromisoformat(json.loads(raw)["headers"]["expires"]) > ahead
    schedule: Any = settings.CELERY_BEAT_SCHEDULE
    for entry in schedule.values():
        assert now() + timedelta(seconds=entry["options"]["expires"]) > ahead


# --- A broker that is gone, or worse --------------------------------------------------------------------------


def test_a_missing_broker_neither_fails_nor_delays_and_is_logged_once(
    settings: Settings, waker: wake._Waker, nobody_there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REDIS_URL = nobody_there
    told = []
    monkeypatch.setattr(wake.log, "warning", lambda words, **more: told.append(words))
    for _ in range(3):
        waker._send(7)
    assert told == ["wake-ups do not get through; the sweep takes over"]
    wake.heard(7)
    wake.wake(7)


def test_a_new_outage_of_the_broker_is_logged_again(
    settings: Settings, broker: Any, waker: wake._Waker, nobody_there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it has a hint of ours already."""
    told = []
    monkeypatch.setattr(wake.log, "warning", lambda words, **more: told.append(words))
    alive = settings.REDIS_URL
    waker._send(7)
    for url in (nobody_there, alive, nobody_there):
        settings.REDIS_URL = url
        redis_client.client.cache_clear()
        waker._send(7)
    assert len(told) == 2


def test_a_broker_that_accepts_connections_and_never_answers_delays_no_call(
    settings: Settings, waker: wake._Waker
) -> None:
    """The single sending thread hangs; callers of wake don't, and there is one thread for any number of calls."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        settings.REDIS_URL = f"redis://127.0.0.1:{frozen.getsockname()[1]}/0"
        wake.wake(7)
        connection, _ = frozen.accept()
        with connection:
            sender = waker._background.thread
            assert sender is not None
            for install_id in range(1_000):
                wake.wake(install_id)
            assert waker._background.thread is sender
            # The broker has read and answered nothing, and all thousand calls have returned.
            assert waker._wanted >= set(range(100, 1_000))
            waker._wanted.clear()


def test_the_thread_of_a_waker_is_restarted_after_a_fork(broker: Any, waker: wake._Waker) -> None:
    gone = threading.Thread(target=lambda: None)
    gone.start()
    gone.join()
    waker._background.thread = gone
    wake.wake(7)
    assert eventually(lambda: hints(broker)) == [("workers.tasks.drain", [7])]


# --- What the tasks do with it --------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_the_sweep_finds_installs_without_a_hint(broker: Any, waker: wake._Waker) -> None:
    with sandbox(unknown_field="create") as odp:
        install, idle = make_install(odp), make_install(odp, name="Idle")
        audience = make_audience(install)
        make_audience(idle)
        enter(audience, "kim")
        broker.flushall()
        tasks.sweep()
        # Of these two alone: the thread of an earlier test may send the hint of an install that is gone only now.
        ours = lambda: [hint for hint in hints(broker) if hint[1][0] in (install.pk, idle.pk)]  # noqa: E731
        assert eventually(ours) == [("workers.tasks.drain", [install.pk])]
        tasks.drain(install.pk)
        assert_all_is_well(audience)


@pytest.mark.django_db(transaction=True)
def test_a_drain_that_runs_out_of_time_hands_on_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[int] = []
    monkeypatch.setattr(drain, "wake", woken.append)
    with sandbox(unknown_field="create") as odp:
        install = make_install(odp, batch_size=1)
        audience = make_audience(install)
        enter(audience, "kim", "lee", "mo")
        drain.drain(install.pk, seconds=0)
        assert woken == [install.pk] * 2, "one for the lanes it left behind, one for itself"
        assert len(odp.requests()) == 1
        drain.drain(install.pk, seconds=30)
        assert_all_is_well(audience)


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_leaves_lanes_unclaimed_wakes_another_before_it_delivers(monkeypatch: pytest.MonkeyPatch) -> None:
    install = make_install(batch_size=2)
    for slug in "abc":
        enter(make_audience(install, slug), "kim")
    woken: list[int] = []
    monkeypatch.setattr(drain, "wake", woken.append)
    monkeypatch.setattr(drain, "deliver", lambda lease: woken.append(-len(lease.spans)))
    drain.turn(install.pk)
    drain.turn(install.pk)
    assert woken == [install.pk, -2, -1]
