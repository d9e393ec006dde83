"""What Lytics sent: calls, the events of the log, and times that were ahead of the clock."""

from datetime import datetime

from django.contrib.postgres.indexes import BrinIndex
from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audiences.models.audiences import Audience
from audiences.models.deliveries import rare
from audiences.models.installs import Install
from audiences.models.parts import FIRST
from lytics import times

# Blocks of the log in one range of the BRIN index. With fewer blocks the index is larger and takes longer to read;
# with more, each range that may have the customer takes longer.
BLOCKS_PER_RANGE = 8


class Receipt(models.Model):
    """One webhook call as it arrived, with its counts. ``verdict`` is derived from the counts."""

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="receipts", db_index=False)
    received_at = models.DateTimeField(default=now)
    source = models.GenericIPAddressField(null=True)
    job = models.CharField("Lytics job", max_length=512, blank=True)
    bytes = models.PositiveIntegerField()
    messages = models.PositiveIntegerField()
    queued = models.PositiveIntegerField()
    parked = models.PositiveIntegerField()
    skipped = models.PositiveIntegerField()
    parked_reasons = models.JSONField(default=dict)

    class Meta:
        verbose_name = "call"
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["install", "-id"], name="receipts_of_an_install"),
            BrinIndex(fields=["received_at"], name="receipts_by_time", pages_per_range=16, autosummarize=True),
            *rare("parked_receipts", Q(parked__gt=0), of="install"),
            *rare("empty_receipts", Q(queued=0), of="install"),
        ]

    def __str__(self) -> str:
        return f"call {self.pk}"

    @property
    def verdict(self) -> str:
        if self.parked:
            return "partly parked" if self.queued else "parked"
        return "queued" if self.queued else "empty"


class Event(models.Model):
    """One fact: this identifier entered or left this audience at this time. Never edited.

    Created by ``ingest`` and ``plain_calls`` alone.

    PostgreSQL doesn't check the two foreign keys: the insert joins the audience rows that it has just locked, and the
    look-ups for the 300 events of a call would double its cost.
    """

    class Kind(models.IntegerChoices):
        EXIT = 0, "exit"
        ENTER = 1, "enter"
        CHANGE = 2, "change"

    # The key of each part. That no two parts have the same number follows from the audience's lock (docs/lanes.md).
    pk = models.CompositePrimaryKey("audience_id", "sequence")
    audience = models.ForeignKey(Audience, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    sequence = models.BigIntegerField()
    identifier = models.TextField()
    kind = models.SmallIntegerField(choices=Kind)
    # Nanoseconds since the epoch on Lytics' clock. In microseconds, different times could become equal.
    occurred_ns = models.BigIntegerField()
    received_at = models.DateTimeField()
    # Send even when the ledger already agrees: set by release, replay and resync.
    forced = models.BooleanField(default=False)
    receipt = models.ForeignKey(Receipt, null=True, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    # The partition of the table: the part of its audience when it was stored.
    part = models.IntegerField(default=FIRST, db_default=FIRST)

    class Meta:
        constraints = [
            models.CheckConstraint(name="event_sequence_starts_at_one", condition=Q(sequence__gte=1)),
            models.CheckConstraint(name="event_kind_is_known", condition=Q(kind__in=[0, 1, 2])),
        ]
        # For finding one customer (docs/decisions/0019-find-customer.md). Only ``search_index.summarise`` summarises
        # ranges. An insert into a summarised range would update the filter of the range, a page for each row.
        indexes = [
            BrinIndex(
                name="events_of_a_customer",
                fields=["identifier"],
                opclasses=["text_bloom_ops(n_distinct_per_range=550, false_positive_rate=0.001)"],
                pages_per_range=BLOCKS_PER_RANGE,
                autosummarize=False,
            )
        ]

    def __str__(self) -> str:
        return f"event {self.sequence} of audience {self.audience_id}"

    @property
    def occurred_at(self) -> datetime:
        return times.moment(self.occurred_ns)


class FutureTime(models.Model):
    """The transition time that Lytics sent for an event, when it was too far in the future to be believed.

    The event has the time that counts instead. Written by ``audiences/receiving/ingest.py`` with the event.
    """

    pk = models.CompositePrimaryKey("audience_id", "sequence")
    audience = models.ForeignKey(Audience, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    sequence = models.BigIntegerField()
    claimed_ns = models.BigIntegerField()
    received_at = models.DateTimeField()

    class Meta:
        default_permissions = ()
        indexes = [models.Index(fields=["received_at"], name="future_times_by_time")]

    def __str__(self) -> str:
        return f"event {self.sequence} of {self.audience_id} claims {times.text(self.claimed_ns)}"
