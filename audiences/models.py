"""What is stored, and what PostgreSQL itself refuses to store. The words are those of docs/glossary.md.

One writer per fact: ``ingest`` creates Events and Receipts, ``lanes`` writes Lanes, Runs, Deliveries and the ledger,
``brake`` the brake of an Install, ``resends`` Resends. State shown to people is derived from these facts
(``audiences/insight/state.py``).
"""

import secrets
from datetime import datetime
from typing import Any, Self

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import BrinIndex
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import F, Q
from django.utils.timezone import now

from audiences import hosts, naming
from audiences.said import SaidField
from audiences.secrets import EncryptedTextField, Unreadable
from lytics import times
from odp import redact
from odp.outcomes import Outcome

# Of the log, for finding a customer in it: fewer make the index slower to read, more make each hit longer.
BLOCKS_PER_RANGE = 8


def new_public_id() -> str:
    return secrets.token_hex(8)


OUTCOMES = [(outcome.value, outcome.value.replace("_", " ")) for outcome in Outcome]
# How a Run can end beside what ODP answers: a person decided that its events are not to be sent.
SKIPPED = "skipped"
# Closed, and not delivered. Nearly everything is delivered, so what isn't has indexes of its own.
FAILED = ~Q(outcome__in=["", Outcome.DELIVERED.value])
# What people call slow, in milliseconds. Each length has indexes of its own, as long as what is slower is rare.
SLOW_MS = (250, 1_000, 5_000)


def rare(name: str, condition: Q, *, of: str) -> list[models.Index]:
    """Rows of which there may be none, newest first: of all, and of one ``of``. Other rows cost nothing here."""
    return [
        models.Index(fields=["-id"], condition=condition, name=name),
        models.Index(fields=[of, "-id"], condition=condition, name=f"{name}_of_{of}"),
    ]


class Install(models.Model):
    """One Lytics account connected to one ODP account: its settings and its brake."""

    class Region(models.TextChoices):
        FROM_KEY = "", "Detect from the key"
        US = "us", "United States"
        EU = "eu", "Europe"
        AU = "au", "Asia-Pacific"

    class Mechanism(models.TextChoices):
        ATTRIBUTE = "attribute", "Customer attribute (one boolean field per audience)"
        LIST = "list", "List membership"
        PASSTHROUGH = "passthrough", "Passthrough audience (must be enabled for the ODP account)"

    public_id = models.CharField(max_length=32, unique=True, default=new_public_id, editable=False)
    name = models.CharField(max_length=100)
    enabled = models.BooleanField(default=True, help_text="When off, calls are answered 503 and Lytics retries later.")
    region = models.CharField("ODP region", max_length=2, choices=Region, blank=True, default=Region.FROM_KEY)
    odp_host = models.URLField(
        "ODP host", blank=True, help_text="Only when it differs from the region's host, for example a sandbox."
    )
    odp_api_key = EncryptedTextField("ODP private API key")
    identifier_field = models.CharField(
        "customer profile identifier field name",
        max_length=100,
        default="_id",
        validators=[RegexValidator(r"^(?!segment_events$)[^\s]+$", "A profile field's name has no blanks.")],
        help_text="The Lytics profile field whose value ODP stores as fs_user_id and web_user_id. "
        "_id is the Lytics ID; a field that holds a list gives one customer per value.",
    )
    allow_top_level_identifier = models.BooleanField(
        default=False, help_text="Also look for the identifier next to data, not only inside it."
    )
    forget_missing_identifiers = models.BooleanField(
        default=False,
        help_text="Remove identifiers that disappear from a profile's list. For identifier fields that hold a list; "
        "export _id as well. Leave it off when profiles are often merged.",
    )
    mechanism = models.CharField(max_length=12, choices=Mechanism, default=Mechanism.ATTRIBUTE)
    batch_size = models.PositiveSmallIntegerField(
        default=500,
        validators=[MinValueValidator(1), MaxValueValidator(500)],
        help_text="Items per request. ODP documents 500; vendor clients send 100.",
    )
    requests_per_second = models.PositiveSmallIntegerField(
        default=10,
        help_text="ODP documents 10 a second for profiles and lists. 0 means no limit.",
    )
    max_in_flight = models.PositiveSmallIntegerField(
        default=20, validators=[MinValueValidator(1)], help_text="Requests in progress at once, across all workers."
    )
    created_at = models.DateTimeField(default=now, editable=False)
    # When ODP first accepted its API key; None is a draft. Written by ``audiences/delivery/drafts.py``.
    key_accepted_at = models.DateTimeField(null=True, editable=False)
    # When the identifier field was last changed: older calls were read by another field.
    identifier_since_at = models.DateTimeField(null=True, editable=False)

    brake_since_at = models.DateTimeField(null=True, editable=False)
    brake_until_at = models.DateTimeField(null=True, editable=False)
    brake_reason = SaidField(blank=True, editable=False)
    brake_failures = models.PositiveIntegerField(default=0, editable=False)
    # The largest request that ODP took after it called a larger one too large.
    learned_batch_size = models.PositiveSmallIntegerField(null=True, editable=False)

    class Meta:
        permissions = [
            ("retry_install", "Can let an install on hold try again now"),
            ("test_install", "Can send a test customer"),
        ]
        ordering = ["name", "id"]
        constraints = [
            models.CheckConstraint(
                name="braked_install_says_why",
                condition=Q(brake_until_at=None, brake_since_at=None, brake_failures=0)
                | Q(brake_until_at__isnull=False, brake_since_at__isnull=False, brake_failures__gt=0)
                & ~Q(brake_reason=""),
            ),
            models.CheckConstraint(
                name="batch_size_within_odp_limit", condition=Q(batch_size__gte=1, batch_size__lte=500)
            ),
            models.CheckConstraint(name="at_least_one_request_in_flight", condition=Q(max_in_flight__gte=1)),
        ]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        stored = isinstance(self.odp_api_key, Unreadable)
        key_problem = "" if stored else hosts.problem_of_key(self.odp_api_key)
        errors = {"odp_api_key": key_problem, "odp_host": hosts.problem_of(self.odp_host)}
        if any(errors.values()):
            raise ValidationError({field: words for field, words in errors.items() if words})


class Token(models.Model):
    """A secret that Lytics sends in its request header. Two may live at once, so that one can be rotated in peace."""

    install = models.ForeignKey(Install, on_delete=models.CASCADE, related_name="tokens")
    slot = models.PositiveSmallIntegerField()
    # What it is for, such as the name of the Lytics job that sends it.
    name = models.CharField(max_length=60, blank=True, default="", db_default="")
    digest = models.CharField(max_length=64, unique=True)
    secret = EncryptedTextField()
    created_at = models.DateTimeField(default=now)
    expires_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)
    last_used_at = models.DateTimeField(null=True)
    last_used_from = models.GenericIPAddressField(null=True)

    class Meta:
        permissions = [
            ("rotate_token", "Can rotate a token"),
            ("revoke_token", "Can revoke a token"),
            ("reveal_token", "Can reveal a token"),
        ]
        ordering = ["install", "-created_at"]
        constraints = [
            models.CheckConstraint(name="token_slot_is_one_or_two", condition=Q(slot__in=[1, 2])),
            models.UniqueConstraint(
                name="two_live_tokens_per_install", fields=["install", "slot"], condition=Q(revoked_at=None)
            ),
        ]

    def __str__(self) -> str:
        return f"token {self.name or self.slot} of {self.install}"


class Audience(models.Model):
    """A Lytics audience, known by its segment id, and its ODP twin. ``slug`` is what the ODP id was made from."""

    # Two billion are enough, and it stands in every row and key of the log and the ledger.
    id = models.AutoField(primary_key=True)
    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="audiences")
    segment_id = models.CharField(max_length=512)
    slug = models.CharField(max_length=512)
    latest_slug = models.CharField(max_length=512)
    odp_id = models.CharField("ODP id", max_length=540)
    last_sequence = models.BigIntegerField(default=0)
    created_at = models.DateTimeField(default=now)
    # When all that it needs in ODP was last seen there.
    provisioned_at = models.DateTimeField(null=True)
    # Its making, written by ``delivery/provision.py``: when somebody asked to have ODP looked at again, the lease of
    # the worker that is at it, and after a failure until when the next try waits, and why.
    look_asked_at = models.DateTimeField(null=True)
    making_token = models.UUIDField(null=True)
    making_until_at = models.DateTimeField(null=True)
    hold_since_at = models.DateTimeField(null=True)
    hold_until_at = models.DateTimeField(null=True)
    hold_reason = SaidField(blank=True, default="", db_default="")
    hold_failures = models.PositiveIntegerField(default=0, db_default=0)
    # Digests of a definition that was found in ODP and isn't ours, and of the one that a person has accepted.
    foreign_definition = models.CharField(max_length=64, blank=True, default="", db_default="")
    accepted_definition = models.CharField(max_length=64, blank=True, default="", db_default="")
    # When a person chose what becomes of an older audience with its slug; see ``audiences/operations/take_over.py``.
    slug_settled_at = models.DateTimeField(null=True)

    class Meta:
        permissions = [
            ("pause_audience", "Can pause an audience"),
            ("resume_audience", "Can resume an audience"),
            ("unblock_audience", "Can unblock an audience"),
            ("resync_audience", "Can resync an audience"),
            ("replay_audience", "Can replay a time range of an audience"),
        ]
        ordering = ["install", "odp_id"]
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
        """The id in ODP; with the slug where nobody would recognise it in the id."""
        return self.odp_id if naming.shows(self.odp_id, self.latest_slug) else f"{self.odp_id} ({self.latest_slug})"


class Lane(models.Model):
    """An audience's place in delivery: cursor, lease, pause, block, fault. Written by ``delivery/lanes.py`` alone."""

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

    class Meta:
        constraints = [
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


class Receipt(models.Model):
    """One webhook call as it arrived, with its counts. The verdict is read from them."""

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="receipts", db_index=False)
    received_at = models.DateTimeField(default=now)
    source = models.GenericIPAddressField(null=True)
    job = models.CharField("Lytics job", max_length=512, blank=True)
    bytes = models.PositiveIntegerField()
    messages = models.PositiveIntegerField()
    queued = models.PositiveIntegerField()
    parked = models.PositiveIntegerField()
    skipped = models.PositiveIntegerField()
    parked_reasons = models.JSONField(default=dict)

    class Meta:
        verbose_name = "call"
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["install", "-id"], name="receipts_of_an_install"),
            BrinIndex(fields=["received_at"], name="receipts_by_time", pages_per_range=16, autosummarize=True),
            models.Index(fields=["received_at"], name="receipts_by_hour"),
            *rare("parked_receipts", Q(parked__gt=0), of="install"),
            *rare("empty_receipts", Q(queued=0), of="install"),
        ]

    def __str__(self) -> str:
        return f"call {self.pk}"

    @property
    def verdict(self) -> str:
        if self.parked:
            return "partly parked" if self.queued else "parked"
        return "queued" if self.queued else "empty"


class Event(models.Model):
    """One fact: this identifier entered or left this audience at this time. Never edited; created by ``ingest`` alone.

    The two foreign keys are not checked row by row: the insert joins the audience rows that it has just locked,
    and 300 look-ups a call would double what a call costs.
    """

    class Kind(models.IntegerChoices):
        EXIT = 0, "exit"
        ENTER = 1, "enter"
        CHANGE = 2, "change"

    pk = models.CompositePrimaryKey("audience_id", "sequence")
    audience = models.ForeignKey(Audience, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    sequence = models.BigIntegerField()
    identifier = models.TextField()
    kind = models.SmallIntegerField(choices=Kind)
    # Nanoseconds since the epoch on Lytics' clock: microseconds would make ties that Lytics did not.
    occurred_ns = models.BigIntegerField()
    received_at = models.DateTimeField()
    # Send even when the ledger already agrees: set by release, replay and resync.
    forced = models.BooleanField(default=False)
    receipt = models.ForeignKey(Receipt, null=True, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)

    class Meta:
        constraints = [
            models.CheckConstraint(name="event_sequence_starts_at_one", condition=Q(sequence__gte=1)),
            models.CheckConstraint(name="event_kind_is_known", condition=Q(kind__in=[0, 1, 2])),
        ]
        # For finding one customer, at next to no cost for receiving (docs/decisions/0019-find-customer.md). Ranges are
        # summarised by ``customers.summarise`` alone: done while rows still come in, it costs each of them a page.
        indexes = [
            BrinIndex(
                name="events_of_a_customer",
                fields=["identifier"],
                opclasses=["text_bloom_ops(n_distinct_per_range=550, false_positive_rate=0.001)"],
                pages_per_range=BLOCKS_PER_RANGE,
                autosummarize=False,
            )
        ]

    def __str__(self) -> str:
        return f"event {self.sequence} of audience {self.audience_id}"

    @property
    def occurred_at(self) -> datetime:
        return times.moment(self.occurred_ns)


class Membership(models.Model):
    """The ledger: whether this identifier is a member of this audience, and as of when on Lytics' clock.

    ``sequence`` is the event that says so. ``refused`` means that ODP did not take this newest truth; it is parked.
    """

    pk = models.CompositePrimaryKey("audience_id", "identifier")
    audience = models.ForeignKey(Audience, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    identifier = models.TextField()
    is_member = models.BooleanField()
    occurred_ns = models.BigIntegerField()
    sequence = models.BigIntegerField()
    refused = models.BooleanField(default=False)

    class Meta:
        permissions = [("find_customer", "Can find a customer and ask ODP about them")]

    def __str__(self) -> str:
        return f"{self.identifier} in audience {self.audience_id}: {self.is_member}"

    @property
    def occurred_at(self) -> datetime:
        return times.moment(self.occurred_ns)


class Profile(models.Model):
    """The newest list of identifiers of one Lytics profile in one audience. Written by ``receiving/remember.py``."""

    pk = models.CompositePrimaryKey("audience_id", "profile")
    audience = models.ForeignKey(Audience, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    profile = models.TextField()
    occurred_ns = models.BigIntegerField()
    has_left = models.BooleanField()
    identifiers = models.JSONField()

    def __str__(self) -> str:
        return f"profile {self.profile} in audience {self.audience_id}"


class FutureTime(models.Model):
    """An event whose transition time was too far ahead of the clock to be believed, and the time that was told.

    The event itself carries the time that counts. Written by ``audiences/receiving/ingest.py`` alone, with the event.
    """

    pk = models.CompositePrimaryKey("audience_id", "sequence")
    audience = models.ForeignKey(Audience, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    sequence = models.BigIntegerField()
    claimed_ns = models.BigIntegerField()
    received_at = models.DateTimeField()

    class Meta:
        default_permissions = ()
        indexes = [models.Index(fields=["received_at"], name="future_times_by_time")]

    def __str__(self) -> str:
        return f"event {self.sequence} of {self.audience_id} claims {times.text(self.claimed_ns)}"


class Delivery(models.Model):
    """One request to ODP and what came back. It is stored open before the request starts."""

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="deliveries", db_index=False)
    endpoint = models.CharField(max_length=60)
    opened_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=12, choices=OUTCOMES, blank=True)
    status = models.PositiveSmallIntegerField(null=True)
    items = models.PositiveIntegerField()
    bytes = models.PositiveIntegerField()
    latency_ms = models.PositiveIntegerField(null=True)
    reason = SaidField(blank=True)
    answer = SaidField(blank=True)
    # The body, packed (audiences/carried.py). None when it was opened without one.
    request = models.BinaryField(null=True)
    worker = models.CharField(max_length=100)
    version = models.CharField(max_length=20)
    # When it was seen to that nothing of this request can outlive what came after it (audiences/operations/affirm.py).
    affirmed_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "deliveries"
        indexes = [
            models.Index(fields=["install", "-id"], name="deliveries_of_an_install"),
            models.Index(fields=["install"], condition=Q(closed_at=None), name="open_deliveries"),
            models.Index(
                fields=["closed_at"],
                condition=Q(affirmed_at=None, outcome__in=[Outcome.UNKNOWN.value, Outcome.RETRY_LATER.value]),
                name="deliveries_to_affirm",
            ),
            models.Index(fields=["opened_at"], name="deliveries_by_hour"),
            *rare("failed_deliveries", FAILED, of="install"),
            models.Index(fields=["outcome", "-id"], condition=FAILED, name="failed_deliveries_by_outcome"),
            *(index for ms in SLOW_MS for index in rare(f"slow_{ms}", Q(latency_ms__gt=ms), of="install")),
        ]
        constraints = [
            models.CheckConstraint(
                name="closed_delivery_has_outcome",
                condition=Q(closed_at=None, outcome="") | (Q(closed_at__isnull=False) & ~Q(outcome="")),
            )
        ]

    def __str__(self) -> str:
        return f"delivery {self.pk}"


class Skip(models.Model):
    """A person's decision not to send what an install had waiting: who and why. Written by ``operations/skips.py``."""

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="skips")
    by = models.CharField(max_length=150)
    reason = models.TextField()
    at = models.DateTimeField(default=now)

    class Meta:
        default_permissions = ()
        constraints = [models.CheckConstraint(name="skip_says_who_and_why", condition=~Q(by="") & ~Q(reason=""))]

    def __str__(self) -> str:
        return f"skipped by {self.by}: {self.reason}"


class Run(models.Model):
    """Consecutive events of one lane that went into one delivery; without one, when all of them were folded or skipped.

    The two foreign keys are not checked row by row: the lane is leased, and the Delivery comes with the same statement.
    Each check would lock an audience that calls number events of.
    """

    audience = models.ForeignKey(
        Audience, on_delete=models.PROTECT, related_name="runs", db_index=False, db_constraint=False
    )
    delivery = models.ForeignKey(
        Delivery, on_delete=models.PROTECT, null=True, related_name="runs", db_constraint=False
    )
    first_sequence = models.BigIntegerField()
    last_sequence = models.BigIntegerField()
    sent = models.PositiveIntegerField()
    folded = models.PositiveIntegerField()
    opened_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=12, choices=[*OUTCOMES, (SKIPPED, SKIPPED)], blank=True)
    skip = models.ForeignKey(
        Skip, on_delete=models.PROTECT, null=True, related_name="runs", db_index=False, db_constraint=False
    )

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["audience", "-id"], name="runs_of_an_audience"),
            models.Index(fields=["audience", "first_sequence", "id"], name="runs_by_first_event"),
            BrinIndex(fields=["closed_at"], name="runs_by_time", pages_per_range=16, autosummarize=True),
            # Of another kind than those of deliveries and receipts: there may be a run for each event.
            BrinIndex(fields=["opened_at"], pages_per_range=32, autosummarize=True, name="runs_by_hour"),
            *rare("failed_runs", FAILED, of="audience"),
            models.Index(fields=["outcome", "-id"], condition=FAILED, name="failed_runs_by_outcome"),
        ]
        constraints = [
            models.UniqueConstraint(name="one_open_run_per_lane", fields=["audience"], condition=Q(closed_at=None)),
            models.CheckConstraint(
                name="skipped_run_says_who_and_why",
                condition=Q(outcome=SKIPPED, skip__isnull=False) | (~Q(outcome=SKIPPED) & Q(skip=None)),
            ),
            models.CheckConstraint(name="run_is_not_reversed", condition=Q(first_sequence__lte=F("last_sequence"))),
            models.CheckConstraint(
                name="closed_run_has_outcome",
                condition=Q(closed_at=None, outcome="") | (Q(closed_at__isnull=False) & ~Q(outcome="")),
            ),
        ]

    def __str__(self) -> str:
        return f"run {self.first_sequence}–{self.last_sequence} of {self.audience}"


class Again(models.Model):
    """A range of the log that this service appended itself, and what caused it. Written by ``receiving/again.py``.

    Nobody checks the foreign keys row by row: the audience is locked, and the others are read in the same transaction.
    """

    class Cause(models.TextChoices):
        REPLAY = "replay", "replay"
        RESYNC = "resync", "resync"
        RELEASE = "release", "release"
        LEAVE = "leave", "take-over"
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


class Minute(models.Model):
    """What one install received, parked and delivered in one minute, added up. Written by ``insight/tally.py``.

    Derived: deleting rows loses a picture and nothing else. A minute in which nothing happened has no row.
    """

    install = models.ForeignKey(Install, on_delete=models.CASCADE, db_index=False)
    minute = models.DateTimeField()
    received = models.BigIntegerField()
    parked = models.BigIntegerField()
    delivered = models.BigIntegerField()
    # Delivered because something was sent again; not counted as delivered a second time.
    again = models.BigIntegerField(default=0, db_default=0)
    # When what was delivered had come: events by the minute of their arrival, in seconds since the epoch. None in rows
    # of an older version.
    arrived = models.JSONField(null=True)
    # From the call that brought an event to ODP's answer. None when nothing was sent.
    delay_p50_ms = models.BigIntegerField(null=True)
    delay_p99_ms = models.BigIntegerField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(name="one_row_per_minute", fields=["minute", "install"])]

    def __str__(self) -> str:
        return f"{self.minute:%Y-%m-%d %H:%M} of {self.install}"


class Parked(models.Model):
    """An item that needs a person: one of a call that gave no event, or a change that ODP refused."""

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
    def from_db(cls, *row: Any, **how: Any) -> Self:
        """A change that ODP rejected, which has a number, has ODP's words in ``detail``: see ``audiences/said.py``."""
        parked = super().from_db(*row, **how)
        held = parked.__dict__
        if held.get("sequence") is not None and held.get("detail"):
            parked.detail = redact.without(redact.words(parked.detail), redact.values_in(held.get("identifier")))
        return parked


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
    # The last number there is to do, and the last one done: an event's for a replay, a parked item's for a release.
    # For a take-over ``upto`` is the audience whose members leave.
    upto = models.BigIntegerField(default=0)
    after = models.BigIntegerField(default=0)
    # Of a resync and a take-over: the last customer done.
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
                | Q(kind="leave", audience__isnull=False, upto__gt=0)
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


class Pace(models.Model):
    """When the next request to one rate-limited part of one ODP account may start. Written by ``workers/pace.py``.

    An unlogged table: it changes with every request and is worth nothing after a crash.
    """

    install = models.ForeignKey(Install, on_delete=models.CASCADE)
    endpoint = models.CharField(max_length=20)
    line_at = models.DateTimeField()
    gate_at = models.DateTimeField()
    # How many requests have passed the gate, and when the latest have arrived at ODP: as many as may in a second, each
    # in the place of its number.
    passed = models.BigIntegerField(default=0)
    arrived = ArrayField(models.DateTimeField(), default=list)

    class Meta:
        constraints = [models.UniqueConstraint(name="one_pace_per_endpoint", fields=["install", "endpoint"])]

    def __str__(self) -> str:
        return f"{self.endpoint} of {self.install}"


class Worker(models.Model):
    """A worker process that has proved that work reaches it. Written by ``audiences/insight/heartbeats.py``."""

    name = models.CharField(max_length=200, unique=True)
    version = models.CharField(max_length=20)
    beat_at = models.DateTimeField()
    worked_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.name


class Confirmation(models.Model):
    """What ODP itself said of an install when it was asked: that it takes the key, and that it shows a member.

    Written by ``insight/confirm.py``. ``delivered_at`` is when those whom ODP was asked about had been delivered.
    """

    install = models.OneToOneField(Install, on_delete=models.CASCADE, primary_key=True)
    key_asked_at = models.DateTimeField(null=True)
    # Empty when ODP takes the key.
    key_problem = models.TextField(blank=True)
    asked_at = models.DateTimeField(null=True)
    delivered_at = models.DateTimeField(null=True)
    # Why ODP could not tell; empty when it told.
    problem = models.TextField(blank=True)
    confirmed_at = models.DateTimeField(null=True)
    audience = models.ForeignKey(Audience, null=True, on_delete=models.SET_NULL, related_name="+")

    class Meta:
        default_permissions = ()
        constraints = [
            models.CheckConstraint(
                name="only_who_was_asked_about_is_confirmed",
                condition=Q(confirmed_at=None) | Q(asked_at__isnull=False, delivered_at__isnull=False),
            )
        ]

    def __str__(self) -> str:
        return f"confirmation of {self.install}"


class Trial(models.Model):
    """One test customer on its way through the whole path, into the test audience and out again.

    Written by ``audiences/insight/trials.py``. ``hops`` are what it has come past, each with its milliseconds.
    """

    install = models.ForeignKey(Install, on_delete=models.PROTECT, related_name="trials")
    identifier = models.CharField(max_length=64)
    started_at = models.DateTimeField(default=now)
    started_by = models.CharField(max_length=150)
    # Taken by a worker; and the last time that anything was heard of it.
    begun_at = models.DateTimeField(null=True)
    moved_at = models.DateTimeField(default=now)
    closed_at = models.DateTimeField(null=True)
    hops = models.JSONField(default=list)

    class Meta:
        default_permissions = ()
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(name="one_trial_at_a_time", fields=["install"], condition=Q(closed_at=None))
        ]

    def __str__(self) -> str:
        return f"test customer {self.identifier}"
