"""Messages about troubles: queued together with the change of the trouble, sent until their channel accepts them.

A worker claims a message before sending it and marks it sent afterwards. If the worker stops in between, another worker
sends it again with the same ``webhook_id``: each channel gets every message at least once.
"""

import json
import smtplib
import time
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.db.models import Exists, Min, OuterRef, Sum
from django.utils.timezone import now

from audiences.models import Trouble, TroubleMessage
from audiences.operations.mail_backend import PartlyRefusedError
from outgoing import webhooks
from outgoing.network_errors import words_for

log = structlog.get_logger(__name__)


class Result(NamedTuple):
    """Whether the channel accepted the message, and what was wrong. An accepted e-mail may not reach all addresses."""

    is_accepted: bool
    problem: str = ""


Channel, Kind = TroubleMessage.Channel, TroubleMessage.Event
# Seconds for one request to a channel.
SECONDS = 10.0
# The duration of a claim. A message whose worker stopped is sent again afterwards.
CLAIM = timedelta(seconds=60)
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=30), timedelta(hours=1)
# The age after which a message is given up. A message about an open trouble is tried on, at the longest pause.
GIVE_UP_AFTER = timedelta(hours=24)
# The attempts and the time after which a channel counts as failing. One message is tried five times in that time; of
# several, each is tried less often.
FAILING_AFTER, FAILING_FOR = 5, timedelta(minutes=7)
_WORDS = {Kind.OPENED: "Trouble", Kind.RESOLVED: "Resolved", Kind.TEST: "Test"}


def channels() -> list[TroubleMessage.Channel]:
    """Return the channels that the settings configure."""
    named = {
        Channel.EMAIL: settings.ALERT_EMAILS,
        Channel.SLACK: settings.ALERT_SLACK_URL,
        Channel.WEBHOOK: settings.ALERT_WEBHOOK_URL,
    }
    return [channel for channel, setting in named.items() if setting]


def queue(
    trouble: Trouble, event: TroubleMessage.Event, *, at: datetime, not_before: datetime | None = None
) -> list[TroubleMessage]:
    """Queue one message for each channel, in the caller's transaction."""
    if event == Kind.OPENED:
        # A channel that was away would get the news of a return before the message that the trouble is resolved, and
        # the news that it got worse would wait for the older one's next attempt.
        open_ones = TroubleMessage.objects.filter(sent_at=None, given_up_at=None)
        outdated = open_ones.filter(trouble__key=trouble.key, channel__in=channels())
        outdated.update(given_up_at=at, problem="a newer message about the trouble replaces it")
    return _queue(trouble, event, content_of(trouble), at=at, due=not_before or at, to=channels())


def queue_test(
    only: Collection[TroubleMessage.Channel] | None = None, *, delay: timedelta = timedelta()
) -> list[TroubleMessage]:
    """Queue a test message for each channel, or for those in ``only``. Workers send it after ``delay``."""
    content = {
        "what": "This is a test alert",
        "why": "A person asked for it. Nothing is wrong.",
        "todo": "",
        "tone": "held",
        "url": settings.PUBLIC_URL,
    }
    at = now()
    return _queue(None, Kind.TEST, content, at=at, due=at + delay, to=channels() if only is None else only)


def _queue(
    trouble: Trouble | None,
    event: TroubleMessage.Event,
    content: dict[str, Any],
    *,
    at: datetime,
    due: datetime,
    to: Collection[TroubleMessage.Channel],
) -> list[TroubleMessage]:
    return TroubleMessage.objects.bulk_create(
        TroubleMessage(trouble=trouble, event=event, channel=channel, content=content, created_at=at, next_try_at=due)
        for channel in to
    )


def content_of(trouble: Trouble) -> dict[str, Any]:
    return {
        "key": trouble.key,
        "kind": trouble.kind,
        "install": str(trouble.install) if trouble.install else None,
        "tone": trouble.tone,
        "what": trouble.what,
        "why": trouble.why,
        "todo": trouble.todo,
        "since": trouble.since_at.isoformat(),
        "url": f"{settings.PUBLIC_URL}{trouble.path}",
    }


def send_due(*, seconds: float, at: datetime | None = None) -> int:
    """Send due messages for some seconds. Returns the number accepted. A channel that fails is skipped in this run."""
    ends_at, failed, sent = time.monotonic() + seconds, set[str](), 0
    while time.monotonic() < ends_at and (message := _claim(at or now(), without=failed)) is not None:
        if send(message, at=at):
            sent += 1
        else:
            failed.add(message.channel)
    return sent


def _claim(at: datetime, *, without: set[str]) -> TroubleMessage | None:
    """Claim the next message, so that no other worker sends it. A channel gets the messages of one trouble in order."""
    open_ones = TroubleMessage.objects.filter(sent_at=None, given_up_at=None)
    earlier = open_ones.filter(trouble=OuterRef("trouble"), channel=OuterRef("channel"), pk__lt=OuterRef("pk"))
    due = open_ones.filter(~Exists(earlier), next_try_at__lte=at).exclude(channel__in=without)
    with transaction.atomic():
        message = due.select_for_update(skip_locked=True, of=("self",)).order_by("tries", "next_try_at", "pk").first()
        if message is not None:
            message.tries += 1
            message.next_try_at = at + CLAIM
            message.save(update_fields=["tries", "next_try_at"])
    return message


def send(message: TroubleMessage, *, at: datetime | None = None) -> bool:
    """Try to send the message, and store the result. Returns whether the channel accepted it. Tests aren't retried."""
    result = _try(message)
    at = at or now()
    changes: dict[str, Any] = {"problem": result.problem}
    if result.is_accepted:
        changes["sent_at"] = at
    elif message.event == Kind.TEST or (at - message.created_at >= GIVE_UP_AFTER and not _is_needed(message)):
        changes["given_up_at"] = at
    else:
        changes["next_try_at"] = at + min(FIRST_PAUSE * 2 ** min(message.tries - 1, 10), LONGEST_PAUSE)
    # After this claim has ended, another worker may have sent the message; its result is kept.
    TroubleMessage.objects.filter(pk=message.pk, sent_at=None, given_up_at=None).update(**changes)
    message.problem = result.problem
    if not result.is_accepted:
        is_over = "given_up_at" in changes
        log.warning("an alert could not be sent", channel=message.channel, reason=result.problem, given_up=is_over)
        return False
    _end_pauses(message.channel, at)
    if result.problem:
        log.warning("an alert was not sent to all addresses", channel=message.channel, reason=result.problem)
    return True


def _end_pauses(channel: str, at: datetime) -> None:
    """The channel accepts messages again: send those that it rejected before. Shorter waits may be another's claim."""
    waiting = TroubleMessage.objects.filter(channel=channel, sent_at=None, given_up_at=None).exclude(problem="")
    waiting.filter(next_try_at__gt=at + CLAIM).update(next_try_at=at)


def _is_needed(message: TroubleMessage) -> bool:
    """Whether it says that a trouble has begun which is still open. No other message would say so later."""
    if message.event != Kind.OPENED or message.channel not in channels():
        return False
    return Trouble.objects.filter(messages=message.pk, resolved_at=None).exists()


def failing() -> list[TroubleMessage]:
    """The oldest message of each channel that has rejected the news of troubles ``FAILING_AFTER`` times."""
    if not (named := channels()):
        return []
    waiting = TroubleMessage.objects.filter(sent_at=None, given_up_at=None, event=Kind.OPENED, channel__in=named)
    rejected = waiting.exclude(problem="")
    by_channel = rejected.order_by().values("channel").annotate(attempts=Sum("tries"), oldest_at=Min("created_at"))
    failed = by_channel.filter(attempts__gte=FAILING_AFTER, oldest_at__lte=now() - FAILING_FOR).values("channel")
    return list(rejected.filter(channel__in=failed).order_by("channel", "pk").distinct("channel"))


def _try(message: TroubleMessage) -> Result:
    """Send the message."""
    if message.channel not in channels():
        return Result(False, "the settings no longer name this channel")
    if message.channel == Channel.EMAIL:
        return _mail(message)
    problem = _post(message)
    return Result(not problem, problem)


def _post(message: TroubleMessage) -> str:
    """Send the message to its webhook. Returns why that didn't accept it; empty when it did."""
    if message.channel == Channel.SLACK:
        body = json.dumps({"text": _for_slack(message)}).encode()
        return webhooks.post(settings.ALERT_SLACK_URL, body, name="ALERT_SLACK_URL", seconds=SECONDS)
    event = {"type": message.event, "timestamp": message.created_at.isoformat(), "data": message.content}
    body, webhook_id = json.dumps(event).encode(), f"msg_{message.webhook_id.hex}"
    try:
        headers = webhooks.signed(webhook_id, body, secret=settings.ALERT_WEBHOOK_SECRET, at=int(time.time()))
    except ValueError:
        return "ALERT_WEBHOOK_SECRET is not usable"
    return webhooks.post(settings.ALERT_WEBHOOK_URL, body, headers=headers, name="ALERT_WEBHOOK_URL", seconds=SECONDS)


def _mail(message: TroubleMessage) -> Result:
    content = message.content
    subject = " ".join(f"[Lytics Sync] {_WORDS[Kind(message.event)]}: {content['what']}".split())
    lines = [content["what"], content["why"], content["todo"], content["url"]]
    mail = EmailMessage(
        subject=subject,
        body="\n\n".join(line for line in lines if line),
        to=settings.ALERT_EMAILS,
        headers={"Message-ID": f"<{message.webhook_id.hex}@lytics-sync.invalid>"},
    )
    try:
        mail.send()
    except PartlyRefusedError as error:
        # It isn't sent again, because the other addresses would get it again and again.
        many = f"{error.refused} of the {len(settings.ALERT_EMAILS)} addresses in ALERT_EMAILS"
        return Result(True, f"the mail server rejects {many}; the others got it")
    except OSError as error:
        return Result(False, mail_problem(error))
    except ValueError:  # an address, or a host name, that no mail can have
        return Result(False, "ALERT_EMAILS, DEFAULT_FROM_EMAIL or EMAIL_HOST can't be used")
    return Result(True)


def mail_problem(error: OSError) -> str:
    """The reason for a rejected mail, without the server's own text, which may contain addresses."""
    match error:
        case smtplib.SMTPAuthenticationError():
            return "the mail server rejects EMAIL_HOST_USER or EMAIL_HOST_PASSWORD"
        case smtplib.SMTPRecipientsRefused():
            return "the mail server rejects the addresses"
        case smtplib.SMTPResponseException():
            return f"the mail server answered {error.smtp_code}"
        # smtplib reports a timeout as a lost connection.
        case smtplib.SMTPException() if not isinstance(error.__context__, TimeoutError):
            return "the mail server broke off"
    return words_for(error, server="the mail server", address="EMAIL_HOST")


def _for_slack(message: TroubleMessage) -> str:
    content = {name: _escaped(str(value)) for name, value in message.content.items()}
    lines = [f"*{_WORDS[Kind(message.event)]}:* {content['what']}", content["why"], content["todo"]]
    return "\n".join([*(line for line in lines if line), f"<{content['url']}|Open>"])


def _escaped(text: str) -> str:
    """Escape the three characters that Slack reads as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
