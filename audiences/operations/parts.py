"""Parts of the log: create them ahead, move audiences to the newest, and drop old ones.

The only writer of LogPart, and of the columns ``part``, ``part_after`` and ``waiting_part`` of Audience. An audience
moves under the lock on its row, so its numbers rise from part to part. See docs/decisions/0036-parts-of-the-log.md.
"""

import time
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

import structlog
from django.conf import settings
from django.db import OperationalError, connection, transaction

from audiences import prepared_statements, sessions, sql
from audiences.sql import Statement

log = structlog.get_logger(__name__)

# The most parts that are kept for EVENTS_KEEP_DAYS. Each adds a lookup to a search in the whole log.
PARTS = 30
# The audiences that move in one transaction. A call of one of them waits for it.
AUDIENCES = 200
# How long adding or dropping a part waits for its lock, in milliseconds. Calls that come meanwhile wait behind it.
LOCK_MILLISECONDS = 100
# Reading a part before it is dropped may take this many seconds. Nothing waits for it. A part that can't be read in
# time would stay for good; the first one of a log that was kept completely until now may have years in it.
DROP_SECONDS = 6 * 3600

_LOCK_TIMEOUT = "55P03"


class HasParts(NamedTuple):
    has_parts: bool


class Newest(NamedTuple):
    number: int
    next: int | None
    is_due: bool


class Number(NamedTuple):
    number: int | None


class Locked(NamedTuple):
    id: int


class Dropped(NamedTuple):
    dropped: int | None
    reason: str | None


class LockedError(Exception):
    """The log is in use for longer than LOCK_MILLISECONDS. Try again later."""

    def __init__(self, part: int) -> None:
        super().__init__(part)
        self.part = part


_SQL = sql.beside(__file__)
_HAS_PARTS = _SQL.query("has_parts", HasParts._make)
_CORRECT = _SQL.command("correct")
_NEWEST = _SQL.query("newest", Newest._make)
_ADD = _SQL.query("add", Number._make)
_ANALYZE = _SQL.command("analyze")
_OPEN = _SQL.command("open")
_BEHIND = _SQL.query("behind", Locked._make)
_MOVE = _SQL.command("move")
_CAUGHT_UP = _SQL.query("caught_up", Locked._make)
_FOLLOW = _SQL.command("follow")
_CLOSED = _SQL.query("closed", Number._make)
_DROP = _SQL.query("drop", Dropped._make)


def has_parts() -> bool:
    """Whether the log has parts. A log from before them is one table until ``partition_log``."""
    found = _HAS_PARTS.run().one()
    return found is not None and found.has_parts


def days() -> int:
    """The days that a part is open. 0: no further part is opened, because no event is deleted."""
    kept: int = settings.EVENTS_KEEP_DAYS
    return -(-kept // PARTS) if kept > 0 else 0


def advance(*, pause: Callable[[float], None] = time.sleep) -> None:
    """Create the next part ahead, open it when it is due, and move the audiences that no call is using."""
    if not has_parts():
        return
    # PostgreSQL's autovacuum looks at each part only, and the planner would know nothing of the whole log.
    _ANALYZE.run()
    if days() == 0:
        return
    _CORRECT.run()
    newest = _newest()
    if newest.is_due and newest.next is not None:
        _OPEN.run(number=newest.next)
        newest = _newest()
    if newest.next is None:
        _add()
    _each(_BEHIND, _MOVE, newest.number, pause)
    _each(_CAUGHT_UP, _FOLLOW, newest.number, pause)


def closed(horizon: datetime) -> list[int]:
    """The numbers of the parts that were closed before ``horizon`` and not dropped, oldest first."""
    return [part.number for part in _CLOSED.run(horizon=horizon).all() if part.number is not None]


def drop_one(horizon: datetime) -> int | None:
    """Drop the oldest part from before ``horizon`` that nothing needs. Returns the number of its events, or None.

    One at a time: the log is locked from the drop to the commit, and a further part would be read meanwhile. Raises
    ``LockedError`` when a transaction uses the log for longer than a call may wait.
    """
    if not has_parts():
        return None
    for number in closed(horizon):
        done = _drop(number, horizon)
        if done.reason is None:
            log.info("a part of the log was dropped", part=number, events=done.dropped)
            return done.dropped
        log.info("an old part of the log stays", part=number, reason=done.reason)
    return None


def _newest() -> Newest:
    found = _NEWEST.run(days=days()).one()
    assert found is not None
    return found


def _add() -> None:
    """Without a next part, the newest stays open: nothing waits for it."""
    try:
        with transaction.atomic():
            _wait_shortly()
            _ADD.run()
    except OperationalError as error:
        if sessions.state_of(error) != _LOCK_TIMEOUT:
            raise


def _drop(number: int, horizon: datetime) -> Dropped:
    try:
        with sessions.allow_more(DROP_SECONDS), transaction.atomic():
            _wait_shortly()
            done = _DROP.run(number=number, horizon=horizon).one()
    except OperationalError as error:
        if sessions.state_of(error) != _LOCK_TIMEOUT:
            raise
        raise LockedError(number) from error
    assert done is not None
    return done


def _each(lock: Statement[Locked], change: Statement[None], number: int, pause: Callable[[float], None]) -> None:
    """Lock and change audiences, a few in each transaction, until none is left that isn't locked."""
    while True:
        began = time.monotonic()
        with transaction.atomic():
            found = [row.id for row in lock.run(number=number, many=AUDIENCES).all()]
            if found:
                change.run(number=number, audiences=prepared_statements.numbers(found))
        if len(found) < AUDIENCES:
            return
        pause(time.monotonic() - began)


def _wait_shortly() -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_MILLISECONDS}ms'")
