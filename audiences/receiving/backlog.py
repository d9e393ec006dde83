"""How many events wait, per install: a sum over lanes, never a count over events."""

import time

from django.conf import settings
from django.db.models import F, Q, Sum

from audiences.models import Lane
from audiences.receiving import disk_usage

# A resend pauses while more than this many events of its audience wait: enough to keep requests full until the next
# sweep, and few enough that a new change isn't minutes late.
AHEAD = 20_000

# How long a web process may use a number it has read, in seconds. The mark is in millions; it can wait that long.
FRESH_SECONDS = 1.0

_read_at: dict[int, tuple[float, int]] = {}


# Lanes whose last delivery failed with an unexpected error of this service.
FAULTY = Q(fault_since_at__isnull=False)
# Retired lanes, whose events wait until a person takes the audience back.
RETIRED = Q(retired_at__isnull=False)
# Lanes that deliver nothing until a person acts, until an error of ours is over, or until their audience can be made.
HELD = Q(blocked_at__isnull=False) | Q(paused_at__isnull=False) | RETIRED | FAULTY
# Condition on lanes: blocked, and not set aside since. The same rule as ``state.is_set_aside``.
BLOCKED = Q(blocked_at__isnull=False) & (Q(paused_at=None) | Q(paused_at__lt=F("blocked_at")))
# Paused and not blocked, or blocked and set aside since: no lane is both this and ``BLOCKED``.
PAUSED = Q(paused_at__isnull=False) & (Q(blocked_at=None) | Q(paused_at__gte=F("blocked_at")))
CAN_NOT_BE_MADE = Q(audience__provisioned_at=None, audience__hold_failures__gt=0)


def of(install_id: int) -> int:
    """Events accepted and not yet delivered, without those of held audiences, which don't delay the others.

    Waiting events only use space in the log, whose size DATABASE_HIGH_WATER_BYTES limits.
    """
    lanes = Lane.objects.filter(audience__install_id=install_id).exclude(HELD | CAN_NOT_BE_MADE)
    total = lanes.aggregate(waiting=Sum(F("audience__last_sequence") - F("delivered_sequence")))["waiting"]
    return int(total or 0)


def of_audience(audience_id: int) -> int:
    waiting = F("audience__last_sequence") - F("delivered_sequence")
    return int(Lane.objects.filter(pk=audience_id).values_list(waiting, flat=True).first() or 0)


def room(install_id: int, audience_id: int | None) -> tuple[int, str]:
    """How many events a resend may append now; with 0, why none. Half of the mark is kept for what Lytics sends."""
    if audience_id is not None and (waiting := of_audience(audience_id)) > AHEAD:
        return 0, f"{waiting:,} events of this audience are yet to be delivered; more follow below {AHEAD:,}"
    if disk_usage.is_too_full():
        return 0, "the database has reached DATABASE_HIGH_WATER_BYTES, and this would make it larger"
    left = int(settings.BACKLOG_HIGH_WATER) // 2 - of(install_id)
    return (left, "") if left > 0 else (0, "the install's backlog is at half of its high-water mark")


def is_too_high(install_id: int) -> bool:
    """Whether the install is over the high-water mark, by a number not older than a second."""
    read_at, waiting = _read_at.get(install_id, (-FRESH_SECONDS, 0))
    if time.monotonic() - read_at >= FRESH_SECONDS:
        waiting = of(install_id)
        _read_at[install_id] = time.monotonic(), waiting
    return waiting > settings.BACKLOG_HIGH_WATER
