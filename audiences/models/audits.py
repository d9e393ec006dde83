"""Audits: who is a member of an audience in Lytics, in the ledger and in ODP, compared person by person."""

from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audiences.models.audiences import Audience
from audiences.models.installs import Install


class Audit(models.Model):
    """One audit of one audience. Written in ``audiences/agreement/``, step by step, so that any worker can continue.

    ``before_sequence`` is the last number of the audience's log when the audit began. People with a later event aren't
    compared. ``scan_token`` and ``after_identifier`` are the progress of the two passes.
    """

    class Mode(models.TextChoices):
        QUICK = "quick", "Sizes"
        SAMPLE = "sample", "A sample"
        FULL = "full", "Every person"

    class Phase(models.TextChoices):
        SCAN = "scan", "Reading Lytics"
        SETTLE = "settle", "Waiting for what is under way"
        COMPARE = "compare", "Comparing with Lytics"
        ODP = "odp", "Asking ODP"
        DONE = "done", "Done"

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="audits")
    audience = models.ForeignKey(Audience, on_delete=models.PROTECT, related_name="audits")
    mode = models.CharField(max_length=6, choices=Mode)
    # The share of people about whom ODP is asked: 1 for every person.
    share = models.FloatField(default=1.0)
    # The most differences with Lytics that are stored; 0 for the usual number (``comparing.MOST``).
    most = models.PositiveIntegerField(default=0, db_default=0)
    by = models.CharField(max_length=150)
    asked_at = models.DateTimeField(default=now)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    # Why it ended without a result; empty when it has one. Words of ODP are masked before they are stored.
    problem = models.TextField(blank=True, default="")
    # A side that could not be asked, and why; the other side was.
    note = models.TextField(blank=True, default="")
    phase = models.CharField(max_length=7, choices=Phase, default=Phase.SCAN)
    lease_until_at = models.DateTimeField(null=True)
    # No step is taken before this time.
    next_at = models.DateTimeField(null=True)
    before_sequence = models.BigIntegerField(default=0)
    # When Lytics' scan began: the time of the truth that it gives.
    scan_began_at = models.DateTimeField(null=True)
    scan_token = models.TextField(blank=True, default="")
    scan_starts = models.PositiveIntegerField(default=0)
    settled_since_at = models.DateTimeField(null=True)
    after_identifier = models.TextField(blank=True, default="")
    # Sizes: Lytics' own, the ledger's members, and ODP's estimate.
    lytics_size = models.BigIntegerField(null=True)
    ledger_size = models.BigIntegerField(null=True)
    odp_low = models.BigIntegerField(null=True)
    odp_high = models.BigIntegerField(null=True)
    # By how many ODP's low estimate exceeded the ledger before and after the audit, beyond the events meanwhile.
    only_in_odp = models.BigIntegerField(default=0, db_default=0)
    # People compared with Lytics and with ODP, and those of them who differ.
    scanned = models.BigIntegerField(default=0)
    compared_with_lytics = models.BigIntegerField(default=0)
    compared_with_odp = models.BigIntegerField(default=0)
    moving = models.BigIntegerField(default=0)
    differing = models.BigIntegerField(default=0)
    explained = models.BigIntegerField(default=0)
    # Whether the option to forget missing identifiers was on or off, if the identifier field held lists; else empty.
    # Then the numbers of people who differ because a list became shorter, and because profiles were merged.
    array_option = models.CharField(max_length=3, blank=True, default="", db_default="")
    left_list = models.BigIntegerField(default=0, db_default=0)
    merged = models.BigIntegerField(default=0, db_default=0)
    # The last one of its audience that came to its end; one of sizes only if none compared people.
    is_newest = models.BooleanField(default=False)

    class Meta:
        default_permissions = ("view",)
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["audience", "-id"], name="audits_of_an_audience"),
            models.Index(fields=["install", "-id"], name="audits_of_an_install"),
            models.Index(
                fields=["-id"],
                condition=Q(is_newest=True) & (Q(differing__gt=0) | ~Q(problem="") | Q(only_in_odp__gt=0)),
                name="audits_to_act_on",
            ),
        ]
        constraints = [
            models.UniqueConstraint(
                name="one_unfinished_audit_per_audience", fields=["audience"], condition=Q(ended_at=None)
            )
        ]

    def __str__(self) -> str:
        return f"audit {self.pk} of {self.audience}"


class ScannedMember(models.Model):
    """A member that Lytics' scan named, until the audit has compared it."""

    pk = models.CompositePrimaryKey("audit_id", "identifier")
    audit = models.ForeignKey(Audit, on_delete=models.CASCADE, db_constraint=False, db_index=False)
    identifier = models.TextField()
    # The Lytics ID of the profile, if the identifier comes from a list; else empty.
    profile = models.TextField(blank=True, default="", db_default="")

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.identifier} in Lytics, audit {self.audit_id}"


class Difference(models.Model):
    """One person on whom two sides disagree, and why where that is known. Written in ``audiences/agreement/``."""

    class Kind(models.TextChoices):
        NOT_HERE = "not_here", "member in Lytics, not here"
        NOT_IN_LYTICS = "not_lytics", "member here, not in Lytics"
        NOT_IN_ODP = "not_odp", "member here, not in ODP"
        STILL_IN_ODP = "still_odp", "not a member here, in ODP"
        HALF_IN_ODP = "half_odp", "in ODP by one identifier only"

    audit = models.ForeignKey(Audit, on_delete=models.CASCADE, related_name="differences")
    identifier = models.TextField()
    kind = models.CharField(max_length=10, choices=Kind)
    # The Lytics ID of the profile whose list in Lytics has the identifier; empty without a list.
    profile = models.TextField(blank=True, default="", db_default="")
    why = models.TextField(blank=True, default="")
    is_explained = models.BooleanField(default=False)

    class Meta:
        default_permissions = ()
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(name="one_difference_per_person_and_kind", fields=["audit", "identifier", "kind"])
        ]

    def __str__(self) -> str:
        return f"difference {self.pk} of audit {self.audit_id}: {self.get_kind_display()}"
