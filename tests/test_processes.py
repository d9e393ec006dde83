"""When the runner restarts a process: at once after a kill, with growing delays when it fails by itself."""

import signal
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from local import processes
from local.processes import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, STEP_SECONDS, Child, Fleet, Program

ENDS = 12


class Clock:
    """Time passes only while the runner pauses, so every program here ends right after its start."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep))
    return clock


@pytest.fixture
def fleet(tmp_path: Path, clock: Clock) -> Iterator[Fleet]:
    fleet = Fleet(folder=tmp_path, env={}, tell=print)
    yield fleet
    fleet.stop()


def _is_replaced(child: Child, process: object) -> bool:
    return child.process not in (None, process)


def pauses(fleet: Fleet, clock: Clock, *command: str, kill: signal.Signals | None = None) -> list[float]:
    """How long the runner waits after each end of such a program."""
    fleet.start(Program(name="some", command=command))
    child: Child = fleet.groups[0][0]
    found = []
    for _ in range(ENDS):
        process = child.process
        assert process is not None
        if kill is not None:
            process.send_signal(kill)
        process.wait()
        ended_at = clock.now
        assert fleet.wait(partial(_is_replaced, child, process), seconds=100)
        found.append(clock.now - ended_at)
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_program_that_is_killed_again_and_again_is_started_at_once_each_time(
    fleet: Fleet, clock: Clock, how: signal.Signals
) -> None:
    assert max(pauses(fleet, clock, "/bin/sleep", "60", kill=how)) <= FIRST_PAUSE_SECONDS + 2 * STEP_SECONDS


def test_a_program_that_was_stopped_is_started_again_at_once(fleet: Fleet, clock: Clock) -> None:
    assert max(pauses(fleet, clock, "/bin/sh", "-c", "exit 0")) <= FIRST_PAUSE_SECONDS + 2 * STEP_SECONDS


@pytest.mark.parametrize("fault", ["exit 1", "exit 3", "kill -SEGV $$", "kill -ABRT $$"])
def test_a_program_that_cannot_run_is_tried_at_growing_intervals(fleet: Fleet, clock: Clock, fault: str) -> None:
    found = pauses(fleet, clock, "/bin/sh", "-c", fault)
    assert all(later >= earlier - STEP_SECONDS for earlier, later in pairwise(found))
    assert found[-1] >= LONGEST_PAUSE_SECONDS
