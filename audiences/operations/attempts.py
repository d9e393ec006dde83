"""Attempts of work whose unexpected failure must not delay other work of the same task.

A failure is logged and shown on *Now* like that of a whole task. The work is tried again at once, and then after waits
that double up to a minute, so that neither the log nor PostgreSQL is flooded. Each process has waits of its own, and
forgets them when it ends.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from audiences.insight import failures

log = structlog.get_logger(__name__)

Result = TypeVar("Result")

# Seconds from the second failure to the next attempt, and the most seconds between two. The most are less than
# ``failures.KEPT_SECONDS``, so *Now* shows the failure until the work succeeds.
FIRST_SECONDS, MOST_SECONDS = 1.0, 60.0

# By the name of the work: how often it has failed in a row, and the moment of the next attempt.
_failed: dict[str, tuple[int, float]] = {}


def attempt(
    task: str,
    name: str,
    work: Callable[[], Result],
    *,
    otherwise: Result,
    raises: Callable[[Exception], bool] = lambda error: False,
) -> Result:
    """The result of ``work``; ``otherwise`` when it fails, or still has to wait after a failure.

    ``task`` is the worker's task that does the work, and ``name`` distinguishes it from all other work. Errors for
    which ``raises`` is true are raised.
    """
    times, earliest = _failed.get(name, (0, 0.0))
    if time.monotonic() < earliest:
        return otherwise
    try:
        result = work()
    except Exception as error:
        if raises(error):
            raise
        wait = min(MOST_SECONDS, FIRST_SECONDS * 2.0 ** min(times - 1, 30)) if times else 0.0
        _failed[name] = times + 1, time.monotonic() + wait
        log.exception("a part of a task failed", part=name, times=times + 1)
        failures.note(f"workers.tasks.{task}", error)
        return otherwise
    _failed.pop(name, None)
    return result
