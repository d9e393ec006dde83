"""Audiences that a person has taken out of ODP, and how far that is."""

from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audiences.models.audiences import Audience


class Retirement(models.Model):
    """One audience that a person retired: its members leave it in ODP, then its real-time audience is deleted there.

    Written by ``operations/retiring.py`` alone, with each step, so no process has to live until its end. It is history
    too: an audience that was taken back and retired again has several.
    """

    audience = models.ForeignKey(Audience, on_delete=models.PROTECT, related_name="retirements")
    by = models.CharField(max_length=150)
    reason = models.TextField()
    asked_at = models.DateTimeField(default=now)
    # The audience's last event when it was asked for; the exits are behind it in the log.
    began_sequence = models.BigIntegerField()
    # Members by the ledger when it was asked for, exits appended since, and the last customer done.
    total = models.BigIntegerField()
    done = models.BigIntegerField(default=0)
    after_identifier = models.TextField(blank=True, default="")
    # When the last exit was appended. Events of Lytics behind it are held (``Lane.retired_sequence``).
    emptied_at = models.DateTimeField(null=True)
    # When the audience was gone from ODP, and why something was left there, if it was.
    ended_at = models.DateTimeField(null=True)
    left_in_odp = models.TextField(blank=True, default="")
    # Taken back by a person: who, and the last event of the log for which its customer entered again.
    undone_at = models.DateTimeField(null=True)
    undone_by = models.CharField(max_length=150, blank=True, default="")
    undone_reason = models.TextField(blank=True, default="")
    restored_sequence = models.BigIntegerField(default=0)
    restored_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ()
        indexes = [
            models.Index(
                fields=["audience"],
                condition=Q(ended_at=None, undone_at=None) | Q(undone_at__isnull=False, restored_at=None),
                name="unfinished_retirements",
            )
        ]
        constraints = [
            models.UniqueConstraint(
                name="one_retirement_per_audience", fields=["audience"], condition=Q(restored_at=None)
            ),
            models.CheckConstraint(name="retirement_says_who_and_why", condition=~Q(by="") & ~Q(reason="")),
            models.CheckConstraint(
                name="retirement_ends_when_emptied", condition=Q(ended_at=None) | Q(emptied_at__isnull=False)
            ),
            models.CheckConstraint(
                name="undone_retirement_says_by_whom",
                condition=Q(undone_at=None, undone_by="", restored_at=None)
                | Q(undone_at__isnull=False) & ~Q(undone_by=""),
            ),
        ]

    def __str__(self) -> str:
        return f"retirement of {self.audience}"
