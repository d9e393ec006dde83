"""The slots of a worker process are shared among installs: one whose ODP hangs leaves some to the others."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from celery.signals import celeryd_after_setup
from celery.worker import state

from audiences import wake
from audiences.agreement import audits
from audiences.delivery import provision
from audiences.operations import resends, retiring
from workers import app, drain, making, slots, tasks

HANGING, WELL, ANOTHER = 1, 2, 3


@pytest.fixture(autouse=True)
def share(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a worker, and for the length of a test."""
    monkeypatch.setattr(slots, "_slots", None)
    monkeypatch.setattr(slots, "_waiting", int)
    monkeypatch.setattr(slots, "_slow", set())
    monkeypatch.setattr(slots, "_slow_audits", set())
    monkeypatch.setattr(slots, "_denied", set())
    yield
    assert not slots._held, "every slot was given back"
    assert not slots._beside, "also those of audits"
    assert not slots._newest, "no drain is the newest any more"
    assert not slots._leaving, "no thread is leaving any more"


def hang(stack: ExitStack, install_id: int, count: int) -> list[bool]:
    """Start drains of the install, whose requests don't end."""
    return [stack.enter_context(slots.slot(install_id)) for _ in range(count)]


def hold_beside(stack: ExitStack, install_ids: Iterable[int]) -> list[bool]:
    return [stack.enter_context(slots.beside(install_id)) for install_id in install_ids]


def hold(stack: ExitStack, install_id: int, count: int) -> list[bool]:
    """Start drains of the install. A request of it ends before each one."""
    granted = []
    for _ in range(count):
        slots.note_request(install_id, 0.1)
        granted += hang(stack, install_id, 1)
    return granted


@pytest.mark.parametrize(("of_process", "of_one"), [(1, 1), (2, 1), (3, 2), (4, 3), (10, 8), (12, 9), (24, 18)])
def test_one_install_gets_three_quarters_at_most(of_process: int, of_one: int) -> None:
    assert app.app is not None
    celeryd_after_setup.send(sender="worker", instance=SimpleNamespace(concurrency=of_process), conf=None)
    with ExitStack() as stack:
        assert hold(stack, HANGING, of_one + 1) == [True] * of_one + [False]
        assert hold(stack, WELL, 1) == [True]


def test_the_reserve_gives_each_install_one_slot() -> None:
    slots.share_out(12)
    with ExitStack() as stack:
        hold(stack, HANGING, 9)
        assert hold(stack, WELL, 2) == [True, False]
        assert hold(stack, ANOTHER, 1) == [True]


def test_an_install_gets_a_further_slot_after_a_request_has_ended_since_the_last_one() -> None:
    slots.share_out(12)
    with ExitStack() as stack:
        assert hang(stack, WELL, 2) == [True, False]
        slots.note_request(WELL, 0.1)
        assert hang(stack, WELL, 2) == [True, False]
        slots.note_request(WELL, 8.0)
        assert hang(stack, WELL, 2) == [True, False]


def test_a_drain_that_ends_without_a_request_allows_another() -> None:
    slots.share_out(12)
    with ExitStack() as stack:
        hold(stack, WELL, 1)
        slots.note_request(WELL, 0.1)
        with slots.slot(WELL) as free:
            assert free
        assert hang(stack, WELL, 2) == [True, False]


@pytest.mark.parametrize("other", ["make", "resend", "a drain that creates an audience"])
def test_only_the_delivery_of_a_drain_keeps_a_further_drain_from_starting(
    other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "provision_one", lambda *_, **__: True)
    slots.share_out(12)
    with ExitStack() as stack:
        if other == "a drain that creates an audience":
            hang(stack, WELL, 1)
            assert drain._make_one(WELL)
        else:
            stack.enter_context(slots.slot(WELL, drains=False))
        assert hang(stack, WELL, 2) == [True, False]
        assert stack.enter_context(slots.slot(WELL, drains=False)), "creation doesn't wait for a delivery either"


def test_installs_that_are_slow_hold_one_slot_of_the_reserve_together() -> None:
    slots.share_out(12)
    with ExitStack() as stack:
        hold(stack, HANGING, 9)
        slots.note_request(WELL, 2.5)
        slots.note_request(ANOTHER, 2.5)
        assert hang(stack, WELL, 1) == [True]
        assert hang(stack, ANOTHER, 1) == [False]
        slots.note_request(ANOTHER, 0.1)
        assert hang(stack, ANOTHER, 1) == [True]


def test_as_many_tasks_end_as_messages_wait() -> None:
    slots.share_out(12, waiting=lambda: 1)
    with slots.slot(HANGING):
        assert slots.gives_way()
        assert not slots.gives_way(), "the slot of the first one is for the message"
    with slots.slot(HANGING):
        assert slots.gives_way(), "the message still waits, and nobody is leaving"


def test_no_task_ends_for_messages_that_find_a_free_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    received = {f"message {number}" for number in range(12)}
    monkeypatch.setattr(state, "reserved_requests", received)
    celeryd_after_setup.send(sender="worker", instance=SimpleNamespace(concurrency=12), conf=None)
    with slots.slot(WELL):
        assert not slots.gives_way()
        received.add("one more")
        assert slots.gives_way()


def test_a_drain_looks_again_after_another_one_got_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event of the denied one may have come after the drain looked, and would wait for the next sweep."""
    looks: list[bool] = []

    def turn(install_id: int) -> bool:
        if not looks:
            with slots.slot(install_id) as free:
                looks.append(free)
            return False
        looks.append(True)
        return False

    monkeypatch.setattr(drain, "turn", turn)
    slots.share_out(12)
    with slots.slot(WELL):
        drain.drain(WELL, seconds=60)
    assert looks == [False, True]


def test_a_released_slot_is_available_again() -> None:
    slots.share_out(2)
    for _ in range(3):
        with slots.slot(HANGING) as free:
            assert free
        with pytest.raises(ZeroDivisionError), slots.slot(HANGING):
            raise ZeroDivisionError


def test_audits_take_a_quarter_of_the_slots_at_most_and_not_the_last_one() -> None:
    slots.share_out(12)
    with ExitStack() as stack:
        assert hold_beside(stack, range(4)) == [True, True, True, False]
        assert hold(stack, HANGING, 7) == [True] * 6 + [False], "three of twelve are the reserve"
    with ExitStack() as stack:
        hold(stack, HANGING, 9)
        assert hold_beside(stack, range(3)) == [True, True, False]
        assert hold(stack, WELL, 1) == [True]
    slots.share_out(1)
    with slots.beside(WELL) as free:
        assert free


def test_audits_of_slow_installs_leave_slots_to_those_of_the_others() -> None:
    slots.share_out(12)
    for install_id in (HANGING, ANOTHER):
        slots.note_audit_request(install_id, 30)
    with ExitStack() as stack:
        assert hold_beside(stack, (HANGING, ANOTHER, WELL)) == [True, False, True]
        slots.note_audit_request(HANGING, 0.1)
        assert hold_beside(stack, (ANOTHER,)) == [True]
    slots.share_out(4)
    with ExitStack() as stack:
        assert hold_beside(stack, (ANOTHER, WELL)) == [True, False], "the only slot of audits"


def test_an_audit_without_a_slot_is_left_to_the_next_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lytics hangs: each audit would keep a thread for 30 s, and no event would be delivered."""
    ran: list[int] = []
    monkeypatch.setattr(wake, "heard", lambda *args: None)

    def advance(install_id: int, *, note_request: Callable[[float], object], **_: object) -> None:
        ran.append(install_id)
        note_request(30)

    monkeypatch.setattr(audits, "advance_all", advance)
    slots.share_out(4)
    with slots.beside(WELL):
        tasks.audit(HANGING)
    tasks.audit(WELL)
    assert ran == [WELL]
    assert slots._slow_audits == {WELL}


def test_without_a_worker_around_them_tasks_are_not_counted_off() -> None:
    with ExitStack() as stack:
        assert all(hold(stack, HANGING, 100))


@pytest.mark.parametrize("task", ["drain", "make", "resend"])
def test_a_task_beyond_the_share_of_its_install_ends_at_once(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def run(install_id: int, *, seconds: float, gives_way: Callable[[], bool] = bool) -> int:
        ran.append(install_id)
        return 0

    monkeypatch.setattr(wake, "heard", lambda *args: None)
    monkeypatch.setattr(drain, "drain", run)
    monkeypatch.setattr(making, "make", run)
    monkeypatch.setattr(resends, "advance_all", run)
    monkeypatch.setattr(retiring, "advance_all", lambda *args, **kwargs: None)
    slots.share_out(12)
    with ExitStack() as stack:
        hold(stack, HANGING, 9)
        getattr(tasks, task)(HANGING)
        getattr(tasks, task)(WELL)
    assert ran == [WELL]
