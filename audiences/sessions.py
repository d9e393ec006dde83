"""Database sessions: how long a statement may take, which errors end a session, and when work is tried once more.

``audiences/database`` is the Django backend that uses this for every statement of web, workers and commands.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import psycopg
from django.db import Error, InterfaceError, InternalError, OperationalError, connection, transaction

Result = TypeVar("Result")

READ_ONLY = "25006"
LOCK_TIMEOUT = "55P03"
# Besides these, class 08 (connection exceptions) and errors that libpq raises itself, which have no SQLSTATE.
_ENDS_SESSION = {READ_ONLY, "25P03", "57P01", "57P02", "57P03", "57P04", "57P05"}
# Errors that a new session may solve: a prepared statement or cursor of the old session is gone or predates a
# migration, or the database doesn't exist, as behind a pooler whose server was just replaced.
_OF_SESSION = {"0A000", "26000", "34000", "3D000"}
# Damaged data doesn't recover, so the page must name the audience that can't be delivered.
_DAMAGE = {"XX001", "XX002"}
# How long ``brief_lock_wait`` waits for a lock, in milliseconds. A call or a chunk of a resend holds one for less.
LOCK_MILLISECONDS = 200
# How long other threads wait for the one thread that asks whether PostgreSQL answers again.
ASKING_SECONDS = 0.25
# The pause between two tries of ``when_back``: nothing is delivered meanwhile.
BACK_SECONDS = 0.2

_bound_seconds = 0.0
_extra_seconds: ContextVar[float] = ContextVar("extra_seconds", default=0.0)


class NoAnswerError(psycopg.OperationalError):
    """PostgreSQL did not answer in time. The session is closed; whether the statement took effect is unknown."""


class LockedError(Exception):
    """Another transaction holds a lock for longer than ``LOCK_MILLISECONDS``. Nothing was stored."""


def bound(seconds: float) -> None:
    """Limit each database round trip of this process, in seconds; 0 for no limit. The client enforces the limit.

    A frozen server can't enforce a limit, and PgBouncer's transaction mode accepts no session settings.
    """
    global _bound_seconds
    _bound_seconds = seconds


def limit_seconds() -> float | None:
    return _bound_seconds + _extra_seconds.get() if _bound_seconds else None


@contextmanager
def allow_more(seconds: float) -> Iterator[None]:
    """Allow statements this many more seconds, for work whose size an operator chose."""
    before = _extra_seconds.set(seconds)
    try:
        yield
    finally:
        _extra_seconds.reset(before)


def ends_session(error: BaseException) -> bool:
    """Whether the session in which ``error`` happened is of no further use."""
    state = state_of(error)
    if state is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return state in _ENDS_SESSION or state.startswith("08")


def has_no_connection(error: BaseException) -> bool:
    """Whether the connection was refused or ended, as during a restart or a failover. A late answer doesn't count."""
    cause = error if isinstance(error, psycopg.Error) else error.__cause__
    return cause is not None and not isinstance(cause, NoAnswerError) and ends_session(cause)


def is_away(error: BaseException) -> bool:
    """Whether PostgreSQL can't be reached, or doesn't do now what it would do at another time."""
    return isinstance(error, OperationalError | InterfaceError) or (isinstance(error, Error) and ends_session(error))


def is_database_error(error: BaseException) -> bool:
    """Whether ``error`` comes from the database server or the session, not from the work itself.

    Such an error puts nothing on hold: the same work is tried again.
    """
    if is_away(error):
        return True
    state = state_of(error)
    return state in _OF_SESSION or (isinstance(error, InternalError) and state not in _DAMAGE)


def state_of(error: BaseException) -> str | None:
    """The SQLSTATE of psycopg's error, or of the one behind Django's."""
    cause = error if isinstance(error, psycopg.Error) else error.__cause__
    return cause.sqlstate if isinstance(cause, psycopg.Error) else None


@contextmanager
def brief_lock_wait() -> Iterator[None]:
    """Begin a transaction that waits only briefly for each lock. Raises ``LockedError``.

    For work in the background that locks an install or a lane and then an audience: claims wait for the first two. An
    audience stays locked as long as, for example, a frozen web process has a transaction open.
    """
    try:
        with transaction.atomic():
            limit_lock_wait(LOCK_MILLISECONDS)
            yield
    except OperationalError as error:
        if state_of(error) != LOCK_TIMEOUT:
            raise
        raise LockedError from error


def limit_lock_wait(milliseconds: int) -> None:
    """Limit the wait for each lock until the end of this transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %(limit)s, true)", {"limit": str(milliseconds)})


def store(work: Callable[[], Result]) -> Result:
    """Do ``work``, which writes; once more in a new session when the session was read-only.

    After any other error the work may have been stored, and its caller has to decide.
    """
    try:
        return work()
    except Error as error:
        if state_of(error) != READ_ONLY:
            raise
        return work()


def read(work: Callable[[], Result]) -> Result:
    """Do ``work``, which only reads; once more when its session is of no use, unless PostgreSQL gave no answer."""
    try:
        return work()
    except Error as error:
        if isinstance(error.__cause__, NoAnswerError | psycopg.errors.ConnectionTimeout):
            raise
        # Also for statements that were prepared before a migration.
        connection.close()
        return work()


def when_back(work: Callable[[], object], *, seconds: float) -> None:
    """Do ``work`` as soon as PostgreSQL takes it again, in a new session; give up after ``seconds``."""
    until = time.monotonic() + seconds
    while True:
        try:
            work()
            return
        except Error as error:
            if not is_database_error(error) or time.monotonic() > until:
                raise
        time.sleep(BACK_SECONDS)


class _Silence:
    """After PostgreSQL gave no answer, one thread of the process asks again; the others don't wait their full time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._silent = False

    def begins(self) -> None:
        self._silent = bool(_bound_seconds)

    def ends(self) -> None:
        self._silent = False

    @contextmanager
    def asking(self) -> Iterator[None]:
        if not self._silent:
            yield
            return
        if not self._lock.acquire(timeout=ASKING_SECONDS):
            raise NoAnswerError("PostgreSQL does not answer")
        try:
            yield
        finally:
            self._lock.release()


silence = _Silence()
