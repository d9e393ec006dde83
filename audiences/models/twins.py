"""What ODP has of each audience, as the last look found it."""

from django.db import models
from django.db.models import Q

from audiences.masked_answers import SaidField
from audiences.models.audiences import Audience


class Twin(models.Model):
    """An audience's counterpart in ODP: field or list, and real-time audience. Written by ``operations/twins.py``.

    ``problem`` says what a look found; empty when the counterpart is as this service made it. ``found`` and ``ours``
    are the two definitions in words where they differ.
    """

    class Finding(models.TextChoices):
        NOTHING = "", "As made"
        MISSING = "missing", "Missing"
        CHANGED = "changed", "Changed"
        WRONG = "wrong", "Not usable"

    audience = models.OneToOneField(Audience, on_delete=models.CASCADE, primary_key=True)
    looked_at = models.DateTimeField()
    finding = models.CharField(max_length=8, choices=Finding, blank=True, default=Finding.NOTHING)
    problem = SaidField(blank=True, default="")
    found = models.TextField(blank=True, default="")
    ours = models.TextField(blank=True, default="")
    # Since when looks have found the same.
    since_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ()
        constraints = [
            models.CheckConstraint(
                name="twin_finding_says_what",
                condition=Q(finding="", problem="", since_at=None)
                | ~Q(finding="") & ~Q(problem="") & Q(since_at__isnull=False),
            )
        ]

    def __str__(self) -> str:
        return f"{self.audience} in ODP"
