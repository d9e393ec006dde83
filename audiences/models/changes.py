"""Guided changes: how an install is brought from one setting to another while deliveries go on."""

from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audiences.masked_answers import SaidField
from audiences.models.audiences import Audience
from audiences.models.installs import Install


class GuidedChange(models.Model):
    """One guided change of an install, one audience after another. Written by ``operations/changes.py`` alone.

    ``phase`` is the next step, and each step is stored before the next one begins, so any process may go on. The
    columns from ``audience`` to ``upto_sequence`` are about the audience in work.
    """

    class Kind(models.TextChoices):
        MECHANISM = "mechanism", "another mechanism"

    class Phase(models.TextChoices):
        CHOOSE = "choose", "choosing the next audience"
        CHECK = "check", "making what the new mechanism needs in ODP"
        SWITCH = "switch", "switching deliveries to the new mechanism"
        BACK = "back", "switching deliveries back"
        AWAIT = "await", "waiting for the request under way"
        RESEND = "resend", "sending the ledger again"
        PROVE = "prove", "making the audience for the verification"
        VERIFY = "verify", "verifying a sample in ODP"
        REPLACE = "replace", "replacing the definition in ODP"
        CLEAN = "clean", "deleting the audience for the verification"
        FINISH = "finish", "finishing the audience"

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="changes")
    kind = models.CharField(max_length=10, choices=Kind)
    # The values before and after: names of mechanisms.
    before = models.CharField(max_length=100)
    after = models.CharField(max_length=100)
    by = models.CharField(max_length=150)
    reason = models.TextField()
    asked_at = models.DateTimeField(default=now)
    ended_at = models.DateTimeField(null=True)
    # Who wants it to end before its time. The audience in work is first brought back to what it was.
    stopped_by = models.CharField(max_length=150, blank=True, default="")
    # Why it ended before its time, or will once the audience in work is back.
    problem = SaidField(blank=True, default="")
    phase = models.CharField(max_length=10, choices=Phase, default=Phase.CHOOSE)
    phase_since_at = models.DateTimeField(default=now)
    # What the last step has to wait for; empty when it went on.
    waits_for = SaidField(blank=True, default="")
    # When that is looked at again.
    next_at = models.DateTimeField(null=True)
    lease_token = models.UUIDField(null=True)
    lease_until_at = models.DateTimeField(null=True)
    # Audiences: all at the beginning, those done, and by ODP id those left as they are and why.
    total = models.PositiveIntegerField(default=0)
    done = models.PositiveIntegerField(default=0)
    left_out = models.JSONField(default=dict)

    audience = models.ForeignKey(Audience, null=True, on_delete=models.PROTECT, related_name="changes")
    # Its mechanism before.
    was = models.CharField(max_length=12, blank=True, default="")
    is_returning = models.BooleanField(default=False)
    # Digest of the definition that ODP had of it.
    old_definition = models.CharField(max_length=64, blank=True, default="")
    # The leases under way when its deliveries were switched.
    lane_token = models.UUIDField(null=True)
    making_token = models.UUIDField(null=True)
    resend_id = models.BigIntegerField(null=True)
    # The last number of its log when deliveries were switched, and when all of the ledger was appended again.
    from_sequence = models.BigIntegerField(default=0)
    upto_sequence = models.BigIntegerField(default=0)

    class Meta:
        default_permissions = ("view",)
        permissions = [("guide_change", "Can begin and stop a guided change of an install")]
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                name="one_unfinished_change_per_install", fields=["install"], condition=Q(ended_at=None)
            ),
            models.CheckConstraint(name="change_says_who_and_why", condition=~Q(by="") & ~Q(reason="")),
            models.CheckConstraint(
                name="change_lease_token_and_end_together",
                condition=Q(lease_token=None, lease_until_at=None)
                | Q(lease_token__isnull=False, lease_until_at__isnull=False),
            ),
            models.CheckConstraint(
                name="change_in_work_has_an_audience",
                condition=Q(phase="choose", audience=None) | (~Q(phase="choose") & Q(audience__isnull=False)),
            ),
        ]

    def __str__(self) -> str:
        return f"change of {self.install} from {self.before} to {self.after}"
