"""Makes calls like Lytics, with many callers in a few processes, and measures the duration of each.

Bodies are built before the measurement. Each call has a number, its stamp. Identifiers start with the stamp, so that
customers are new in every call and ODP's double can tell the call of each item. Each event has a second of its own in
its call and the stamp as nanoseconds, so that no time occurs twice. With a rate, each call has a due time, and its
duration counts from there: a caller that is held up can't hide the delay.
"""

import argparse
import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from random import Random
from typing import Any

# Placeholder for the stamp. The stamp has the same length, so the length of a body doesn't change.
PLACE = "@@@@@@@@@"
# Number of batches that each process builds. They are sent in turn, with a new stamp each time.
VARIANTS = 40
# Times of events: the seconds of one day.
SECONDS = range(1_772_442_900, 1_772_442_900 + 86_400)

Call = Callable[[int], None]


@dataclass(frozen=True)
class Fact:
    audience: int
    identifier: str
    is_enter: bool
    second: int

    @property
    def occurred_ns(self) -> str:
        """The digits of the time. The stamp replaces the nanoseconds later."""
        return f"{self.second}{PLACE}"


@dataclass(frozen=True, kw_only=True)
class Load:
    """``calls`` calls of ``batch`` events, each over ``spread`` of ``audiences`` audiences from ``first_audience`` on.

    ``rate`` is in events per second; 0 means as fast as possible. ``first`` is the stamp of the first call.
    """

    calls: int
    batch: int = 300
    callers: int = 20
    processes: int = 2
    audiences: int = 60
    first_audience: int = 0
    spread: int = 10
    rate: float = 0.0
    first: int = 0

    def words(self) -> list[str]:
        return [word for name, value in vars(self).items() for word in (f"--{name.replace('_', '-')}", str(value))]


@dataclass
class Report:
    """``acks`` has one tuple per call: its stamp, its due time, and its duration from then in seconds."""

    began: float = 0.0
    ended: float = 0.0
    acks: list[tuple[int, float, float]] = field(default_factory=list)
    trouble: str = ""


def batches(load: Load, *, seed: int) -> list[list[Fact]]:
    dice = Random(seed)  # noqa: S311 — all contenders get the same batches
    made = []
    for _ in range(VARIANTS):
        some = dice.sample(range(load.audiences), min(load.spread, load.audiences))
        seconds = dice.sample(SECONDS, load.batch)
        made.append(
            [
                Fact(
                    load.first_audience + dice.choice(some),
                    f"{PLACE}{n:03d}{dice.getrandbits(80):020x}",
                    dice.random() < 0.6,
                    second,
                )
                for n, second in enumerate(seconds)
            ]
        )
    return made


def drive(load: Load, connect: Callable[[Sequence[list[Fact]]], Callable[[], Call]]) -> Report:
    """Run all callers. ``connect(batches)`` runs once per process and returns the function that prepares a caller."""
    fork = multiprocessing.get_context("fork")
    ends = []
    for number in range(load.processes):
        ours, theirs = fork.Pipe()
        fork.Process(target=_work, args=(load, number, connect, theirs), daemon=True).start()
        theirs.close()
        ends.append(ours)
    for end in ends:
        end.recv()
    began = time.monotonic() + 0.05
    for end in ends:
        end.send(began)
    reports = [Report(**end.recv()) for end in ends]
    return Report(
        began=began,
        ended=max(report.ended for report in reports),
        acks=[ack for report in reports for ack in report.acks],
        trouble=next((report.trouble for report in reports if report.trouble), ""),
    )


def _work(load: Load, number: int, connect: Callable[[Any], Callable[[], Call]], parent: Connection) -> None:
    make_caller = connect(batches(load, seed=number))
    report = Report()
    threads = []
    begins: list[float] = []
    go = threading.Event()

    def caller(place: int) -> None:
        try:
            call = make_caller()
            go.wait()
            for n in range(place, load.calls, load.callers):
                due = begins[0] + (n * load.batch / load.rate if load.rate else 0.0)
                wait = due - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                elif not load.rate:
                    due = time.monotonic()
                call(load.first + n)
                report.acks.append((load.first + n, due, time.monotonic() - due))
        except Exception as error:  # noqa: BLE001 — reported to the parent, which raises it
            report.trouble = f"{type(error).__name__}: {error}"

    for place in range(number, load.callers, load.processes):
        threads.append(threading.Thread(target=caller, args=(place,)))
        threads[-1].start()
    parent.send("ready")
    begins.append(parent.recv())
    go.set()
    for thread in threads:
        thread.join()
    report.ended = time.monotonic()
    parent.send(vars(report))


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    for name, kind in Load.__annotations__.items():
        made.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(Load, name, None))
    return made


def load_of(options: argparse.Namespace) -> Load:
    return Load(**{name: getattr(options, name) for name in Load.__annotations__})


def tell(report: Report) -> None:
    print(json.dumps(vars(report)))
