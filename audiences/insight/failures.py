"""Recently failed tasks, and whether Redis accepts writes, for the front page. Redis keeps them until the next run."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import redis
import structlog
from django.conf import settings
from django.utils.timezone import now

from audiences import sessions, tallies
from audiences.redis_client import client

log = structlog.get_logger(__name__)

# Seconds after which a failure is no longer shown, unless the task fails again: counted from the next run, where the
# task runs less often than that. A failure that ends before would be reported as resolved.
KEPT_SECONDS = 300
# Seconds in which a task may fail because PostgreSQL has no connection for it, before that is shown: a restart or a
# failover ends before.
BRIEF_SECONDS = 60
# The settings with the minutes between two runs for one install, where another task starts them.
_MINUTES = {"look": "LOOK_MINUTES", "try_out": "PROBE_MINUTES"}
WORDS = 200
# The names of all tasks of the workers, which this package can't import; a test compares them.
TASKS = tuple(
    f"workers.tasks.{name}"
    for name in (
        "drain",
        "make",
        "resend",
        "sweep",
        "reconcile",
        "heartbeat",
        "try_out",
        "probe",
        "look_at_twins",
        "look_at_jobs",
        "look",
        "audit",
        "ask_audits",
        "change",
        "summarise",
        "roll_up",
        "clear_sessions",
        "look_at_certificate",
        "check_troubles",
        "send_alerts",
        "prune",
    )
)
# PostgreSQL and Python quote values, and values may be identifiers of customers.
_QUOTED = re.compile(r"\"[^\"]*\"(?=\s*$)|'[^']*'|(?<=: )\"[^\"]*\"")
# The first word of Redis' error for a rejected write, and what it means.
_REFUSALS = {
    redis.exceptions.OutOfMemoryError: "Redis refuses writes: its memory is full",
    redis.exceptions.ReadOnlyError: "Redis refuses writes: it is a read-only replica",
    redis.exceptions.AuthenticationError: "Redis refuses the password",
    redis.exceptions.NoPermissionError: "Redis refuses this user the right to write",
    redis.exceptions.BusyLoadingError: "Redis is still loading its data",
    redis.exceptions.TimeoutError: "Redis does not answer",
    redis.exceptions.ConnectionError: "Redis does not answer",
}


@dataclass(frozen=True)
class Failure:
    task: str
    words: str
    times: int
    since: datetime


def note(task: str, error: BaseException) -> None:
    """A task has failed. Never raises: the failure itself is in the log."""
    tallies.TASK_FAILURES.add(task.removeprefix("workers.tasks."))
    at = now().timestamp()
    try:
        with client().pipeline(transaction=False) as pipe:
            pipe.hset(_key(task), mapping={"words": first_line(error), "at": at})
            if not sessions.has_no_connection(error):
                pipe.hset(_key(task), "is_shown", 1)
            pipe.hsetnx(_key(task), "since", at)
            pipe.hincrby(_key(task), "times", 1)
            pipe.expire(_key(task), kept_seconds(task))
            pipe.execute()
    except redis.RedisError as problem:
        log.info("a failed task could not be counted", task=task, error=str(problem))


def kept_seconds(task: str) -> int:
    name = task.removeprefix("workers.tasks.")
    beat: dict[str, Any] = settings.CELERY_BEAT_SCHEDULE.get(name, {})
    minutes: float = getattr(settings, _MINUTES[name]) if name in _MINUTES else 0
    seconds: float = beat.get("schedule", 60 * minutes)
    return KEPT_SECONDS + round(seconds)


def first_line(error: BaseException) -> str:
    """The exception's class and first line, without the values that it quotes."""
    line = next(iter(str(error).splitlines()), "")
    return _QUOTED.sub("…", f"{type(error).__name__}: {line}" if line else type(error).__name__)[:WORDS]


def recent() -> list[Failure]:
    """The tasks that failed within ``kept_seconds``, but not those to which PostgreSQL gave no connection for less than
    BRIEF_SECONDS; none when Redis is unavailable.
    """
    names = sorted(TASKS)
    try:
        with client().pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(_key(name))
            found = pipe.execute()
    except redis.RedisError:
        return []
    return [
        Failure(
            name.removeprefix("workers.tasks."),
            row[b"words"].decode(),
            int(row[b"times"]),
            datetime.fromtimestamp(float(row[b"since"]), UTC),
        )
        for name, row in zip(names, found, strict=True)
        if {b"words", b"times", b"since", b"at"} <= row.keys() and not _is_brief(row)
    ]


def _is_brief(row: dict[bytes, bytes]) -> bool:
    return b"is_shown" not in row and float(row[b"at"]) - float(row[b"since"]) < BRIEF_SECONDS


def broker_problem() -> str:
    """Why Redis rejects writes; empty when it accepts them."""
    try:
        client().set("lytics-sync:writes", 1, ex=60)
    except redis.RedisError as error:
        return next((words for kind, words in _REFUSALS.items() if isinstance(error, kind)), f"Redis says: {error}")
    return ""


def _key(task: str) -> str:
    return f"lytics-sync:failed:{task}"
