"""The background thread: it calls its work after each ring, and survives errors."""

import threading

import pytest

from audiences import background
from audiences.background import Background
from tests.threads import PATIENCE


def test_rings_during_a_call_lead_to_one_more_call() -> None:
    began, go_on, calls = threading.Semaphore(0), threading.Semaphore(0), []

    def work() -> float:
        calls.append(threading.current_thread().name)
        began.release()
        assert go_on.acquire(timeout=PATIENCE)
        return 0

    one = Background("one", work)
    one.ring()
    assert began.acquire(timeout=PATIENCE)
    for _ in range(9):
        one.ring()
    go_on.release()
    assert began.acquire(timeout=PATIENCE)
    go_on.release()
    assert calls == ["one", "one"]


def test_an_error_is_logged_and_the_thread_works_on(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(background.log, "exception", lambda words, **more: told.append(more["thread"]))
    monkeypatch.setattr(background, "PAUSE_AFTER_ERROR", 0)
    failed, worked = threading.Event(), threading.Event()

    def work() -> float:
        if failed.is_set():
            worked.set()
            return 0
        failed.set()
        raise ValueError

    one = Background("one", work)
    one.ring()
    assert failed.wait(PATIENCE)
    thread = one.thread
    one.ring()
    assert worked.wait(PATIENCE)
    assert (told, one.thread) == (["one"], thread)
