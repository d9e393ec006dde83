"""Requests to ODP, the runs of events that each carried, and the ranges that operators skipped."""

from django.contrib.postgres.indexes import BrinIndex
from django.db import models
from django.db.models import F, Q
from django.utils.timezone import now

from audiences.masked_answers import SaidField
from audiences.models.audiences import Audience
from audiences.models.installs import Install
from odp.outcomes import Outcome

# The stored value and the words that people read: ``refused`` is read as "rejected".
OUTCOMES = [(outcome.value, outcome.name.lower().replace("_", " ")) for outcome in Outcome]


# How a Run can end beside what ODP answers: a person decided that its events are not to be sent.
SKIPPED = "skipped"


# Closed and not delivered. Failed deliveries are rare, so they have partial indexes.
FAILED = ~Q(outcome__in=["", Outcome.DELIVERED.value])


# Thresholds of the filter for slow deliveries, in milliseconds. Each has partial indexes, as slow ones are rare.
SLOW_MS = (250, 1_000, 5_000)


def rare(name: str, condition: Q, *, of: str) -> list[models.Index]:
    """Partial indexes for rare rows, newest first: over all rows, and by ``of``. Other rows aren't indexed."""
    return [
        models.Index(fields=["-id"], condition=condition, name=name),
        models.Index(fields=[of, "-id"], condition=condition, name=f"{name}_of_{of}"),
    ]


class Delivery(models.Model):
    """One request to ODP and its response. It is stored as open before the request starts."""

    # Set by ``masked_answers.mask_reasons`` for a whole list at once.
    masked_reason: str | None = None

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="deliveries", db_index=False)
    endpoint = models.CharField(max_length=60)
    opened_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=12, choices=OUTCOMES, blank=True)
    status = models.PositiveSmallIntegerField(null=True)
    items = models.PositiveIntegerField()
    bytes = models.PositiveIntegerField()
    latency_ms = models.PositiveIntegerField(null=True)
    reason = SaidField(blank=True)
    answer = SaidField(blank=True)
    # The body, packed (audiences/request_bodies.py). None when it was opened without one.
    request = models.BinaryField(null=True)
    worker = models.CharField(max_length=100)
    version = models.CharField(max_length=20)
    # When ``operations/reconcile.py`` re-sent the customers that a late application of this request could overwrite.
    # The column keeps its former name, as those of an Install's backoff do.
    reconciled_at = models.DateTimeField(null=True, db_column="affirmed_at")

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "deliveries"
        indexes = [
            models.Index(fields=["install", "-id"], name="deliveries_of_an_install"),
            models.Index(fields=["install"], condition=Q(closed_at=None), name="open_deliveries"),
            models.Index(
                fields=["closed_at"],
                condition=Q(reconciled_at=None, outcome__in=[Outcome.UNKNOWN.value, Outcome.RETRY_LATER.value]),
                name="deliveries_to_affirm",
            ),
            *rare("failed_deliveries", FAILED, of="install"),
            models.Index(fields=["outcome", "-id"], condition=FAILED, name="failed_deliveries_by_outcome"),
            *(index for ms in SLOW_MS for index in rare(f"slow_{ms}", Q(latency_ms__gt=ms), of="install")),
        ]
        constraints = [
            models.CheckConstraint(
                name="closed_delivery_has_outcome",
                condition=Q(closed_at=None, outcome="") | (Q(closed_at__isnull=False) & ~Q(outcome="")),
            )
        ]

    def __str__(self) -> str:
        return f"delivery {self.pk}"


class Skip(models.Model):
    """A person's decision not to send what an install had waiting: who and why. Written by ``operations/skips.py``."""

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="skips")
    by = models.CharField(max_length=150)
    reason = models.TextField()
    at = models.DateTimeField(default=now)

    class Meta:
        default_permissions = ()
        constraints = [models.CheckConstraint(name="skip_says_who_and_why", condition=~Q(by="") & ~Q(reason=""))]

    def __str__(self) -> str:
        return f"skipped by {self.by}: {self.reason}"


class Run(models.Model):
    """Consecutive events of one lane that went into one delivery; without one, when all of them were folded or skipped.

    The two foreign keys are not checked row by row: the lane is leased, and the Delivery comes with the same statement.
    Each check would lock an audience that calls number events of.
    """

    audience = models.ForeignKey(
        Audience, on_delete=models.PROTECT, related_name="runs", db_index=False, db_constraint=False
    )
    delivery = models.ForeignKey(
        Delivery, on_delete=models.PROTECT, null=True, related_name="runs", db_constraint=False
    )
    first_sequence = models.BigIntegerField()
    last_sequence = models.BigIntegerField()
    sent = models.PositiveIntegerField()
    folded = models.PositiveIntegerField()
    opened_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=12, choices=[*OUTCOMES, (SKIPPED, SKIPPED)], blank=True)
    skip = models.ForeignKey(
        Skip, on_delete=models.PROTECT, null=True, related_name="runs", db_index=False, db_constraint=False
    )

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["audience", "-id"], name="runs_of_an_audience"),
            models.Index(fields=["audience", "first_sequence", "id"], name="runs_by_first_event"),
            BrinIndex(fields=["closed_at"], name="runs_by_time", pages_per_range=16, autosummarize=True),
            BrinIndex(fields=["opened_at"], pages_per_range=32, autosummarize=True, name="runs_by_hour"),
            *rare("failed_runs", FAILED, of="audience"),
            models.Index(fields=["outcome", "-id"], condition=FAILED, name="failed_runs_by_outcome"),
        ]
        constraints = [
            models.UniqueConstraint(name="one_open_run_per_lane", fields=["audience"], condition=Q(closed_at=None)),
            models.CheckConstraint(
                name="skipped_run_says_who_and_why",
                condition=Q(outcome=SKIPPED, skip__isnull=False) | (~Q(outcome=SKIPPED) & Q(skip=None)),
            ),
            models.CheckConstraint(name="run_is_not_reversed", condition=Q(first_sequence__lte=F("last_sequence"))),
            models.CheckConstraint(
                name="closed_run_has_outcome",
                condition=Q(closed_at=None, outcome="") | (Q(closed_at__isnull=False) & ~Q(outcome="")),
            ),
        ]

    def __str__(self) -> str:
        return f"run {self.first_sequence}–{self.last_sequence} of {self.audience}"
