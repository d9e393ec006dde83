"""``REDIS_URL``, checked before a client reads it."""

from urllib.parse import urlsplit

import redis
from django.core.exceptions import ImproperlyConfigured


def read(url: str) -> str:
    """The URL, if redis-py and Celery can read it. The refusal quotes nothing, because any part may be a password."""
    try:
        # Celery doesn't know the other schemes of redis-py, and reads a database that is no number as an error.
        if not url.startswith(("redis://", "rediss://")) or not (urlsplit(url).path.strip("/") or "0").isdecimal():
            raise ValueError
        redis.ConnectionPool.from_url(url).make_connection()
    except (ValueError, TypeError, redis.RedisError):
        raise ImproperlyConfigured(
            "REDIS_URL must be like redis://:password@host:6379/0, or begin with rediss:// for TLS; in a password,"
            " #, / and ? are written as %23, %2F and %3F."
        ) from None
    return url
