"""How many events wait, per install: a sum over lanes, never a count over events."""

import time

from django.conf import settings
from django.db.models import F, Sum

from audiences.models import Lane

# How long a web process may use a number it has read, in seconds. The mark is in millions; it can wait that long.
FRESH_SECONDS = 1.0

_read_at: dict[int, tuple[float, int]] = {}


def of(install_id: int) -> int:
    """Events accepted and not yet delivered."""
    lanes = Lane.objects.filter(audience__install_id=install_id)
    total = lanes.aggregate(waiting=Sum(F("audience__last_sequence") - F("delivered_sequence")))["waiting"]
    return int(total or 0)


def is_too_high(install_id: int) -> bool:
    """Whether the install is over the high-water mark, by a number not older than a second."""
    read_at, waiting = _read_at.get(install_id, (-FRESH_SECONDS, 0))
    if time.monotonic() - read_at >= FRESH_SECONDS:
        waiting = of(install_id)
        _read_at[install_id] = time.monotonic(), waiting
    return waiting > settings.BACKLOG_HIGH_WATER
