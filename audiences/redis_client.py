"""The client for Redis of everything but Celery: hints, counts of rejected calls and of failed tasks."""

from functools import cache

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry


@cache
def client(*, timeout_seconds: float = 1) -> redis.Redis:
    """One client per process and timeout. With ``rediss://`` redis-py verifies certificate and host name by default.

    It doesn't own its pool. ``Redis.from_url`` does, and its ``__del__`` closes the pool's connections, also those
    that a pipeline is reading from: of two threads that make the first client at once, ``cache`` keeps one, and the
    other's pipeline would lose its connection.

    Without retries: their pauses would add up to seconds for the caller, and nothing that is stored there is worth
    that. The default timeout is short because people wait for the pages that ask.
    """
    pool = redis.ConnectionPool.from_url(
        settings.REDIS_URL,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
    )
    return redis.Redis(connection_pool=pool)
