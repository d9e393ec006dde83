"""People who were forgotten: that it was done, by whom and when, without who it was."""

from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audiences.encryption import EncryptedTextField
from audiences.models.installs import Install


class Forgotten(models.Model):
    """One person of one install, on the way out and afterwards. Written by ``operations/forgetting.py``.

    ``digest`` is a keyed hash of the identifier: with the identifier in hand it proves that this was the person, and
    without it it says nothing. ``identifier`` is kept, encrypted, only until the person is out.
    """

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="forgotten")
    digest = models.CharField(max_length=64)
    identifier = EncryptedTextField(blank=True, default="")
    # What stands in the log in place of the identifier, so that numbers and counts stay.
    token = models.CharField(max_length=64, unique=True)
    tell_odp = models.BooleanField(default=False)
    # The exits that ODP gets first: their numbers by the ids of their audiences. None until they are appended.
    exits = models.JSONField(null=True)
    by = models.CharField(max_length=150)
    reason = models.TextField(blank=True, default="")
    asked_at = models.DateTimeField(default=now)
    ended_at = models.DateTimeField(null=True)
    # How many rows of each table the person was taken out of.
    counts = models.JSONField(default=dict)

    class Meta:
        default_permissions = ()
        permissions = [("forget_customer", "Can forget a customer")]
        ordering = ["-id"]
        indexes = [models.Index(fields=["digest"], name="forgotten_by_digest")]
        constraints = [
            models.UniqueConstraint(
                name="one_unfinished_forgetting_per_person", fields=["install", "digest"], condition=Q(ended_at=None)
            ),
            models.CheckConstraint(
                name="forgotten_person_has_no_identifier", condition=Q(ended_at=None) | Q(identifier="")
            ),
        ]

    def __str__(self) -> str:
        return f"forgotten customer {self.pk} of {self.install}"
