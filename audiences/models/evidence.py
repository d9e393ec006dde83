"""Measurements: minutes, workers and test customers."""

from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audiences.models.installs import Install


class Minute(models.Model):
    """What one install received, parked and delivered in one minute, added up. Written by ``insight/rollup.py``.

    Derived: deleting rows loses a picture and nothing else. A minute in which nothing happened has no row.
    """

    install = models.ForeignKey(Install, on_delete=models.CASCADE, db_index=False)
    minute = models.DateTimeField()
    received = models.BigIntegerField()
    parked = models.BigIntegerField()
    delivered = models.BigIntegerField()
    # Delivered because something was sent again; not counted as delivered a second time.
    again = models.BigIntegerField(default=0, db_default=0)
    # Changes that ODP accepted for ``delivered`` and ``again``; the other events were folded. None in rows of an older
    # version.
    sent = models.BigIntegerField(null=True)
    # Delivered events by the minute of their arrival (seconds since the epoch). None in rows of an older version.
    arrived = models.JSONField(null=True)
    # From the call that brought an event to ODP's answer. None when nothing was sent.
    delay_p50_ms = models.BigIntegerField(null=True)
    delay_p99_ms = models.BigIntegerField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(name="one_row_per_minute", fields=["minute", "install"])]
        # The page of one install reads up to a week of its minutes.
        indexes = [models.Index(name="minutes_of_an_install", fields=["install", "minute"])]

    def __str__(self) -> str:
        return f"{self.minute:%Y-%m-%d %H:%M} of {self.install}"


class Rhythm(models.Model):
    """How long the calls of an install usually pause. Written by ``insight/rhythm.py``.

    ``pauses`` has by day (UTC) the longest pause in seconds that ended on it. ``receipt`` is the newest call read.
    """

    install = models.OneToOneField(Install, on_delete=models.CASCADE, related_name="rhythm")
    # When learning began: at the first call, or later. The time in which the install was off is added to it.
    since_at = models.DateTimeField(null=True)
    # The newest call, or the newest pass while the install was off.
    called_at = models.DateTimeField(null=True)
    receipt = models.BigIntegerField(default=0)
    pauses = models.JSONField(default=dict)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"rhythm of {self.install}"


class Worker(models.Model):
    """A worker process that has proved that work reaches it. Written by ``audiences/insight/heartbeats.py``."""

    name = models.CharField(max_length=200, unique=True)
    version = models.CharField(max_length=20)
    beat_at = models.DateTimeField()
    worked_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.name


class Trial(models.Model):
    """One trial: a test customer enters the test audience over the whole path and leaves it again.

    Written by ``audiences/insight/trials.py``. ``hops`` are the steps done, each with its milliseconds.
    """

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="trials")
    identifier = models.CharField(max_length=64)
    started_at = models.DateTimeField(default=now)
    started_by = models.CharField(max_length=150)
    # Taken by a worker; and the last time that anything was heard of it.
    begun_at = models.DateTimeField(null=True)
    moved_at = models.DateTimeField(default=now)
    closed_at = models.DateTimeField(null=True)
    hops = models.JSONField(default=list)
    # Started by the schedule and not by a person.
    is_probe = models.BooleanField(default=False, db_default=False)

    class Meta:
        default_permissions = ()
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(name="one_trial_at_a_time", fields=["install"], condition=Q(closed_at=None))
        ]

    def __str__(self) -> str:
        return f"test customer {self.identifier}"
