"""Heartbeats: the workers, the time of each one's last heartbeat, and the time of its last work.

A worker slot writes them when a heartbeat arrives through the broker (``workers/heartbeat_monitor.py``).
"""

from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.db import connection
from django.db.models.functions import Now
from django.utils.timezone import now

from audiences.models import Worker

# A killed worker leaves its row; it is deleted after this time.
FORGOTTEN_AFTER = timedelta(hours=1)
# In heartbeats; see workers/heartbeat_monitor.py for the worker's own, shorter patience.
MISSED = 6

_NOTE = """
INSERT INTO audiences_worker AS worker (name, version, beat_at, worked_at)
VALUES (%s, %s, clock_timestamp(), clock_timestamp() - make_interval(secs => %s))
ON CONFLICT (name) DO UPDATE SET
    version = excluded.version, beat_at = excluded.beat_at,
    worked_at = coalesce(excluded.worked_at, worker.worked_at)
"""


@dataclass(frozen=True)
class Pulse:
    """The workers whose heartbeats arrive, and those whose heartbeats have stopped."""

    answering: list[Worker]
    silent: list[Worker]


def note(name: str, *, worked_seconds_ago: float | None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_NOTE, [name[:200], settings.VERSION, worked_seconds_ago])
    Worker.objects.filter(beat_at__lt=Now() - FORGOTTEN_AFTER).delete()


def forget(name: str) -> None:
    Worker.objects.filter(name=name[:200]).delete()


def pulse() -> Pulse:
    workers = list(Worker.objects.order_by("name"))
    since = now() - timedelta(seconds=MISSED * settings.HEARTBEAT_SECONDS)
    return Pulse(
        answering=[worker for worker in workers if worker.beat_at >= since],
        silent=[worker for worker in workers if worker.beat_at < since],
    )
