"""The size of the database: above ``DATABASE_HIGH_WATER_BYTES`` calls are answered 503, before the disk is full.

On a full disk PostgreSQL couldn't even record deliveries; with the limit, waiting events are still delivered.
"""

import time

from django.conf import settings
from django.db import connection

# How long a web process may use a number it has read, in seconds: reading it looks at every file of the database.
FRESH_SECONDS = 10.0

_read: tuple[float, int] | None = None


def used() -> int:
    """Bytes, by a number not older than ten seconds."""
    global _read
    if _read is None or time.monotonic() - _read[0] >= FRESH_SECONDS:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_database_size(current_database())")
            (size,) = cursor.fetchone()
        _read = time.monotonic(), int(size)
    return _read[1]


def is_too_full() -> bool:
    mark: int = settings.DATABASE_HIGH_WATER_BYTES
    return mark > 0 and used() > mark
