"""Installs, the tokens that Lytics sends to them, and the pace of requests to their ODP accounts."""

import secrets

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audiences import naming, odp_hosts
from audiences.encryption import EncryptedTextField, Unreadable
from audiences.masked_answers import SaidField
from odp import mechanisms


def new_public_id() -> str:
    return secrets.token_hex(8)


class Install(models.Model):
    """One Lytics account connected to one ODP account: its settings and its backoff."""

    class Region(models.TextChoices):
        FROM_KEY = "", "Detect from the key"
        US = "us", "United States"
        EU = "eu", "Europe"
        AU = "au", "Asia-Pacific"

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
    odp_prefix = models.CharField(
        "prefix of ODP ids",
        max_length=40,
        default=naming.PREFIX,
        db_default=naming.PREFIX,
        validators=[
            RegexValidator(
                r"^lytics_([a-z0-9]([a-z0-9_]*[a-z0-9])?_)?$",
                "A prefix is lytics_, or lytics_ and small letters, digits or underscores with an underscore at the"
                " end, such as lytics_eu_.",
            )
        ],
        help_text="The ids of its audiences in ODP begin with it. Two installs that send to one ODP account need"
        " different ones, such as lytics_ and lytics_eu_.",
    )
    mechanism = models.CharField(max_length=12, choices=mechanisms.CHOICES, default=mechanisms.Attribute.name)
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
    delay_limit_minutes = models.PositiveSmallIntegerField(
        default=15,
        db_default=15,
        help_text="Now and alerts say when an event that can be sent waits longer. 0 means never.",
    )
    silence_limit_hours = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        help_text="Now and alerts say when Lytics is silent for longer. 0 means never. Leave it empty to have the limit"
        " learned from the calls.",
    )
    parked_limit_per_hour = models.PositiveSmallIntegerField(
        default=100,
        db_default=100,
        validators=[MaxValueValidator(10_000)],
        help_text="Now and alerts say when more items are parked within an hour. 0 means never.",
    )
    created_at = models.DateTimeField(default=now, editable=False)
    # When ODP first accepted its API key; None is a draft. Written by ``audiences/delivery/drafts.py``.
    key_accepted_at = models.DateTimeField(null=True, editable=False)
    # The last check of the key, and why ODP didn't accept it then; empty when it did.
    key_asked_at = models.DateTimeField(null=True, editable=False)
    key_problem = models.TextField(blank=True, default="", db_default="", editable=False)
    # When the identifier field was last changed: older calls were read by another field.
    identifier_since_at = models.DateTimeField(null=True, editable=False)

    # When a worker last began to look at its audiences in ODP. Written by ``audiences/operations/twins.py``.
    twins_looked_at = models.DateTimeField(null=True, editable=False)
    # Since when ODP doesn't show all audiences that a look asks for; None after a look in which it did.
    looks_fail_since_at = models.DateTimeField(null=True, editable=False)

    # The columns keep their former names, which the processes of earlier versions read and write during an upgrade.
    backoff_since_at = models.DateTimeField(null=True, editable=False, db_column="brake_since_at")
    backoff_until_at = models.DateTimeField(null=True, editable=False, db_column="brake_until_at")
    backoff_reason = SaidField(blank=True, editable=False, db_column="brake_reason")
    backoff_failures = models.PositiveIntegerField(default=0, editable=False, db_column="brake_failures")
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
                condition=Q(backoff_until_at=None, backoff_since_at=None, backoff_failures=0)
                | Q(backoff_until_at__isnull=False, backoff_since_at__isnull=False, backoff_failures__gt=0)
                & ~Q(backoff_reason=""),
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
        key_problem = "" if stored else odp_hosts.problem_of_key(self.odp_api_key)
        has_quotes = bool(set("\"'`\\") & set(self.identifier_field))
        errors = {
            "odp_api_key": key_problem,
            "odp_host": odp_hosts.problem_of(self.odp_host),
            "identifier_field": "Enter the field's name without quotes and backslashes." if has_quotes else "",
        }
        if any(errors.values()):
            raise ValidationError({field: words for field, words in errors.items() if words})


class LyticsAccount(models.Model):
    """The token for Lytics' API of an install that has one. Written by ``audiences/lytics_account.py``.

    A table of its own, so that the paths of calls and deliveries never decrypt the token.
    """

    install = models.OneToOneField(Install, on_delete=models.CASCADE, related_name="lytics")
    api_token = EncryptedTextField()
    changed_at = models.DateTimeField(default=now)
    # The end of the lease of the run that changes Lytics for this install; see ``audiences/operations/connect.py``.
    connecting_until_at = models.DateTimeField(null=True)
    # When the schedule last looked which audiences its jobs contain; see ``audiences/operations/job_looks.py``.
    job_looked_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"Lytics account of {self.install}"


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


class Pace(models.Model):
    """When the next request to one rate-limited part of one ODP account may start. Written by ``workers/pace.py``.

    An unlogged table: it changes with every request and is worth nothing after a crash.
    """

    install = models.ForeignKey(Install, on_delete=models.CASCADE)
    endpoint = models.CharField(max_length=20)
    line_at = models.DateTimeField()
    gate_at = models.DateTimeField()
    # Not read any more. They stay for processes of the version before, which count requests and their arrivals in them.
    passed = models.BigIntegerField(default=0)
    arrived = ArrayField(models.DateTimeField(), default=list)

    class Meta:
        constraints = [models.UniqueConstraint(name="one_pace_per_endpoint", fields=["install", "endpoint"])]

    def __str__(self) -> str:
        return f"{self.endpoint} of {self.install}"
