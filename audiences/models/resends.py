"""Resends: what an operator asked for, and the ranges of the log that resulted."""

from django.db import models
from django.db.models import F, Q
from django.utils.timezone import now

from audiences.models.audiences import Audience
from audiences.models.installs import Install


class Again(models.Model):
    """A range of the log that this service appended itself, and its cause. Written by ``receiving/resend_causes.py``.

    The foreign keys have no constraint in PostgreSQL: the audience is locked, and the other rows are read in the same
    transaction.
    """

    class Cause(models.TextChoices):
        REPLAY = "replay", "replay"
        RESYNC = "resync", "resync"
        RELEASE = "release", "release"
        LEAVE = "leave", "take-over"
        REPAIR = "repair", "repair"
        RETIRE = "retire", "retirement"
        RESTORE = "restore", "taking back a retired audience"
        UNANSWERED = "unanswered", "a delivery without a final answer"

    audience = models.ForeignKey(Audience, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    first_sequence = models.BigIntegerField()
    last_sequence = models.BigIntegerField()
    cause = models.CharField(max_length=10, choices=Cause)
    resend_id = models.BigIntegerField(null=True)
    delivery_id = models.BigIntegerField(null=True)

    class Meta:
        default_permissions = ()
        indexes = [
            models.Index(fields=["audience", "last_sequence"], name="agains_of_an_audience"),
            models.Index(fields=["cause", "-id"], name="agains_by_cause"),
        ]
        constraints = [
            models.CheckConstraint(
                name="again_is_not_reversed", condition=Q(first_sequence__gte=1, first_sequence__lte=F("last_sequence"))
            )
        ]

    def __str__(self) -> str:
        return f"{self.first_sequence}–{self.last_sequence} of audience {self.audience_id}: {self.cause}"


class Resend(models.Model):
    """Something that a person asked to be sent again: how far it is, and who wanted it why.

    Written by ``operations/resends.py`` alone. It is stored before its first chunk and moves with each, so no process
    has to live until its end.
    """

    class Kind(models.TextChoices):
        REPLAY = "replay", "replay"
        RESYNC = "resync", "resync"
        RELEASE = "release", "release"
        LEAVE = "leave", "take-over"
        REPAIR = "repair", "repair"

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="resends")
    audience = models.ForeignKey(Audience, null=True, on_delete=models.PROTECT, related_name="resends")
    kind = models.CharField(max_length=10, choices=Kind)
    # Of a release: for what its items are parked.
    parked_reason = models.CharField(max_length=40, blank=True)
    # Of a release: the field that its items are read by, where it is another one than the install's.
    identifier_field = models.CharField(max_length=100, blank=True, default="", db_default="")
    # Of a replay: when its events were received, the first moment included and the last one not.
    received_from = models.DateTimeField(null=True)
    received_to = models.DateTimeField(null=True)
    # The last number to process, and the last one processed: of events for a replay, of parked items for a release. For
    # a take-over, ``upto`` is the audience whose members leave, and ``after`` the last event that was delivered for it
    # before. For a repair, ``upto`` is the audit. A resync sends the rows of the ledger whose deciding event has a
    # number above ``upto``.
    upto = models.BigIntegerField(default=0)
    after = models.BigIntegerField(default=0)
    # Of a resync, a take-over and a repair: the last customer done.
    after_identifier = models.TextField(blank=True)
    total = models.BigIntegerField()
    done = models.BigIntegerField(default=0)
    # Items of a release that were read again and still can't be.
    stayed = models.BigIntegerField(default=0)
    by = models.CharField(max_length=150)
    reason = models.TextField(blank=True)
    asked_at = models.DateTimeField(default=now)
    ended_at = models.DateTimeField(null=True)
    # Who ended it before it was done.
    stopped_by = models.CharField(max_length=150, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["audience", "-id"], name="resends_of_an_audience"),
            models.Index(fields=["kind", "-id"], name="resends_of_a_kind"),
            models.Index(fields=["install"], condition=Q(ended_at=None), name="unfinished_resends"),
        ]
        constraints = [
            models.UniqueConstraint(
                name="one_unfinished_resend_per_audience_and_kind",
                fields=["audience", "kind"],
                condition=Q(ended_at=None),
            ),
            models.UniqueConstraint(
                name="one_unfinished_release_per_install_and_reason",
                fields=["install", "parked_reason"],
                condition=Q(ended_at=None, kind="release"),
            ),
            models.CheckConstraint(
                name="resend_says_of_what",
                condition=Q(kind="release", audience=None) & ~Q(parked_reason="")
                | Q(kind="resync", audience__isnull=False)
                | Q(kind__in=("leave", "repair"), audience__isnull=False, upto__gt=0)
                | Q(
                    kind="replay",
                    audience__isnull=False,
                    received_from__isnull=False,
                    received_to__isnull=False,
                    received_to__gt=F("received_from"),
                ),
            ),
            models.CheckConstraint(
                name="resend_says_who_and_why", condition=~Q(by="") & (Q(kind="release") | ~Q(reason=""))
            ),
            models.CheckConstraint(
                name="stopped_resend_has_ended", condition=Q(stopped_by="") | Q(ended_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        if self.kind == self.Kind.RELEASE:
            return f"release of all parked for {self.parked_reason}"
        return f"{self.get_kind_display()} of {self.audience}"
