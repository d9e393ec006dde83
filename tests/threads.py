"""Threads with database connections of their own, for tests in which two things happen at once."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from django.db import connection

# Timeout in seconds of every wait in a test. It suits a machine that is many times slower than usual. Tests that pass
# end their waits much earlier.
PATIENCE = 120.0


def start(*tasks: Callable[[], Any]) -> list["Future[Any]"]:
    """Run each task in a separate thread; returns the futures."""
    pool = ThreadPoolExecutor(max_workers=len(tasks))

    def run(task: Callable[[], Any]) -> Any:
        try:
            return task()
        finally:
            connection.close()

    futures = [pool.submit(run, task) for task in tasks]
    pool.shutdown(wait=False)
    return futures


def together(*tasks: Callable[[], Any]) -> list[Any]:
    """Run all tasks at once and give back what they return; the first exception is raised."""
    return [future.result(PATIENCE) for future in start(*tasks)]


def eventually(holds: Callable[[], Any]) -> Any:
    """What ``holds`` returns as soon as it is true."""
    until = time.monotonic() + PATIENCE
    while not (value := holds()):
        assert time.monotonic() < until, "it never came to hold"
        time.sleep(0.01)
    return value


def waiting_for_a_lock() -> int:
    """The number of sessions that wait for a lock of another session."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        row = cursor.fetchone()
    return int(row[0]) if row else 0


class Gate:
    """A place in the code where each of several threads waits, the first time, for all the others."""

    def __init__(self, parties: int) -> None:
        self._barrier = threading.Barrier(parties, timeout=PATIENCE)
        self._seen: set[int] = set()

    def after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def gated(*args: Any, **kwargs: Any) -> Any:
            value = function(*args, **kwargs)
            if threading.get_ident() not in self._seen:
                self._seen.add(threading.get_ident())
                self._barrier.wait()
            return value

        return gated
