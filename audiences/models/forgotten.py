"""The record that a customer was forgotten: by whom and when, without the identifier."""

from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audiences.encryption import EncryptedTextField
from audiences.models.installs import Install


class Forgotten(models.Model):
    """One customer of one install who is being forgotten or was forgotten. Written by ``operations/forgetting.py``.

    ``digest`` is a keyed hash of the identifier: it proves whether a given identifier was forgotten, and doesn't reveal
    it. ``identifier`` is kept, encrypted, only until the customer is forgotten.
    """

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="forgotten")
    digest = models.CharField(max_length=64)
    identifier = EncryptedTextField(blank=True, default="")
    # The text that replaces the identifier in the log, so that numbers and counts stay.
    token = models.CharField(max_length=64, unique=True)
    tell_odp = models.BooleanField(default=False)
    # The numbers of the exits that ODP gets first, by audience id. None until the exits are appended.
    exits = models.JSONField(null=True)
    by = models.CharField(max_length=150)
    reason = models.TextField(blank=True, default="")
    asked_at = models.DateTimeField(default=now)
    ended_at = models.DateTimeField(null=True)
    # The number of rows changed or deleted per table.
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
