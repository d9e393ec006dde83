"""Items that couldn't be read or that ODP rejected, kept until an operator releases or discards them."""

from typing import Any, Self

from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audiences.models.audiences import Audience
from audiences.models.deliveries import Delivery
from audiences.models.installs import Install
from audiences.models.log import Receipt
from odp import redact


class Parked(models.Model):
    """An item that needs a person: one of a call that gave no event, or a change that ODP rejected."""

    # Set by the page that shows the item to a person who asked for its identifier.
    is_unmasked = False

    class Resolution(models.TextChoices):
        OPEN = "", "waiting for a person"
        RELEASED = "released", "released"
        SUPERSEDED = "superseded", "superseded by a newer event"
        DISCARDED = "discarded", "discarded"

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="parked", db_index=False)
    receipt = models.ForeignKey(Receipt, null=True, on_delete=models.PROTECT, related_name="items_aside")
    audience = models.ForeignKey(Audience, null=True, on_delete=models.PROTECT, related_name="parked")
    delivery = models.ForeignKey(Delivery, null=True, on_delete=models.PROTECT, related_name="parked")
    sequence = models.BigIntegerField(null=True)
    identifier = models.TextField(blank=True)
    reason = models.CharField(max_length=40)
    detail = models.TextField(blank=True)
    # Encrypted: it may hold a profile (see lytics.payload.envelope for how much of it is kept).
    raw = models.BinaryField(null=True)
    parked_at = models.DateTimeField(default=now)
    closed_at = models.DateTimeField(null=True)
    closed_by = models.CharField(max_length=150, blank=True)
    resolution = models.CharField(max_length=10, choices=Resolution, blank=True, default=Resolution.OPEN)

    class Meta:
        permissions = [
            ("release_parked", "Can release parked items"),
            ("discard_parked", "Can discard parked items"),
            ("reveal_parked", "Can see parked items unmasked"),
        ]
        ordering = ["-id"]
        verbose_name_plural = "parked"
        indexes = [
            models.Index(fields=["identifier"], condition=~Q(identifier=""), name="parked_of_a_customer"),
            models.Index(fields=["install", "reason", "-id"], condition=Q(closed_at=None), name="parked_and_open"),
            models.Index(fields=["install", "-id"], name="parked_of_an_install"),
            models.Index(fields=["resolution", "-id"], name="parked_by_resolution"),
            models.Index(fields=["reason", "-id"], name="parked_by_reason"),
        ]
        constraints = [
            models.CheckConstraint(name="parked_item_says_why", condition=~Q(reason="")),
            models.CheckConstraint(
                name="closed_parked_item_says_how",
                condition=Q(closed_at=None, resolution="") | (Q(closed_at__isnull=False) & ~Q(resolution="")),
            ),
            models.UniqueConstraint(
                name="one_open_refusal_per_membership",
                fields=["audience", "identifier"],
                condition=Q(closed_at=None, sequence__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"parked {self.pk}: {self.reason}"

    @classmethod
    def open_newest_first(cls, install_id: int, reason: str) -> "models.QuerySet[Parked]":
        """The open items of an install that are parked for one reason, for a read inside ``index_order()``.

        The order is that of the index parked_and_open. With equalities, PostgreSQL may read closed items by another
        index.
        """
        found = cls.objects.filter(install_id__gte=install_id, install_id__lte=install_id, closed_at=None)
        return found.filter(reason__gte=reason, reason__lte=reason).order_by("install_id", "reason", "-id")

    @classmethod
    def from_db(cls, *row: Any, **how: Any) -> Self:
        """Mask ODP's words in ``detail`` of a change that ODP rejected (one with a number): ``masked_answers.py``."""
        parked = super().from_db(*row, **how)
        held = parked.__dict__
        if held.get("sequence") is not None and held.get("detail"):
            parked.detail = redact.without(redact.words(parked.detail), redact.values_in(held.get("identifier")))
        return parked
