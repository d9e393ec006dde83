"""How many of a worker process's slots the tasks of one install may hold, so that others always find one free.

An ODP account that hangs holds each request until its deadline. With as many requests at once as an install may have,
one such account would take every slot, and the other installs would stand still until the first deadline.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

# This part of the slots is kept for the other installs.
SPARE = 6

_lock = threading.Lock()
_held = Counter[int]()
# Without a worker around it, in a test or a command, there is no limit.
_limit: int | None = None


def share_out(slots: int) -> None:
    """Set the number of slots of this process."""
    global _limit
    _limit = max(1, slots - max(1, slots // SPARE))


@contextmanager
def slot(install_id: int) -> Iterator[bool]:
    """Whether a task of the install may run. If not, the tasks that hold its slots do the work."""
    with _lock:
        free = _limit is None or _held[install_id] < _limit
        if free:
            _held[install_id] += 1
    try:
        yield free
    finally:
        if free:
            with _lock:
                _held[install_id] -= 1
                if not _held[install_id]:
                    del _held[install_id]
