"""Heartbeats: the workers, the time of each one's last heartbeat, and the time of its last work.

A worker slot writes them when a heartbeat arrives through the broker (``workers/heartbeat_monitor.py``).
"""

from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.db.models.functions import Now
from django.utils.timezone import now

from audiences import sql
from audiences.models import Worker

# The time after which the row of a killed worker is deleted.
FORGOTTEN_AFTER = timedelta(hours=1)
# Missed heartbeats before a worker counts as silent. The worker itself exits earlier: workers/heartbeat_monitor.py.
MISSED = 6

_NOTE = sql.beside(__file__).command("note_heartbeat")


@dataclass(frozen=True)
class Pulse:
    """The workers whose heartbeats arrive, and those whose heartbeats have stopped."""

    answering: list[Worker]
    silent: list[Worker]


def note(name: str, *, worked_seconds_ago: float | None) -> None:
    _NOTE.run(name=name[:200], version=settings.VERSION, worked_seconds_ago=worked_seconds_ago)
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
