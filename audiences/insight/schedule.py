"""When a task of the schedule last ran: the sign that beat sends tasks and a worker takes them.

Kept in Redis, because it is worth nothing after a restart. Redis measures the age, so no clock has to agree with it.
"""

import redis
import structlog

from audiences.redis_client import client

log = structlog.get_logger(__name__)

KEY = "lytics-sync:schedule"
KEPT_SECONDS = 86_400


def note() -> None:
    """A task of the schedule has run."""
    try:
        client().set(KEY, 1, ex=KEPT_SECONDS)
    except redis.RedisError as error:
        log.info("the run of the schedule could not be noted", error=str(error))


def age_seconds() -> float | None:
    """Seconds since a task of the schedule ran; None when none did for a day. Raises ``redis.RedisError``."""
    left = client().pttl(KEY)
    return None if left < 0 else max(0.0, KEPT_SECONDS - left / 1000)
