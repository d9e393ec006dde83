"""Guided changes: a setting of an install is changed in steps, while deliveries continue."""

from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audiences import naming
from audiences.encryption import EncryptedTextField
from audiences.masked_answers import SaidField
from audiences.models.audiences import Audience
from audiences.models.installs import Install

# The phases that are about the whole install.
_WITHOUT_AUDIENCE = ("choose", "tell_apart", "move", "leases", "read_by", "calls")


class GuidedChange(models.Model):
    """One guided change of an install, one audience after another. Written by ``operations/changes.py`` alone.

    ``phase`` is the next step. Each step is stored before the next one begins, so any worker can continue. The columns
    from ``audience`` to ``upto_sequence`` are about the current audience.
    """

    class Kind(models.TextChoices):
        MECHANISM = "mechanism", "another mechanism"
        ACCOUNT = "account", "another ODP account"
        IDENTIFIER = "identifier", "another identifier field"

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
        # Phases of a change to another ODP account.
        TELL_APART = "tell_apart", "making sure that the key belongs to another account"
        MAKE = "make", "making the audience in the new account"
        COPY = "copy", "sending the ledger to the new account"
        MOVE = "move", "switching the install to the new account"
        LEASES = "leases", "waiting for the requests to the old account"
        CATCH_UP = "catch_up", "sending what changed while the ledger was copied"
        EMPTY = "empty", "emptying the audience in the old account"
        REMOVE = "remove", "deleting the audience in the old account"
        # Phases of a change to another identifier field.
        READ_BY = "read_by", "switching the identifier field"
        CALLS = "calls", "waiting for the calls that were read by the old field"
        AUDIT = "audit", "comparing with the members in Lytics"
        REPAIR = "repair", "sending the differences"

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="changes")
    kind = models.CharField(max_length=10, choices=Kind)
    # The values before and after: names of mechanisms or fields, or ODP accounts as people know them.
    before = models.CharField(max_length=100)
    after = models.CharField(max_length=100)
    by = models.CharField(max_length=150)
    reason = models.TextField()
    asked_at = models.DateTimeField(default=now)
    ended_at = models.DateTimeField(null=True)
    # The person who stopped it. The current audience is changed back before the change ends.
    stopped_by = models.CharField(max_length=150, blank=True, default="")
    # The reason for ending early; set before the current audience is changed back.
    problem = SaidField(blank=True, default="")
    phase = models.CharField(max_length=10, choices=Phase, default=Phase.CHOOSE)
    phase_since_at = models.DateTimeField(default=now)
    # What the change waits for; empty when it doesn't wait.
    waits_for = SaidField(blank=True, default="")
    # The time of the next check.
    next_at = models.DateTimeField(null=True)
    lease_token = models.UUIDField(null=True)
    lease_until_at = models.DateTimeField(null=True)
    # The number of audiences at the beginning, the number done, and the reasons of those left as they are, by ODP id.
    total = models.PositiveIntegerField(default=0)
    done = models.PositiveIntegerField(default=0)
    left_out = models.JSONField(default=dict)

    audience = models.ForeignKey(Audience, null=True, on_delete=models.PROTECT, related_name="changes")
    # Its mechanism before.
    was = models.CharField(max_length=12, blank=True, default="")
    is_returning = models.BooleanField(default=False)
    # Digest of the definition that ODP had of it.
    old_definition = models.CharField(max_length=64, blank=True, default="")
    # The leases that existed when its deliveries were switched.
    lane_token = models.UUIDField(null=True)
    making_token = models.UUIDField(null=True)
    resend_id = models.BigIntegerField(null=True)
    # The last number of its log when deliveries were switched, and when the whole ledger was appended again.
    from_sequence = models.BigIntegerField(default=0)
    upto_sequence = models.BigIntegerField(default=0)

    # Columns of a change to another ODP account. ``other_…`` is the account that the install doesn't send to: the new
    # one before the switch, the old one after it. The key is cleared when the change ends.
    other_region = models.CharField(max_length=2, blank=True, default="", db_default="")
    other_host = models.CharField(max_length=200, blank=True, default="", db_default="")
    other_api_key = EncryptedTextField(blank=True, default="", db_default="")
    # Whether the audiences in the old account are emptied and deleted after the switch.
    empties = models.BooleanField(default=False, db_default=False)
    switched_at = models.DateTimeField(null=True)
    # The leases of deliveries that existed at the switch.
    lane_tokens = models.JSONField(null=True)
    # The time of the last request that copied memberships.
    copied_at = models.DateTimeField(null=True)
    # The last customer sent of the current audience, the number of customers in the next request (0: as many as fit),
    # the number that ODP rejected, and whether customers who have left are sent, too.
    after_identifier = models.TextField(blank=True, default="", db_default="")
    request_size = models.PositiveSmallIntegerField(default=0, db_default=0)
    rejected = models.PositiveIntegerField(default=0, db_default=0)
    sends_exits = models.BooleanField(default=False, db_default=False)

    # Columns of a change to another identifier field: the audit of the current audience, the number of its repairs, and
    # the last audience that is done.
    audit_id = models.BigIntegerField(null=True)
    repairs = models.PositiveSmallIntegerField(default=0, db_default=0)
    last_audience_id = models.BigIntegerField(default=0, db_default=0)

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
            models.CheckConstraint(name="ended_change_keeps_no_key", condition=Q(ended_at=None) | Q(other_api_key="")),
            models.CheckConstraint(
                name="change_in_work_has_an_audience",
                condition=Q(phase__in=_WITHOUT_AUDIENCE, audience=None)
                | (~Q(phase__in=_WITHOUT_AUDIENCE) & Q(audience__isnull=False)),
            ),
        ]

    def __str__(self) -> str:
        return f"change of {self.install} from {self.before} to {self.after}"


class AudienceMove(models.Model):
    """One audience of a change to another ODP account. Written by ``operations/account_steps.py`` alone."""

    class Stage(models.TextChoices):
        COPY = "copy", "to be copied"
        VERIFY = "verify", "to be verified"
        CATCH_UP = "catch_up", "verified"
        EMPTY = "empty", "in the new account"
        DONE = "done", "removed from the old account"

    change = models.ForeignKey(GuidedChange, on_delete=models.PROTECT, related_name="moves")
    audience = models.ForeignKey(Audience, on_delete=models.PROTECT, related_name="moves")
    stage = models.CharField(max_length=10, choices=Stage, default=Stage.COPY)
    # The ODP id under which it was copied. A person may give the audience another one meanwhile.
    odp_id = models.CharField(max_length=naming.LONGEST_ODP_ID)
    # The cursor of its lane before its ledger was copied: each later change of the ledger has a higher number.
    from_sequence = models.BigIntegerField(default=0)
    # The number of customers that the new account rejected.
    rejected = models.PositiveIntegerField(default=0)

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(name="one_move_per_change", fields=["change", "audience"])]

    def __str__(self) -> str:
        return f"{self.odp_id}: {self.get_stage_display()}"
