"""The life of each trouble: found, notified, resolved, muted. ``front/troubles.py`` defines the troubles.

Channels are notified of a trouble once, and again when it turns from held to bad. A trouble is resolved after two
checks in a row, at least ``RESOLVED_AFTER`` apart, didn't find it. Its resolution is sent if the trouble was.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from django.conf import settings
from django.db import transaction
from django.db.models import BooleanField, Count, ExpressionWrapper, Q, Value
from django.db.models.functions import Coalesce
from django.utils.timezone import now

from audiences import quiet_hours
from audiences.delivery import drafts
from audiences.models import Trouble, TroubleMessage
from audiences.operations import alert_messages
from odp import redact

# Beat checks every 60 s. Checks that queued up while no worker ran follow each other at once.
RESOLVED_AFTER = timedelta(seconds=50)
# A trouble is flapping if it returned within ``FLAPPING`` after it was resolved. Each resolution and each return sends
# a message, so a flapping trouble is resolved only when it has been gone for ``FLAPPING_RESOLVED_AFTER``.
FLAPPING, FLAPPING_RESOLVED_AFTER = timedelta(hours=1), timedelta(minutes=15)
# Messages name at most this many troubles of a kind at once. A trouble with the cause ``REST`` is about all others.
NAMED = 10
REST = "all others"


@dataclass(frozen=True)
class Seen:
    """One trouble as a check found it. ``path`` leads to the page with the button that resolves it."""

    kind: str
    what: str
    path: str
    install: int | None = None
    cause: str = ""
    why: str = ""
    todo: str = ""
    tone: str = "bad"
    since_at: datetime | None = None

    @property
    def key(self) -> str:
        """It ends with a digest of the cause, which may be a text of any length."""
        return f"{self.kind}/{self.install or 0}{_digest(self.cause)}"


def _digest(cause: str) -> str:
    return f"/{hashlib.sha256(cause.encode()).hexdigest()[:16]}"


_REST_DIGEST = _digest(REST)


def check(seen: Iterable[Seen], *, unknown: Collection[str] = (), at: datetime | None = None) -> None:
    """Store the troubles found, resolve those no longer found, and queue their messages, in one transaction.

    Troubles of the kinds in ``unknown`` aren't resolved: this check couldn't look for them.
    """
    at = at or now()
    found = _merged(seen)
    with transaction.atomic():
        _open(found, at)
        # Concurrent checks wait for each other here, and each reads what the previous one stored.
        unresolved = list(
            Trouble.objects.select_related("install")
            .select_for_update(of=("self",))
            .filter(resolved_at=None)
            .order_by("pk")
        )
        named = Counter(trouble.kind for trouble in unresolved if trouble.notified_at and not is_rest(trouble))
        for trouble in unresolved:
            if (one := found.get(trouble.key)) is not None:
                _note(trouble, one, at)
                if trouble.notified_at or is_rest(trouble) or named[trouble.kind] < NAMED:
                    named[trouble.kind] += _notify(trouble, at)
            elif trouble.kind not in unknown:
                _miss(trouble, at)
            trouble.save()


def _merged(seen: Iterable[Seen]) -> dict[str, Seen]:
    """Merge troubles of one kind, install and cause into one, preferably one with the tone "bad"."""
    alike: dict[str, list[Seen]] = {}
    for one in seen:
        alike.setdefault(one.key, []).append(one)
    return {key: _for_all(ones) for key, ones in alike.items()}


def _for_all(ones: list[Seen]) -> Seen:
    first = next((one for one in ones if one.tone == "bad"), ones[0])
    more = f", and {len(ones) - 1} more like it" if len(ones) > 1 else ""
    return Seen(**{**vars(first), "what": redact.words(first.what) + more, "why": redact.words(first.why)})


def _open(found: dict[str, Seen], at: datetime) -> None:
    """Create the new troubles, without those of installs deleted since the check began. A trouble that comes back while
    its mute lasts stays muted.
    """
    known = set(Trouble.objects.filter(resolved_at=None, key__in=found).values_list("key", flat=True))
    new = [one for key, one in found.items() if key not in known]
    kept = drafts.keep({one.install for one in new if one.install is not None})
    new = [one for one in new if one.install is None or one.install in kept]
    muted = {
        trouble.key: trouble
        for trouble in Trouble.objects.filter(key__in=[one.key for one in new], muted_until__gt=at).order_by("pk")
    }
    made = []
    for one in new:
        before = muted.get(one.key)
        made.append(
            Trouble(
                key=one.key,
                install_id=one.install,
                kind=one.kind,
                what=one.what,
                tone=one.tone,
                path=one.path,
                since_at=one.since_at or at,
                first_seen_at=at,
                last_seen_at=at,
                muted_until=before.muted_until if before else None,
                muted_by=before.muted_by if before else "",
                mute_reason=before.mute_reason if before else "",
            )
        )
    # A concurrent check may have created the same trouble.
    Trouble.objects.bulk_create(made, ignore_conflicts=True)


def _note(trouble: Trouble, one: Seen, at: datetime) -> None:
    trouble.what, trouble.why, trouble.todo = one.what, one.why, one.todo
    trouble.tone, trouble.path = one.tone, one.path
    trouble.last_seen_at, trouble.gone_at = at, None


def is_rest(trouble: Trouble) -> bool:
    """Whether it is about all troubles of its kind that messages don't name."""
    return trouble.key.endswith(_REST_DIGEST)


def _notify(trouble: Trouble, at: datetime) -> bool:
    """Queue messages if it is time for them. Returns whether these are the first about the trouble."""
    is_new, is_worse = trouble.notified_at is None, trouble.tone == "bad" and trouble.notified_tone != "bad"
    if not is_new and not is_worse:
        return False
    if trouble.muted_until is not None and trouble.muted_until > at:
        return False
    if trouble.tone != "bad" and quiet_hours.end_of(settings.ALERT_QUIET_HOURS, at) is not None:
        return False
    if not alert_messages.queue(trouble, TroubleMessage.Event.OPENED, at=at):
        return False
    trouble.notified_at, trouble.notified_tone = at, trouble.tone
    return is_new


def _miss(trouble: Trouble, at: datetime) -> None:
    if trouble.gone_at is None:
        trouble.gone_at = at
    elif at - trouble.gone_at >= (FLAPPING_RESOLVED_AFTER if _is_flapping(trouble) else RESOLVED_AFTER):
        trouble.resolved_at = at
        if trouble.notified_at is not None:
            quiet_until = quiet_hours.end_of(settings.ALERT_QUIET_HOURS, at) if trouble.notified_tone != "bad" else None
            alert_messages.queue(trouble, TroubleMessage.Event.RESOLVED, at=at, not_before=quiet_until)


def _is_flapping(trouble: Trouble) -> bool:
    """Whether the trouble was resolved in the last hour before it was found."""
    since = trouble.first_seen_at - FLAPPING
    return Trouble.objects.filter(key=trouble.key, resolved_at__gt=since).exists()


class Counted(NamedTuple):
    """Open troubles of one kind and install. ``install`` is its public id, empty for a trouble of none."""

    install: str
    kind: str
    is_bad: bool
    is_muted: bool
    troubles: int


def counted() -> list[Counted]:
    """The open troubles, as the newest check stored them, without those about the rest of a kind."""
    words = {"is_bad": Q(tone="bad"), "is_muted": Q(muted_until__isnull=False, muted_until__gt=now())}
    rows = (
        Trouble.objects.filter(resolved_at=None)
        .exclude(key__endswith=_REST_DIGEST)
        .order_by()
        .values(**{name: ExpressionWrapper(condition, BooleanField()) for name, condition in words.items()})
        .values_list(Coalesce("install__public_id", Value("")), "kind", *words, Count("pk"))
    )
    return [Counted._make(row) for row in rows]


def mute(trouble: Trouble, *, hours: int, by: str, reason: str = "") -> bool:
    """Send no new messages about the trouble for some hours, even if it comes back. False when it is resolved."""
    until = now() + timedelta(hours=hours)
    found = Trouble.objects.filter(pk=trouble.pk, resolved_at=None)
    return bool(found.update(muted_until=until, muted_by=by, mute_reason=reason))


def unmute(trouble: Trouble) -> bool:
    """End the mute. The next check sends a message if the trouble lasts and none was sent."""
    found = Trouble.objects.filter(key=trouble.key, muted_until__gt=now())
    return bool(found.update(muted_until=None, muted_by="", mute_reason=""))
