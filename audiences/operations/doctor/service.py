"""Checks of this service itself: database, broker, workers, schedule, clocks, disks, backups."""

import glob
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import redis
from django.conf import settings
from django.db import connection
from django.db.models import Max
from django.utils.timezone import now

from audiences import readiness
from audiences.insight import heartbeats, schedule, stalled_work
from audiences.insight.future_times import stored as stored_future_times
from audiences.models import FutureTime
from audiences.operations.doctor.case import Case
from audiences.operations.doctor.registry import Found, bad, check, good, unknown, warning
from audiences.receiving import disk_usage, reasons_to_wait
from audiences.redis_client import client

OURS = "This service"
START = "Start the worker and beat processes, or look at their logs."
# The differences between clocks, in seconds, from which the check is a warning, and bad.
CLOCK_WARNING_SECONDS, CLOCK_BAD_SECONDS = 2.0, 30.0
# The free shares of a disk below which the check is a warning, and bad.
DISK_WARNING, DISK_BAD = 0.15, 0.05
# The share of DATABASE_HIGH_WATER_BYTES from which the check is a warning.
DATABASE_WARNING = 0.8
# The ages of the newest backup from which the check is a warning (a daily backup may take two hours), and bad.
BACKUP_WARNING, BACKUP_BAD = timedelta(hours=26), timedelta(days=3)


@check(OURS, "Database")
def database(case: Case) -> Found:
    """Whether PostgreSQL takes writes, has the schema of this version, and all stored secrets can be decrypted."""
    problem = readiness.problem()
    if problem:
        cure = "Run the migrations, or put the missing key back into FIELD_ENCRYPTION_KEYS. Calls may get a 503 now."
        return bad(f"This process could not do its work: {problem}.", cure)
    return good("PostgreSQL takes writes, the schema is that of this version, and all stored secrets are readable.")


@check(OURS, "Install")
def install(case: Case) -> Found:
    """Whether the install is switched on, and its backlog and the database are below the limits for calls."""
    if not case.install.enabled:
        return bad(
            "The install is switched off, so calls are answered 503.", "Switch Enabled on, on the install's page."
        )
    if reason := reasons_to_wait.of(case.install):
        return bad(
            f"Calls are answered 503: {reason}",
            "See on Now what to do. Calls are accepted again below the limit.",
        )
    return good("The install is switched on and accepts calls.")


@check(OURS, "Broker")
def broker(case: Case) -> Found:
    """Whether Redis responds and takes writes. It carries hints only, so nothing is lost without it."""
    cure = "Start Redis, or correct REDIS_URL. Until then, deliveries wait and nothing is lost."
    try:
        client().set("lytics-sync:doctor", 1, ex=60)
    except redis.RedisError as error:
        return bad(f"Redis does not take a write: {error}.", cure)
    return good("Redis responds and takes writes.")


@check(OURS, "Workers")
def workers(case: Case) -> Found:
    """Whether workers receive messages, are of this version, and deliver what is ready."""
    pulse = heartbeats.pulse()
    if not pulse.answering:
        last = max((one.beat_at for one in pulse.silent), default=None)
        return bad("No heartbeat of a worker arrives.", START, at=last)
    if stuck := stalled_work.stuck():
        return bad(f"Workers run, but {stuck.words}. {stuck.why}".rstrip(), START, at=stuck.since)
    last = max(one.beat_at for one in pulse.answering)
    running = f"{len(pulse.answering)} answering"
    if pulse.silent:
        cure = "If you stopped them, do nothing: a stopped worker is forgotten after an hour. Else look at their logs."
        return warning(f"{running}, {len(pulse.silent)} silent: {pulse.silent[0].name}.", cure, at=last)
    others = sorted({one.version for one in pulse.answering} - {settings.VERSION})
    if others:
        cure = "Finish the upgrade: all processes should be of one version."
        return warning(f"{running}; one is of version {others[0]}, this process of {settings.VERSION}.", cure, at=last)
    return good(f"{running}, and all ready work progresses.", at=last)


@check(OURS, "Schedule (beat)")
def beat(case: Case) -> Found:
    """Whether beat sends the tasks of the schedule: the sweep, probes, looks at audiences and repairs depend on it."""
    try:
        age = schedule.age_seconds()
    except redis.RedisError as error:
        return unknown(f"Redis does not say: {error}.", "Look at the line about the broker.")
    if age is None:
        return bad("No task of the schedule has run for a day.", START)
    at = now() - timedelta(seconds=age)
    if age > schedule.LATE_SECONDS:
        return bad(f"The last task of the schedule ran {age:.0f} s ago; one is due every 10 s.", START, at=at)
    return good("The schedule runs.", at=at)


@check(OURS, "Clock")
def clock(case: Case) -> Found:
    """How far the clocks of this process and of PostgreSQL are apart."""
    before = datetime.now(UTC)
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        (of_database,) = cursor.fetchone()
    after = datetime.now(UTC)
    apart = abs((of_database - (before + (after - before) / 2)).total_seconds())
    words = f"The clocks of this process and of PostgreSQL are {apart:.3f} s apart."
    cure = "Have all machines set their clocks by NTP."
    if apart >= CLOCK_BAD_SECONDS:
        return bad(words, cure)
    return warning(words, cure) if apart >= CLOCK_WARNING_SECONDS else good(words)


@check(OURS, "Times of transitions")
def lytics_times(case: Case) -> Found:
    """Whether transition times of Lytics were ahead of this server's clock in the last day, or stored before."""
    cure = (
        "Compare the clock of this server with NTP. If it is right, tell Lytics' support about the times; the customers"
        " concerned get their message's own time instead."
    )
    if stored := stored_future_times():
        words = f"{stored.memberships:,} memberships have a time ahead of the clock, up to {stored.furthest:%Y-%m-%d}."
        return warning(words, cure, at=stored.since)
    since = now() - timedelta(days=1)
    newest = FutureTime.objects.filter(received_at__gte=since).aggregate(at=Max("received_at"))["at"]
    if newest:
        return warning("Times ahead of the clock came in the last day and were not believed.", cure, at=newest)
    return good("No transition time was ahead of the clock in the last day.")


@check(OURS, "Disk of this process")
def disk(case: Case) -> Found:
    """How full the disk is that holds the data folder of this process."""
    folder = next(path for path in (Path(settings.DATA_DIR), *Path(settings.DATA_DIR).parents) if path.exists())
    usage = shutil.disk_usage(folder)
    free = usage.free / usage.total
    words = f"{free:.0%} of the disk of {folder} is free ({_size(usage.free)})."
    cure = "Make room, or give the machine a larger disk."
    if free < DISK_BAD:
        return bad(words, cure)
    return warning(words, cure) if free < DISK_WARNING else good(words)


@check(OURS, "Size of the database")
def database_size(case: Case) -> Found:
    """How large the database is, compared with ``DATABASE_HIGH_WATER_BYTES``, above which calls get a 503."""
    size, limit = disk_usage.used(), settings.DATABASE_HIGH_WATER_BYTES
    if not limit:
        cure = "Set DATABASE_HIGH_WATER_BYTES below the size of PostgreSQL's disk, so that the disk never fills up."
        return unknown(f"The database has {_size(size)}. How large its disk is can't be seen from here.", cure)
    words = f"The database has {_size(size)} of the {_size(limit)} that DATABASE_HIGH_WATER_BYTES allows."
    cure = "Enlarge PostgreSQL's disk and the setting."
    if size > limit:
        return bad(f"{words} Calls are answered 503.", cure)
    return warning(words, cure) if size > DATABASE_WARNING * limit else good(words)


@check(OURS, "Backup")
def backup(case: Case) -> Found:
    """The age of the newest file that the setting ``BACKUP_FILE`` names; unknown when it isn't set."""
    pattern = settings.BACKUP_FILE
    if not pattern:
        cure = "Set BACKUP_FILE to the path of your backups, which may contain * and ?, as this process sees it."
        return unknown("No setting says where backups are.", cure)
    cure = "Look at the job that makes backups. docs/operating.md says what a backup needs."
    written = []
    for name in glob.iglob(pattern, recursive=True):
        file = Path(name)
        if file.is_file() and file.stat().st_size:
            written.append(datetime.fromtimestamp(file.stat().st_mtime, UTC))
    if not written:
        return bad(f"No file with content matches {pattern}.", cure)
    at = max(written)
    age = now() - at
    words = f"The newest of {len(written):,} is from {at:%Y-%m-%d %H:%M} UTC."
    if age > BACKUP_BAD:
        return bad(words, cure, at=at)
    return warning(words, cure, at=at) if age > BACKUP_WARNING else good(words, at=at)


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
