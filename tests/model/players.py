"""Who takes part in tests/test_state_machine.py: workers that stop between any two lines of a drain, and an ODP.

Time is the machine's own: it moves what PostgreSQL has stored about leases, backoffs and Deliveries, and what the code
of the workers reads from ``time.monotonic``. Only one thread runs at a time, so the same choices give the same run.
"""

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import connection

from audiences import wake
from audiences.delivery import backoff, claims, holds, odp_account, provision, reading, request_records, settling
from audiences.models import Install
from odp.client import OUT_OF_TIME
from odp.mechanisms import Change
from odp.outcomes import Answer, Outcome
from outgoing.deadline import TooLateError
from tests.threads import PATIENCE
from workers import drain

# As in production, a hundred times longer: real seconds that pass meanwhile make no difference.
TIMES = {
    "LEASE_SECONDS": 1_100,
    "DELIVERY_DEADLINE_SECONDS": 800,
    "BACKOFF_FIRST_SECONDS": 50,
    "BACKOFF_LONGEST_SECONDS": 400,
    "BACKOFF_FIXED_SECONDS": 400,
    "RECONCILE_AFTER_SECONDS": 30_000,
}
LEASE_MARGIN = 100
# Seconds after which ODP has applied a request or never will. Below RECONCILE_AFTER_SECONDS by more than one lease.
HORIZON = 20_000


class Killed(BaseException):
    """What kill -9 is to the code that runs: nothing after it happens."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody has to wait here")

    def advance(self, seconds: float) -> None:
        self.now += seconds
        with connection.cursor() as cursor:
            for table, columns in (
                ("lane", ["lease_expires_at"]),
                ("install", ["brake_until_at", "brake_since_at"]),
                ("audience", ["making_until_at", "hold_since_at", "hold_until_at", "look_asked_at"]),
                ("delivery", ["opened_at", "closed_at"]),
            ):
                earlier = ", ".join(f"{column} = {column} - make_interval(secs => %(by)s)" for column in columns)
                cursor.execute(f"UPDATE audiences_{table} SET {earlier}", {"by": seconds})


# --- workers -----------------------------------------------------------------------------------------------------


class Worker:
    """A thread that runs ``drain`` and stops at each call of ``pause`` until it is told to continue or to die."""

    current = threading.local()

    def __init__(self) -> None:
        self.at = "idle"
        self.changes: tuple[Change, ...] = ()
        self.answer: Answer | None = None
        self.dies_inside = False
        self.failed: BaseException | None = None
        self._job: Callable[[], object] | None = None
        self._dies = False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def start(self, install_id: int) -> None:
        self._job, self.dies_inside = lambda: drain.drain(install_id, seconds=float("inf")), False
        self.go()

    def go(self, *, dies: bool = False) -> None:
        """On to the next place where it stops."""
        self._dies = dies
        self._go.release()
        assert self._stopped.acquire(timeout=PATIENCE), f"a worker hangs after {self.at}"
        if self.failed is not None:
            raise AssertionError("a worker failed") from self.failed

    def pause(self, where: str) -> None:
        self.at = where
        self._stopped.release()
        self._go.acquire()
        if self._dies:
            raise Killed

    def end(self) -> None:
        self._job = None
        self._go.release()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        Worker.current.worker = self
        self._go.acquire()
        while self._job is not None:
            try:
                self._job()
            except Killed:
                pass
            except BaseException as error:  # noqa: BLE001 — raised again by the waiting thread
                self.failed = error
            self.at = "idle"
            self._stopped.release()
            self._go.acquire()
        connection.close()

    @classmethod
    def here(cls) -> "Worker | None":
        return getattr(cls.current, "worker", None)


def _stopping(function: Callable[..., Any], *, before: bool = False, after: bool = False) -> Callable[..., Any]:
    def stops(*args: Any, **kwargs: Any) -> Any:
        worker = Worker.here()
        if worker is None or connection.in_atomic_block:
            return function(*args, **kwargs)
        if before:
            worker.pause(f"before {function.__name__}")
        value = function(*args, **kwargs)
        if after and not (value is None and function.__name__ == "claim"):
            worker.pause(f"after {function.__name__}")
        return value

    return stops


def _deadly(function: Callable[..., Any]) -> Callable[..., Any]:
    """A place inside a transaction."""

    def dies(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        worker = Worker.here()
        if worker is not None and worker.dies_inside:
            raise Killed
        return value

    return dies


def _failing(hold: Callable[..., Any]) -> Callable[..., Any]:
    """A lane that is held because of an error of ours: in a model run nothing may go wrong in a worker."""

    def fails(*args: Any, **kwargs: Any) -> Any:
        if worker := Worker.here():
            worker.failed = sys.exc_info()[1]
        return hold(*args, **kwargs)

    return fails


# --- ODP ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Request:
    changes: tuple[Change, ...]
    began_at: float
    applied: bool = False


@dataclass
class Odp:
    """What it holds by audience and customer: a transition's time, whether it was an exit."""

    clock: Clock
    holds: dict[tuple[str, str], tuple[int, bool]] = field(default_factory=dict)
    # Fields and segments as they were written, by their paths.
    made: dict[str, Any] = field(default_factory=dict)
    flying: dict[int, Request] = field(default_factory=dict)
    late: list[Request] = field(default_factory=list)
    bad_customers: set[str] = field(default_factory=set)
    bad_audiences: set[str] = field(default_factory=set)
    names_them: bool = True
    limit: int = 500

    def begin(self, changes: tuple[Change, ...]) -> Request:
        under_way = {change.lane for request in self.flying.values() for change in request.changes}
        assert under_way.isdisjoint(change.lane for change in changes), "two requests in flight for a lane"
        written = {f"/v3/segments/{change.odp_id}" for change in changes}
        assert written <= self.made.keys(), "a write for an audience that is not there"
        return Request(changes, self.clock.now)

    def apply(self, request: Request, *, late: bool = False) -> None:
        for change in request.changes:
            key, told = (change.odp_id, change.identifier), (change.occurred_ns, not change.is_member)
            assert late or told >= self.holds.get(key, told), "an older state is applied after a newer one"
            self.holds[key] = told
        request.applied = True

    def give_up(self, request: Request) -> None:
        """The worker no longer waits for the request. ODP may still apply it."""
        if not request.applied and request.changes:
            self.late.append(request)

    def is_member(self, odp_id: str, identifier: str) -> bool | None:
        held = self.holds.get((odp_id, identifier))
        return None if held is None else not held[1]

    def answer(self, request: Request, items: list[Any]) -> Answer:
        """What an ODP in good health says to it, by what it has against customers, audiences and sizes."""
        if len(items) > self.limit:
            return Answer(Outcome.REJECTED, "413: too large", 413, too_large=True)
        bad = {
            position: "not this one"
            for position, item in enumerate(items)
            if item["attributes"]["fs_user_id"] in self.bad_customers or self.bad_audiences & item["attributes"].keys()
        }
        if bad:
            return Answer(Outcome.REJECTED, "400: invalid items", 400, named=bad if self.names_them else {})
        self.apply(request)
        return Answer(Outcome.DELIVERED, status=202)

    def forget_the_oldest(self) -> None:
        self.late = [request for request in self.late if self.clock.now - request.began_at < HORIZON]


TROUBLES = {
    "500": Answer(Outcome.RETRY_LATER, "500: trouble", 500),
    "429": Answer(Outcome.RETRY_LATER, "429: slower", 429, retry_after=300.0),
    "401": Answer(Outcome.UNAUTHORISED, "401: the key", 401, fixed_backoff=True),
    "applied and 503": Answer(Outcome.RETRY_LATER, "503: trouble", 503),
    "connection lost": Answer(Outcome.RETRY_LATER, "ODP could not be reached"),
}


class FakeClient:
    """Replaces ``odp.client.Client``, which is tested separately, with the same promises about time."""

    def __init__(self, odp: Odp, ends_at: float) -> None:
        self.odp, self.ends_at = odp, ends_at

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        seconds: float,
        start_before: float = float("inf"),
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        worker, odp = Worker.here(), self.odp
        assert worker is not None
        if odp.clock.now >= min(start_before, self.ends_at):
            raise TooLateError
        if path != "/v3/profiles":
            return self._make(worker, method, path, body)
        request = odp.flying[id(worker)] = odp.begin(worker.changes)
        worker.answer = None
        ends_at = odp.clock.now + seconds
        try:
            worker.pause("in flight")
        finally:
            del odp.flying[id(worker)]
            if worker.answer is None and (worker._dies or odp.clock.now >= ends_at):
                odp.give_up(request)
        if worker.answer is not None:
            if worker.answer.status == 503:
                odp.apply(request)
            elif worker.answer.status is None:
                odp.give_up(request)
            return worker.answer
        if odp.clock.now >= ends_at:
            return Answer(Outcome.RETRY_LATER, OUT_OF_TIME)
        answer = odp.answer(request, json.loads(body or b""))
        worker.pause("after the answer")
        return answer

    def _make(self, worker: Worker, method: str, path: str, body: bytes | None) -> Answer:
        worker.answer = None
        worker.pause("making an audience")
        if worker.answer is not None:
            return worker.answer
        if method == "GET":
            shown = self.odp.made.get(path)
            there = Answer(Outcome.DELIVERED, status=200, json=shown)
            return there if shown else Answer(Outcome.RETRY_LATER, "404", 404)
        thing = json.loads(body or b"")
        self.odp.made[path if method == "PUT" else f"{path}/{thing['name']}"] = thing
        return Answer(Outcome.DELIVERED, status=200)


@contextmanager
def stage(odp: Odp, hints: set[int], *, margin: float = LEASE_MARGIN) -> Iterator[None]:
    """The real code with places to stop in it, the machine's time, and this ODP at the other end."""
    send = drain._Sender.send

    def sends(sender: Any, part: Any) -> Answer:
        worker = Worker.here()
        assert worker is not None
        worker.changes = tuple(change for group in part.groups for change in group)
        return send(sender, part)

    def client_of(install: Install, *, ends_at: float = float("inf"), gate: object = None) -> FakeClient:
        return FakeClient(odp, ends_at)

    with pytest.MonkeyPatch.context() as patched:
        for module, name in (
            (claims, "claim"),
            (reading, "read"),
            (request_records, "open_delivery"),
            (request_records, "close_delivery"),
            (settling, "settle"),
            (backoff, "apply"),
            (backoff, "release"),
            (provision, "claim"),
            (provision, "hold"),
            (provision, "_end"),
        ):
            patched.setattr(module, name, _stopping(getattr(module, name), before=name == "settle", after=True))
        patched.setattr(holds, "give_back", _stopping(holds.give_back, before=True))
        for module, name in ((settling, "_write_ledger"), (request_records, "close_abandoned")):
            patched.setattr(module, name, _deadly(getattr(module, name)))
        patched.setattr(holds, "hold", _failing(holds.hold))
        patched.setattr(drain._Sender, "send", sends)
        patched.setattr(drain, "LEASE_MARGIN", margin)
        patched.setattr(drain, "time", odp.clock)
        patched.setattr(provision, "time", odp.clock)
        for module in (odp_account, provision):
            patched.setattr(module, "client_of", client_of)
        for waker in (wake._waker, wake._maker):
            patched.setattr(waker, "want", hints.add)
        yield
