"""Audiences, their lanes, and the ledger: the memberships that ODP has accepted."""

from datetime import datetime
from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q, Value
from django.utils.timezone import now

from audiences import naming
from audiences.masked_answers import SaidField
from audiences.models.installs import Install
from audiences.models.parts import FIRST, NewestPart
from lytics import times
from odp import mechanisms


class Audience(models.Model):
    """A Lytics audience, known by its segment id, and its ODP twin. ``slug`` is what the ODP id was made from."""

    # 32 bits: two billion audiences are enough, and each row and key of the log and the ledger holds this number.
    id = models.AutoField(primary_key=True)
    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="audiences")
    segment_id = models.CharField(max_length=512)
    slug = models.CharField(max_length=512)
    latest_slug = models.CharField(max_length=512)
    odp_id = models.CharField("ODP id", max_length=naming.LONGEST_ODP_ID)
    # The ids under which ODP had it before. Fields and lists can't be deleted, so ODP still has its members there.
    former_odp_ids = ArrayField(
        models.CharField(max_length=naming.LONGEST_ODP_ID), default=list, db_default=Value([]), editable=False
    )
    last_sequence = models.BigIntegerField(default=0)
    # The part of the log that its new events go to, and the last number before that part. No waiting event is in a part
    # before ``waiting_part``. Written by ``operations/parts.py``, under the lock on this row. No foreign key: each call
    # updates this row, and would pay for the check.
    part = models.IntegerField(db_default=NewestPart())
    part_after = models.BigIntegerField(default=0, db_default=0)
    waiting_part = models.IntegerField(default=FIRST, db_default=FIRST)
    created_at = models.DateTimeField(default=now)
    # When all that it needs in ODP was last seen there.
    provisioned_at = models.DateTimeField(null=True)
    # Its creation in ODP, written by ``delivery/provision.py``: when an operator asked for another check, the lease of
    # the worker that does it, and after a failure the reason and the time of the next try.
    look_asked_at = models.DateTimeField(null=True)
    making_token = models.UUIDField(null=True)
    making_until_at = models.DateTimeField(null=True)
    hold_since_at = models.DateTimeField(null=True)
    hold_until_at = models.DateTimeField(null=True)
    hold_reason = SaidField(blank=True, default="", db_default="")
    hold_failures = models.PositiveIntegerField(default=0, db_default=0)
    # Digest of a definition found in ODP that this service didn't write, and of the definition a person accepted.
    foreign_definition = models.CharField(max_length=64, blank=True, default="", db_default="")
    accepted_definition = models.CharField(max_length=64, blank=True, default="", db_default="")
    # Digest of a foreign definition that a person wants to be replaced by ours.
    replaced_definition = models.CharField(max_length=64, blank=True, default="", db_default="")
    # The mechanism that writes its memberships, where a guided change has left it with another one than the install's.
    # Written by ``delivery/mechanism_switch.py``.
    mechanism = models.CharField(
        max_length=12, choices=mechanisms.CHOICES, blank=True, default="", db_default="", editable=False
    )
    # When a person chose what becomes of an older audience with its slug; see ``audiences/operations/take_over.py``.
    slug_settled_at = models.DateTimeField(null=True)
    # When a person decided that it may have the ODP id of a retired audience of another install.
    reuses_id_at = models.DateTimeField(null=True)

    class Meta:
        permissions = [
            ("pause_audience", "Can pause an audience"),
            ("resume_audience", "Can resume an audience"),
            ("unblock_audience", "Can unblock an audience"),
            ("resync_audience", "Can resync an audience"),
            ("replay_audience", "Can replay a time range of an audience"),
            ("retire_audience", "Can retire an audience"),
        ]
        ordering = ["install", "odp_id"]
        # For the front page. Few audiences are on hold; the others aren't indexed. One more index is on
        # ``naming.IS_UNUSUAL``.
        indexes = [
            models.Index(fields=["hold_since_at"], condition=Q(hold_failures__gt=0), name="audiences_on_hold"),
            models.Index(fields=["install", "latest_slug"], name="audiences_by_slug"),
            models.Index(fields=["install", "provisioned_at"], name="audiences_by_creation"),
        ]
        constraints = [
            models.UniqueConstraint(name="one_audience_per_segment", fields=["install", "segment_id"]),
            models.UniqueConstraint(name="one_audience_per_odp_id", fields=["install", "odp_id"]),
            models.CheckConstraint(name="sequence_starts_at_zero", condition=Q(last_sequence__gte=0)),
            models.CheckConstraint(
                name="making_token_and_end_together",
                condition=Q(making_token=None, making_until_at=None)
                | Q(making_token__isnull=False, making_until_at__isnull=False),
            ),
            models.CheckConstraint(
                name="audience_on_hold_says_why",
                condition=Q(hold_since_at=None, hold_until_at=None, hold_failures=0, hold_reason="")
                | Q(hold_since_at__isnull=False, hold_until_at__isnull=False, hold_failures__gt=0) & ~Q(hold_reason=""),
            ),
        ]

    def __str__(self) -> str:
        """The ODP id, followed by the slug if the id doesn't show it."""
        return self.odp_id if naming.shows(self.odp_id, self.latest_slug) else f"{self.odp_id} ({self.latest_slug})"


class Lane(models.Model):
    """An audience's place in delivery: cursor, lease, pause, block, fault. Written in ``delivery/`` alone."""

    audience = models.OneToOneField(Audience, on_delete=models.PROTECT, primary_key=True)
    delivered_sequence = models.BigIntegerField(default=0)
    member_count = models.BigIntegerField(default=0)
    last_served_at = models.DateTimeField(null=True)
    lease_token = models.UUIDField(null=True)
    lease_expires_at = models.DateTimeField(null=True)
    paused_at = models.DateTimeField(null=True)
    paused_by = models.CharField(max_length=150, blank=True)
    pause_reason = models.TextField(blank=True)
    blocked_at = models.DateTimeField(null=True)
    block_reason = SaidField(blank=True)
    # The block that a person lifted, until something is delivered or another one comes. If the same one comes back,
    # ``blocked_at`` is when it did, and this is still its beginning (``state.blocked_since``).
    lifted_since_at = models.DateTimeField(null=True)
    lifted_reason = SaidField(blank=True, default="", db_default="")
    # An unexpected error of this service in its last delivery: since when, what, and when the next try is.
    fault_since_at = models.DateTimeField(null=True)
    fault_until_at = models.DateTimeField(null=True)
    fault_reason = SaidField(blank=True, default="", db_default="")
    # Of an audience that is being retired: the last event that is delivered; later ones are held until a person takes
    # the audience back. And when its retirement was done.
    retired_sequence = models.BigIntegerField(null=True)
    retired_at = models.DateTimeField(null=True)

    class Meta:
        # For the front page. Few lanes are stopped; the others aren't indexed.
        indexes = [
            models.Index(fields=["blocked_at"], condition=Q(blocked_at__isnull=False), name="blocked_lanes"),
            models.Index(fields=["paused_at"], condition=Q(paused_at__isnull=False), name="paused_lanes"),
            models.Index(fields=["fault_since_at"], condition=Q(fault_since_at__isnull=False), name="faulty_lanes"),
            models.Index(fields=["retired_at"], condition=Q(retired_at__isnull=False), name="retired_lanes"),
        ]
        constraints = [
            models.CheckConstraint(
                name="retired_lane_has_an_end",
                condition=Q(retired_at=None) | Q(retired_sequence__isnull=False),
            ),
            models.CheckConstraint(
                name="lifted_block_says_since_when",
                condition=Q(lifted_since_at=None, lifted_reason="")
                | (Q(lifted_since_at__isnull=False) & ~Q(lifted_reason="")),
            ),
            models.CheckConstraint(
                name="faulty_lane_says_why",
                condition=Q(fault_since_at=None, fault_until_at=None, fault_reason="")
                | Q(fault_since_at__isnull=False, fault_until_at__isnull=False) & ~Q(fault_reason=""),
            ),
            models.CheckConstraint(
                name="lease_token_and_expiry_together",
                condition=Q(lease_token=None, lease_expires_at=None)
                | Q(lease_token__isnull=False, lease_expires_at__isnull=False),
            ),
            models.CheckConstraint(
                name="paused_lane_says_who_and_why",
                condition=Q(paused_at=None, paused_by="", pause_reason="")
                | (Q(paused_at__isnull=False) & ~Q(paused_by="") & ~Q(pause_reason="")),
            ),
            models.CheckConstraint(
                name="blocked_lane_says_why",
                condition=Q(blocked_at=None, block_reason="") | (Q(blocked_at__isnull=False) & ~Q(block_reason="")),
            ),
            models.CheckConstraint(name="cursor_starts_at_zero", condition=Q(delivered_sequence__gte=0)),
            models.CheckConstraint(name="no_negative_member_count", condition=Q(member_count__gte=0)),
        ]

    def __str__(self) -> str:
        return f"lane of {self.audience}"


class Membership(models.Model):
    """The ledger: whether an identifier is a member of an audience, as of a transition time of Lytics.

    ``sequence`` is the deciding event. ``rejected`` means that ODP rejected this newest state, which is parked.
    """

    pk = models.CompositePrimaryKey("audience_id", "identifier")
    audience = models.ForeignKey(Audience, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    identifier = models.TextField()
    is_member = models.BooleanField()
    occurred_ns = models.BigIntegerField()
    sequence = models.BigIntegerField()
    # The column keeps its former name, as those of an Install's backoff do.
    rejected = models.BooleanField(default=False, db_column="refused")

    # Customers whom ODP may show as members: where it rejected the newest state, it keeps the one before.
    MAY_BE_SHOWN: ClassVar[Q] = Q(is_member=True) | Q(rejected=True)

    class Meta:
        permissions = [("find_customer", "Can find a customer and ask ODP about them")]

    def __str__(self) -> str:
        return f"{self.identifier} in audience {self.audience_id}: {self.is_member}"

    @property
    def occurred_at(self) -> datetime:
        return times.moment(self.occurred_ns)


class Profile(models.Model):
    """The newest identifiers of a Lytics profile in one audience. Written by ``receiving/identifier_lists.py``."""

    pk = models.CompositePrimaryKey("audience_id", "profile")
    audience = models.ForeignKey(Audience, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    profile = models.TextField()
    occurred_ns = models.BigIntegerField()
    has_left = models.BooleanField()
    identifiers = models.JSONField()

    def __str__(self) -> str:
        return f"profile {self.profile} in audience {self.audience_id}"
