"""Memberships with a transition time ahead of the clock. Only earlier versions of this service stored such times.

The customer's next real event decides in spite of this time (``fold.disbelieve``). Until then *Now* counts them.
"""

from datetime import datetime
from typing import NamedTuple

from audiences import sql
from audiences.delivery.leases import latest_ns_of_database
from lytics import times

# Counted up to this number, because *Now* counts them on each view.
COUNTED = 10_000


class Stored(NamedTuple):
    memberships: int
    furthest: datetime
    since: datetime


class Row(NamedTuple):
    """``furthest_ns`` and ``since`` are None when there are no such memberships."""

    memberships: int
    furthest_ns: int | None
    since: datetime | None


_STORED = sql.beside(__file__).query("stored_future_times", Row._make)


def stored() -> Stored | None:
    """The number of memberships with a time ahead of the clock, the furthest time, and when the first one arrived."""
    row = _STORED.run(latest_ns=latest_ns_of_database(), counted=COUNTED).one()
    if row is None or row.furthest_ns is None or row.since is None:
        return None
    return Stored(row.memberships, times.moment(row.furthest_ns), row.since)
