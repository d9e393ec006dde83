"""The rhythm of each install's calls: how long Lytics is usually quiet, and when it is quiet for too long.

Each pass adds the calls since the last one to the longest pause of their day. Rows of Minute don't show the pauses,
because they count calls of test customers too. The only writer of Rhythms.
"""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import NamedTuple

from django.db import transaction
from django.db.models import DateTimeField, F, OuterRef, Subquery, Value
from django.utils.timezone import now

from audiences import sql
from audiences.delivery import drafts
from audiences.insight import trials
from audiences.models import Install, Receipt, Rhythm

# The time before the newest call over which the longest pause is taken.
WINDOW = timedelta(days=14)
# The least time between the first and the newest call for a limit. With less, a quiet weekend would be reported.
LEARNED_AFTER = timedelta(days=7)
# The limit is this many times the longest pause, and at least ``SHORTEST``.
TIMES, SHORTEST = 3, timedelta(hours=1)
# The most calls of one install that a pass reads. The next pass continues after them.
CALLS = 20_000


class Pause(NamedTuple):
    install_id: int
    day: date
    seconds: float
    receipt: int
    first_at: datetime
    called_at: datetime


_NEW = sql.beside(__file__).query("new_pauses", Pause._make)


def learn(*, at: datetime | None = None) -> None:
    """Add the calls since the last pass to the Rhythms. A new Rhythm begins with the newest call."""
    at = at or now()
    _begin(at)
    rhythms = {rhythm.install_id: rhythm for rhythm in Rhythm.objects.all()}
    changed = {}
    for pause in _NEW.run(trial=trials.JOB, calls=CALLS).all():
        rhythm = rhythms.get(pause.install_id)
        if rhythm is None:  # a concurrent pass has created it since, and the next pass reads these calls
            continue
        day = pause.day.isoformat()
        rhythm.pauses[day] = max(rhythm.pauses.get(day, 0.0), pause.seconds)
        rhythm.receipt = max(rhythm.receipt, pause.receipt)
        rhythm.called_at = max(rhythm.called_at or pause.called_at, pause.called_at)
        rhythm.since_at = rhythm.since_at or pause.first_at
        oldest = (rhythm.called_at - WINDOW).date().isoformat()
        rhythm.pauses = {known: seconds for known, seconds in rhythm.pauses.items() if known >= oldest}
        changed[rhythm.pk] = rhythm
    Rhythm.objects.bulk_update(changed.values(), ["pauses", "receipt", "called_at", "since_at"])
    _leave_out_time_off(at)


def _leave_out_time_off(at: datetime) -> None:
    """The time in which an install is off is no pause of its sender, and not a time in which its rhythm shows."""
    off = Rhythm.objects.filter(install__enabled=False, called_at__lt=at)
    time_off = Value(at, DateTimeField()) - F("called_at")
    off.update(since_at=F("since_at") + time_off, called_at=at)


def _begin(at: datetime) -> None:
    newest = Receipt.objects.filter(install_id__gte=OuterRef("pk"), install_id__lte=OuterRef("pk"))
    newest = newest.exclude(job=trials.JOB).order_by("install_id", "-id")
    installs = Install.objects.filter(rhythm=None).annotate(newest_id=Subquery(newest.values("pk")[:1]))
    calls = {
        install_id: Receipt.objects.get(pk=newest_id) if newest_id else None
        for install_id, newest_id in installs.values_list("pk", "newest_id")
    }
    with transaction.atomic():
        kept = drafts.keep(calls)
        rhythms = [
            Rhythm(install_id=install_id, receipt=call.pk, called_at=call.received_at, since_at=at)
            if call is not None
            else Rhythm(install_id=install_id)
            for install_id, call in calls.items()
            if install_id in kept
        ]
        Rhythm.objects.bulk_create(rhythms, ignore_conflicts=True)


def limits(installs: Sequence[Install]) -> dict[int, timedelta]:
    """By install id, the pause beyond which the sender counts as silent; installs without a limit are left out.

    It is the limit that a person set, or else the learned one.
    """
    found = {rhythm.install_id: _limit(rhythm) for rhythm in Rhythm.objects.filter(install__in=installs)}
    for install in installs:
        if install.silence_limit_hours is not None:
            hours = install.silence_limit_hours
            found[install.pk] = timedelta(hours=hours) if hours else None
    return {pk: limit for pk, limit in found.items() if limit is not None}


def _limit(rhythm: Rhythm) -> timedelta | None:
    if rhythm.since_at is None or rhythm.called_at is None or rhythm.called_at - rhythm.since_at < LEARNED_AFTER:
        return None
    return max(SHORTEST, TIMES * timedelta(seconds=max(rhythm.pauses.values(), default=0.0)))
