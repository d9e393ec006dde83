"""The time at which a task of the schedule last ran, which shows that beat sends tasks and a worker runs them.

It is kept in Redis, because it is useless after a restart. Redis measures the age, so clocks need not agree.
"""

import redis
import structlog

from audiences.redis_client import client

log = structlog.get_logger(__name__)

KEY = "lytics-sync:schedule"
KEPT_SECONDS = 86_400
# A task of the schedule runs every ten seconds. After this many seconds without one, beat doesn't send them.
LATE_SECONDS = 60


def note() -> None:
    """Store that a task of the schedule runs now."""
    try:
        client().set(KEY, 1, ex=KEPT_SECONDS)
    except redis.RedisError as error:
        log.info("the run of the schedule could not be noted", error=str(error))


def age_seconds() -> float | None:
    """Seconds since a task of the schedule ran; None when none did for a day. Raises ``redis.RedisError``."""
    left = client().pttl(KEY)
    return None if left < 0 else max(0.0, KEPT_SECONDS - left / 1000)


def silent_seconds() -> float | None:
    """``age_seconds`` when the schedule is late; None when it isn't, or when that is unknown."""
    try:
        age = age_seconds()
    except redis.RedisError as error:
        log.info("the run of the schedule could not be read", error=str(error))
        return None
    return age if age is not None and age > LATE_SECONDS else None
