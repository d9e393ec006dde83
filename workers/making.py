"""Making audiences in ODP with several threads, in one task and so in one slot of the worker.

Each audience takes about six requests one after the other. A new Lytics account brings hundreds of audiences with its
first job, and an audience whose requests hang must not delay the others.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context

from django.db import connection

from audiences.delivery import claims, provision
from audiences.operations import resends
from audiences.wake import wake_making
from workers import pace, slots

# The number of audiences of one install that are made at the same time by all workers together.
AT_ONCE = 8
# The number of such threads in one process: one install whose ODP hangs leaves some to the others. Each has a database
# connection while it runs (docs/scaling.md).
THREADS = 12
# Seconds after which a task whose threads wait for ODP checks whether another audience can be made.
CHECK_SECONDS = 0.5

_threads = threading.BoundedSemaphore(THREADS)
_lock = threading.Lock()
_busy: set[int] = set()


@contextmanager
def alone(install_id: int) -> Iterator[bool]:
    """Whether no other task of this process makes audiences of the install. If one does, it does this work too."""
    with _lock:
        is_alone = install_id not in _busy
        _busy.add(install_id)
    try:
        yield is_alone
    finally:
        if is_alone:
            with _lock:
                _busy.discard(install_id)


def make(install_id: int, *, seconds: float) -> int:
    """Create the install's waiting audiences in ODP. Starts none after ``seconds``, or when others
    wait for the slot. Returns the number of tries."""
    return _Makers(install_id, until=time.monotonic() + seconds).run()


class _Makers:
    """The threads of one task. The first one starts a second one if more audiences wait, and so on."""

    def __init__(self, install_id: int, *, until: float) -> None:
        self._install_id = install_id
        self._until = until
        self._changed = threading.Condition()
        self._running = 0
        self._tried = 0
        self._error: Exception | None = None

    def run(self) -> int:
        self._start_thread()
        while self._wait():
            if not self._is_time_over() and slots.gives_way():
                self._until = time.monotonic()
            if self._may_start() and self._is_one_waiting():
                self._start_thread()
        if self._error is not None:
            raise self._error
        if self._is_time_over() and self._is_one_waiting():
            wake_making(self._install_id)
        return self._tried

    def _wait(self) -> bool:
        """Wait for the threads. False when all have ended."""
        with self._changed:
            return not self._changed.wait_for(lambda: not self._running, timeout=CHECK_SECONDS)

    def _is_one_waiting(self) -> bool:
        work = claims.work(self._install_id, making_at_once=AT_ONCE)
        return work is not None and work.unprovisioned

    def _is_time_over(self) -> bool:
        return time.monotonic() > self._until

    def _may_start(self) -> bool:
        return self._running < AT_ONCE and self._error is None and not self._is_time_over()

    def _start_thread(self) -> None:
        with self._changed:
            if not self._may_start() or not _threads.acquire(blocking=False):
                return
            self._running += 1
        # With the context of the task, so that the lines of its log name it.
        threading.Thread(target=copy_context().run, args=(self._run_thread,), name="making").start()

    def _run_thread(self) -> None:
        try:
            self._make_all()
        except Exception as error:  # noqa: BLE001 — ``run`` raises it in the task's thread
            self._error = error
        finally:
            _threads.release()
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _make_all(self) -> None:
        try:
            while self._error is None and not self._is_time_over() and self._make_one():
                with self._changed:
                    self._tried += 1
        finally:
            connection.close()

    def _make_one(self) -> bool:
        return provision.provision_one(
            self._install_id,
            gate=pace.pass_gate,
            at_once=AT_ONCE,
            on_more=lambda _: self._start_thread(),
            on_lost=resends.send_lost,
        )
