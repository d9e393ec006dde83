"""Group commit: calls that arrive while a transaction of this process runs are stored together by the next one.

One thread, the leader, stores the calls of the group in one transaction; the threads of the other calls wait for it.
Locks, round trips and the flush of the WAL are then paid once per group. A call never waits for others to come: if
no transaction runs, it is stored at once. See docs/decisions/0032-group-commit.md.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from audiences import sessions

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupLostError(Exception):
    """The leader lost its database session, so it is unknown whether the group was committed."""


class GroupLockedError(Exception):
    """A lock timeout: another transaction locks an audience of the group. Nothing of it was stored."""


@dataclass(slots=True)
class _Place(Generic[Item, Result]):
    """A call in the queue. ``turn`` is released when the call leads, or when its leader has finished.

    A lock costs a tenth of an Event, which has a lock for each that waits.
    """

    item: Item
    size: int
    turn: threading.Lock = field(default_factory=threading.Lock)
    leads: bool = False
    result: Result | None = None
    error: BaseException | None = None
    is_locked: bool = False


class GroupCommit(Generic[Item, Result]):
    """``store`` stores a group as a whole and returns one result per item; None when nothing was stored.

    ``largest`` limits the sum of the sizes in a group. A larger item is a separate group.
    """

    def __init__(self, store: Callable[[Sequence[Item]], Sequence[Result] | None], *, largest: int) -> None:
        self._store, self._largest = store, largest
        self._lock = threading.Lock()
        # The waiting calls by key. A key is present while it has a leader.
        self._waiting: dict[int, deque[_Place[Item, Result]]] = {}

    def store(self, key: int, item: Item, *, size: int) -> Result | None:
        """Store ``item`` with others of its key. None when it isn't stored, and has to be stored in another way.

        An error of a group of several items gives None for each of them, because any of them may have caused it.
        When the group may have been committed, the leader raises the error itself, and the others ``GroupLostError``.
        After a lock timeout the group leaves the queue, and each of its calls raises ``GroupLockedError``.
        """
        place: _Place[Item, Result] = _Place(item, size)
        with self._lock:
            if key in self._waiting:
                place.turn.acquire()
                self._waiting[key].append(place)
            else:
                self._waiting[key] = deque()
                place.leads = True
        if not place.leads:
            place.turn.acquire()
        if place.leads:
            self._lead(key, place)
        elif place.error is not None:
            raise GroupLostError(str(place.error)) from place.error
        if place.is_locked:
            raise GroupLockedError
        return place.result

    def _lead(self, key: int, place: _Place[Item, Result]) -> None:
        group = self._take(key, place)
        try:
            results = self._store([one.item for one in group])
            if results is not None:
                for one, result in zip(group, results, strict=True):
                    one.result = result
        except BaseException as error:
            is_locked = sessions.state_of(error) == sessions.LOCK_TIMEOUT
            for one in group:
                one.is_locked = is_locked
            if (len(group) == 1 and not is_locked) or _may_be_stored(error):
                for one in group:
                    one.error = error
                if isinstance(error.__cause__, sessions.NoAnswerError):
                    self._fail_waiting(key, error)
                raise
        finally:
            self._hand_over(key)
            for one in group[1:]:
                one.turn.release()

    def _take(self, key: int, place: _Place[Item, Result]) -> list[_Place[Item, Result]]:
        group, size = [place], place.size
        with self._lock:
            waiting = self._waiting[key]
            while waiting and size + waiting[0].size <= self._largest:
                group.append(waiting.popleft())
                size += group[-1].size
        return group

    def _fail_waiting(self, key: int, error: BaseException) -> None:
        """PostgreSQL didn't answer in time. Otherwise each waiting group would wait for the same time again."""
        with self._lock:
            failed = [*self._waiting[key]]
            self._waiting[key].clear()
        for one in failed:
            one.error = error
            one.turn.release()

    def _hand_over(self, key: int) -> None:
        """Make the first waiting call the next leader, so that each thread stores its own group only."""
        with self._lock:
            if waiting := self._waiting[key]:
                following = waiting.popleft()
                following.leads = True
                following.turn.release()
            else:
                del self._waiting[key]


def _may_be_stored(error: BaseException) -> bool:
    """Whether the transaction may have been committed in spite of this error: its session or its thread ended."""
    if not isinstance(error, Exception):
        return True
    cause = error.__cause__ or error
    return sessions.ends_session(cause) and sessions.state_of(cause) != sessions.READ_ONLY
