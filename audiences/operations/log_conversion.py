"""Convert a log from before the parts: the table becomes the first part, without copying or rewriting a row.

Each step is one transaction, and the catalog says which are done. So a process that dies in one or between two can be
started again. Run by the owner of the tables. See docs/retention.md.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from django.db import OperationalError, connection, transaction

from audiences import sessions, sql

# How long a step waits for its lock. Calls that come meanwhile wait behind it.
LOCK_MILLISECONDS = 100
# The pause before the next try, in seconds, and the number of tries.
RETRY_SECONDS, TRIES = 1.0, 300
# Reading the log may take this many seconds.
READ_SECONDS = 6 * 3600

_LOCK_TIMEOUT = "55P03"


class Progress(NamedTuple):
    has_parts: bool
    events: int | None
    bytes: int
    is_validated: bool | None


class Done(NamedTuple):
    is_done: bool


class LockedError(Exception):
    """A transaction has used the log for longer than all tries."""


_SQL = sql.beside(__file__)
_PROGRESS = _SQL.query("progress", Progress._make)
_ADD_CHECK = _SQL.command("add_check")
_VALIDATE = _SQL.command("validate")
_MAKE_FIRST_PART = _SQL.query("make_first_part", Done._make)
_ANALYZE = _SQL.command("analyze")


def progress() -> Progress:
    found = _PROGRESS.run().one()
    assert found is not None
    return found


def steps() -> list[tuple[str, Callable[[], object]]]:
    """The steps that are still to be done, with a name each."""
    now = progress()
    if now.has_parts:
        return []
    return [
        *([("Add the constraint", _ADD_CHECK.run)] if now.is_validated is None else []),
        *([("Validate the constraint", _VALIDATE.run)] if not now.is_validated else []),
        ("Make the log the first part", _MAKE_FIRST_PART.run),
        ("Analyze the log", _ANALYZE.run),
    ]


def convert(*, pause: Callable[[float], None] = time.sleep) -> Iterator[tuple[str, float]]:
    """Do the steps one by one. Gives the name of each and its seconds. Raises ``LockedError``."""
    for name, step in steps():
        yield name, _when_free(step, pause)


def _when_free(step: Callable[[], object], pause: Callable[[float], None]) -> float:
    """Do a step as soon as no transaction keeps it from its lock. Returns its seconds without the waits."""
    for _ in range(TRIES):
        began = time.monotonic()
        try:
            with sessions.allow_more(READ_SECONDS), transaction.atomic():
                with connection.cursor() as cursor:
                    cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_MILLISECONDS}ms'")
                step()
            return time.monotonic() - began
        except OperationalError as error:
            if sessions.state_of(error) != _LOCK_TIMEOUT:
                raise
            pause(RETRY_SECONDS)
    raise LockedError(f"the log was in use for {TRIES} tries")
