"""The slots of a worker process, and how installs share them. Imports no Celery.

An ODP account that hangs holds the slot of each request until the request's deadline. Four rules keep slots for the
other installs:

- A first slot: an install gets a second one only after one of its requests in this process has ended.
- A reserve: the last quarter of the slots goes to installs that hold none. One slot of it at most goes to an install
  that is slow, which means that its last request took longer than ``PROMPT_SECONDS``.
- A short deadline: while the reserve is in use, requests of installs that aren't slow end after
  ``RESERVE_DEADLINE_SECONDS``. An install that starts to hang holds a slot of the reserve for that long only, and is
  slow from then on.
- Turns: while messages wait for a slot, as many tasks as there are messages end after the request that they make now.

An install that isn't slow and holds no slot is always given one, because the thread that asks is free.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# One slot of this number is in the reserve.
RESERVE_ONE_IN = 4
# A healthy ODP responds in a fraction of this.
PROMPT_SECONDS = 2.0
# Longer than PROMPT_SECONDS, so that each request that this deadline ends makes its install slow.
RESERVE_DEADLINE_SECONDS = 3.0

_lock = threading.Lock()
_held = Counter[int]()
# The installs with a request of this process that has ended, and whether the last one was slow.
_was_slow = dict[int, bool]()
# The threads whose task ends because messages wait.
_leaving = set[int]()
# Without a worker around it, in a test or a command, there is no limit.
_slots: int | None = None
_waiting: Callable[[], int] = int


def share_out(slots: int, *, waiting: Callable[[], int] = int) -> None:
    """Set the number of slots of this process. ``waiting`` gives the number of messages that wait for one."""
    global _slots, _waiting
    _slots, _waiting = slots, waiting


@contextmanager
def slot(install_id: int) -> Iterator[bool]:
    """Whether a task of the install may run. If not, the tasks that hold its slots, or the next sweep, do the work."""
    with _lock:
        granted = _may_have(install_id)
        if granted:
            _held[install_id] += 1
    try:
        yield granted
    finally:
        if granted:
            with _lock:
                _leaving.discard(threading.get_ident())
                _held[install_id] -= 1
                if not _held[install_id]:
                    del _held[install_id]


def _may_have(install_id: int) -> bool:
    if _slots is None:
        return True
    is_plenty = _free(_slots) > _reserve(_slots)
    if _held[install_id]:
        return is_plenty and install_id in _was_slow
    return is_plenty or not _is_slow(install_id) or not any(map(_is_slow, _held))


def _is_slow(install_id: int) -> bool:
    return _was_slow.get(install_id, False)


def _free(slots: int) -> int:
    return slots - _held.total()


def _reserve(slots: int) -> int:
    return max(slots // RESERVE_ONE_IN, min(1, slots - 1))


def gives_way() -> bool:
    """Whether the task of this thread ends now, because messages wait for a slot."""
    with _lock:
        if _waiting() <= len(_leaving):
            return False
        _leaving.add(threading.get_ident())
        return True


def deadline(install_id: int, usual: float) -> float:
    """The seconds that a request of the install may take, which holds a slot now."""
    with _lock:
        is_scarce = _slots is not None and _free(_slots) < _reserve(_slots)
        return min(usual, RESERVE_DEADLINE_SECONDS) if is_scarce and not _is_slow(install_id) else usual


def note_request(install_id: int, seconds: float) -> None:
    """A request to the install's ODP account has ended, with a response or without."""
    with _lock:
        _was_slow[install_id] = seconds > PROMPT_SECONDS
