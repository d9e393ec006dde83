"""Pace: when the next request to a rate-limited part of an ODP account may start, over the whole fleet.

Slots are handed out by one row in PostgreSQL, evenly spaced. A burst allowance would let a late request and the
next burst meet in one second at ODP; even spacing with a small margin can't, as long as a slot that was missed is
given back for a new one. Emptying Redis changes nothing here.
"""

import time
from dataclasses import dataclass

from django.db import connection

from audiences.models import Install

# Slots are this much further apart than the rate asks for: at 10 a second, ten of them span 1.018 s.
MARGIN = 1.018
# A slot may be used this long after it opened, in seconds. With the time a request needs to get on its way it has
# to stay below what MARGIN leaves over in one second (18 ms at 10 a second), or two seconds could share a request.
TOLERANCE = 0.008
# Nobody stands in line longer than this: enough to keep the line full, not so long that it holds worker slots.
PATIENCE = 0.25
# Claiming, folding and encoding happen this long before the slot opens.
LEAD = 0.03

_RESERVE = """
INSERT INTO audiences_pace AS pace (install_id, endpoint, next_at)
VALUES (%(install)s, %(endpoint)s, clock_timestamp() + %(interval)s * interval '1 second')
ON CONFLICT (install_id, endpoint) DO UPDATE
    SET next_at = greatest(pace.next_at, clock_timestamp()) + %(interval)s * interval '1 second'
    WHERE pace.next_at <= clock_timestamp() + %(patience)s * interval '1 second'
RETURNING extract(epoch FROM next_at - clock_timestamp())::float8 - %(interval)s
"""


@dataclass(frozen=True)
class Slot:
    """Permission for one request between two moments of ``time.monotonic``."""

    opens_at: float
    closes_at: float

    def wait(self, *, lead: float = 0.0) -> None:
        time.sleep(max(0.0, self.opens_at - lead - time.monotonic()))

    @property
    def missed(self) -> bool:
        return time.monotonic() > self.closes_at


def reserve(install: Install, endpoint: str) -> Slot | None:
    """The next free slot, or None when enough others stand in line for theirs."""
    asked_at = time.monotonic()
    if not endpoint or not install.requests_per_second:
        return Slot(opens_at=asked_at, closes_at=float("inf"))
    with connection.cursor() as cursor:
        cursor.execute(
            _RESERVE,
            {
                "install": install.pk,
                "endpoint": endpoint,
                "interval": MARGIN / install.requests_per_second,
                "patience": PATIENCE,
            },
        )
        row = cursor.fetchone()
    if row is None:
        return None
    # PostgreSQL's clock was read between these two moments: open by the later one, close by the earlier.
    return Slot(opens_at=time.monotonic() + row[0], closes_at=asked_at + max(row[0], 0.0) + TOLERANCE)


def reserve_patiently(install: Install, endpoint: str, *, until: float) -> Slot | None:
    """The next free slot, standing in line until the moment ``until``; None when it came first."""
    while time.monotonic() < until:
        if (slot := reserve(install, endpoint)) is not None:
            return slot
        time.sleep(PATIENCE / 4)
    return None
