"""The client for Redis of everything but Celery: hints, counts of rejected calls and of failed tasks."""

from functools import cache

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry


@cache
def client(*, timeout_seconds: float = 1) -> redis.Redis:
    """One client per process and timeout. With ``rediss://`` redis-py verifies certificate and host name by default.

    Without retries: their pauses would add up to seconds for the caller, and nothing that is stored there is worth
    that. The default timeout is short because people wait for the pages that ask.
    """
    return redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
    )
