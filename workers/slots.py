"""The slots of a worker process, and how installs share them. Imports no Celery.

An ODP account that hangs holds the slot of each request until the request's deadline. Four rules keep slots for the
other installs, and a fifth one for tasks that deliver nothing:

- Reserve: the last quarter of the slots goes to installs that hold none.
- Growth: a further drain of an install starts only after a request of the install has ended since its newest drain
  started. So an account that begins to hang keeps the slots that it has, and gets no others.
- Slow installs: those whose last request took longer than ``SLOW_SECONDS`` hold one slot of the reserve together.
- Turns: while messages wait because all slots are taken, as many tasks as messages wait end after their request.
- Audits: a quarter of the slots at most, and not the last free one, because Lytics or ODP may hang for many installs.
  Of that quarter, installs whose audits last waited longer than ``SLOW_SECONDS`` for a response hold one together.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# One slot of this number is in the reserve.
RESERVE_ONE_IN = 4
# One slot of this number may run a task that delivers nothing, such as an audit.
BESIDE_ONE_IN = 4
# A healthy ODP responds in a fraction of this.
SLOW_SECONDS = 2.0

_lock = threading.Lock()
_held = Counter[int]()
# The thread of each install's newest drain, until a request of the install ends.
_newest = dict[int, int]()
# The installs a drain of which got no slot, until another drain of the install has looked for its work.
_denied = set[int]()
# The installs whose last request in this process was slow.
_slow = set[int]()
# The running tasks of each install that deliver nothing.
_beside = Counter[int]()
# The installs whose last request of an audit in this process was slow.
_slow_audits = set[int]()
# The threads whose task ends because messages wait.
_leaving = set[int]()
# Without a worker around it, in a test or a command, there is no limit.
_slots: int | None = None
_waiting: Callable[[], int] = int


def share_out(slots: int, *, waiting: Callable[[], int] = int) -> None:
    """Set the number of slots of this process. ``waiting`` gives the number of messages for which none is left."""
    global _slots, _waiting
    _slots, _waiting = slots, waiting


@contextmanager
def slot(install_id: int, *, drains: bool = True) -> Iterator[bool]:
    """Whether a task of the install may run. If not, the drains that hold its slots, or the next sweep, do the work."""
    thread = threading.get_ident()
    with _lock:
        granted = _may_have(install_id, drains=drains)
        if granted:
            _held[install_id] += 1
        if drains and granted:
            _newest[install_id] = thread
        elif drains:
            _denied.add(install_id)
    try:
        yield granted
    finally:
        if granted:
            with _lock:
                _leaving.discard(thread)
                if _newest.get(install_id) == thread:
                    del _newest[install_id]
                _held[install_id] -= 1
                if not _held[install_id]:
                    del _held[install_id]


@contextmanager
def beside(install_id: int) -> Iterator[bool]:
    """Whether a task may run that asks Lytics or ODP and delivers nothing. If not, a later message does its work."""
    with _lock:
        granted = _may_have_beside(install_id)
        if granted:
            _beside[install_id] += 1
    try:
        yield granted
    finally:
        if granted:
            with _lock:
                _beside[install_id] -= 1
                if not _beside[install_id]:
                    del _beside[install_id]


def _may_have_beside(install_id: int) -> bool:
    if _slots is None:
        return True
    if _beside.total() >= max(1, _slots // BESIDE_ONE_IN) or _free(_slots) <= min(1, _slots - 1):
        return False
    return install_id not in _slow_audits or _slow_audits.isdisjoint(_beside)


def _free(slots: int) -> int:
    return slots - _held.total() - _beside.total()


def _may_have(install_id: int, *, drains: bool) -> bool:
    if _slots is None:
        return True
    is_plenty = _free(_slots) > _reserve(_slots)
    if _held[install_id]:
        return is_plenty and not (drains and install_id in _newest)
    return is_plenty or install_id not in _slow or _slow.isdisjoint(_held)


def _reserve(slots: int) -> int:
    return max(slots // RESERVE_ONE_IN, min(1, slots - 1))


def gives_way() -> bool:
    """Whether the task of this thread ends now, because messages wait for a slot."""
    with _lock:
        if _waiting() <= len(_leaving):
            return False
        _leaving.add(threading.get_ident())
        return True


def was_denied(install_id: int) -> bool:
    """Whether a drain of the install got no slot since the last call. What it was to send may have come after the
    caller looked for work."""
    with _lock:
        is_denied = install_id in _denied
        _denied.discard(install_id)
        return is_denied


def allow_another(install_id: int) -> None:
    """Let a further drain of the install start, because the newest one delivers nothing now."""
    with _lock:
        _newest.pop(install_id, None)


def note_request(install_id: int, seconds: float) -> None:
    """A request to the install's ODP account has ended, with a response or without."""
    with _lock:
        _newest.pop(install_id, None)
        _note_seconds(_slow, install_id, seconds)


def note_audit_request(install_id: int, seconds: float) -> None:
    """A request of an audit to Lytics or ODP has ended, with a response or without."""
    with _lock:
        _note_seconds(_slow_audits, install_id, seconds)


def _note_seconds(slow: set[int], install_id: int, seconds: float) -> None:
    if seconds > SLOW_SECONDS:
        slow.add(install_id)
    else:
        slow.discard(install_id)
