"""Troubles that checks have found, and the messages about them."""

import uuid

from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audiences.models.installs import Install


class Trouble(models.Model):
    """One trouble of the page *Now*, from the first check that found it. Written by ``operations/troubles.py`` alone.

    ``key`` identifies its kind, install and cause. A trouble that comes back after it was resolved is a new row. The
    texts are masked before they are stored.
    """

    key = models.CharField(max_length=60)
    install = models.ForeignKey(Install, on_delete=models.SET_NULL, null=True, related_name="+")
    kind = models.CharField(max_length=20)
    what = models.TextField()
    why = models.TextField(blank=True, default="")
    todo = models.TextField(blank=True, default="")
    tone = models.CharField(max_length=8)
    path = models.TextField()
    since_at = models.DateTimeField()
    first_seen_at = models.DateTimeField(default=now)
    last_seen_at = models.DateTimeField()
    # The time of the first of the consecutive checks that didn't find it.
    gone_at = models.DateTimeField(null=True)
    # When its last "opened" messages were queued, and the trouble's tone then.
    notified_at = models.DateTimeField(null=True, db_column="told_at")
    notified_tone = models.CharField(max_length=8, blank=True, default="", db_column="told_tone")
    resolved_at = models.DateTimeField(null=True)
    muted_until = models.DateTimeField(null=True)
    muted_by = models.CharField(max_length=150, blank=True, default="")
    mute_reason = models.TextField(blank=True, default="", db_default="")

    class Meta:
        ordering = ["-id"]
        default_permissions = ("view",)
        permissions = [("mute_trouble", "Can mute a trouble")]
        constraints = [
            models.UniqueConstraint(fields=["key"], condition=Q(resolved_at=None), name="one_open_trouble_per_key"),
            models.CheckConstraint(
                name="mute_says_who",
                condition=Q(muted_until=None, muted_by="") | ~Q(muted_until=None) & ~Q(muted_by=""),
            ),
        ]
        indexes = [models.Index(fields=["key", "-id"], name="trouble_by_key")]

    def __str__(self) -> str:
        return self.what


class TroubleMessage(models.Model):
    """One message to one channel, sent until the channel accepts it. Written by ``operations/alert_messages.py``.

    The receiver gets ``webhook_id`` with each attempt, so it can drop a duplicate.
    """

    class Event(models.TextChoices):
        OPENED = "trouble.opened", "new"
        RESOLVED = "trouble.resolved", "resolved"
        TEST = "test", "test"

    class Channel(models.TextChoices):
        EMAIL = "email", "e-mail"
        SLACK = "slack", "Slack"
        WEBHOOK = "webhook", "webhook"

    trouble = models.ForeignKey(Trouble, on_delete=models.PROTECT, null=True, related_name="messages")
    event = models.CharField(max_length=20, choices=Event)
    channel = models.CharField(max_length=8, choices=Channel)
    webhook_id = models.UUIDField(default=uuid.uuid4, unique=True)
    content = models.JSONField()
    created_at = models.DateTimeField()
    next_try_at = models.DateTimeField()
    tries = models.PositiveIntegerField(default=0)
    sent_at = models.DateTimeField(null=True)
    given_up_at = models.DateTimeField(null=True)
    # The reason for the last failed attempt.
    problem = models.TextField(blank=True, default="")

    class Meta:
        ordering = ["-id"]
        default_permissions = ()
        constraints = [
            models.CheckConstraint(name="message_has_one_end", condition=Q(sent_at=None) | Q(given_up_at=None))
        ]
        indexes = [
            models.Index(
                fields=["tries", "next_try_at"],
                condition=Q(sent_at=None, given_up_at=None),
                name="message_to_send",
            )
        ]

    def __str__(self) -> str:
        return f"{self.get_event_display()} by {self.get_channel_display()}"
