"""The slots of a worker process are shared among installs: one whose ODP hangs leaves some to the others."""

from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from celery.signals import celeryd_after_setup

from audiences import wake
from audiences.operations import resends
from workers import app, drain, making, slots, tasks

HANGING, WELL = 1, 2


@pytest.fixture(autouse=True)
def share(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a worker, and for the length of a test."""
    monkeypatch.setattr(slots, "_limit", None)
    yield
    assert not slots._held, "every slot was given back"


def hold(stack: ExitStack, install_id: int, count: int) -> list[bool]:
    return [stack.enter_context(slots.slot(install_id)) for _ in range(count)]


@pytest.mark.parametrize(("of_process", "of_one"), [(1, 1), (2, 1), (10, 9), (12, 10), (24, 20)])
def test_one_install_never_gets_all_of_them(of_process: int, of_one: int) -> None:
    assert app.app is not None
    celeryd_after_setup.send(sender="worker", instance=SimpleNamespace(concurrency=of_process), conf=None)
    with ExitStack() as stack:
        assert hold(stack, HANGING, of_one + 1) == [True] * of_one + [False]
        assert hold(stack, WELL, 1) == [True]


def test_a_released_slot_is_available_again() -> None:
    slots.share_out(2)
    for _ in range(3):
        with slots.slot(HANGING) as free:
            assert free
        with pytest.raises(ZeroDivisionError), slots.slot(HANGING):
            raise ZeroDivisionError


def test_without_a_worker_around_them_tasks_are_not_counted_off() -> None:
    with ExitStack() as stack:
        assert all(hold(stack, HANGING, 100))


@pytest.mark.parametrize("task", ["drain", "make", "resend"])
def test_a_task_beyond_the_share_of_its_install_ends_at_once(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def run(install_id: int, *, seconds: float) -> int:
        ran.append(install_id)
        return 0

    monkeypatch.setattr(wake, "heard", lambda *args: None)
    monkeypatch.setattr(drain, "drain", run)
    monkeypatch.setattr(making, "make", run)
    monkeypatch.setattr(resends, "go_on", run)
    slots.share_out(12)
    with ExitStack() as stack:
        hold(stack, HANGING, 10)
        getattr(tasks, task)(HANGING)
        getattr(tasks, task)(WELL)
    assert ran == [WELL]
