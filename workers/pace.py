"""The rate limit: when the next request to one limited part of an ODP account may start, for all workers together.

One row of PostgreSQL per install and endpoint is the schedule, so emptying Redis changes nothing here. ``gate_at`` is
the start of the next request; a worker takes it just before the first byte. ``line_at`` is the next place in the queue;
a drain takes one before it claims lanes, so that waiting makes its request fuller instead of holding lanes.
See docs/decisions/0013-rate-limit.md.
"""

import time
from datetime import datetime, timedelta
from typing import NamedTuple

from audiences import sql, tallies
from audiences.models import Install
from odp.mechanisms import limit_of
from outgoing.deadline import TooLateError

# Eleven starts span this many seconds in place of one. The 55 ms absorb what can bring two requests closer together:
# CATCH_UP_SECONDS, ON_TIME_SECONDS, and up to 37 ms of difference between two requests' way to ODP.
SPAN_SECONDS = 1.055
# A start that is late shifts the schedule only by what exceeds this.
CATCH_UP_SECONDS = 0.008
# Seconds after which a granted start isn't used, because its request would arrive too late; another one is taken.
ON_TIME_SECONDS = 0.010
# The longest wait in the queue. A drain that would wait longer gives its worker slot back.
PATIENCE_SECONDS = 0.25
# A drain claims, folds and encodes this long before its place.
LEAD_SECONDS = 0.08
# A moment further ahead than this was written before PostgreSQL's clock was set back, and is ignored.
FURTHEST_SECONDS = 10.0


class _Moment(NamedTuple):
    """The moment taken, and what the schedule is now; if ``taken`` is None, the next moment there is."""

    taken: datetime | None
    on_hold: bool
    seconds: float


_TAKE_PLACE = sql.beside(__file__, column="line_at", other="gate_at").query("take", _Moment._make, prepared=True)
_TAKE_START = sql.beside(__file__, column="gate_at", other="line_at").query("take", _Moment._make, prepared=True)


def line_up(install: Install, endpoint: str) -> bool:
    """Wait for a place in the queue. False at once when the next one is too far away, or the install is on hold."""
    if not _is_limited(install, endpoint):
        return True
    place = _take(_TAKE_PLACE, install, endpoint, patience=PATIENCE_SECONDS)
    if place.taken:
        time.sleep(max(0.0, place.seconds - LEAD_SECONDS))
    return place.taken is not None


def jump_line(install: Install, endpoint: str) -> None:
    """Take a place without waiting, for a further request of a drain that holds lanes. Otherwise another drain would
    claim lanes for that place, and requests would wait at the gate until their leases expire."""
    if _is_limited(install, endpoint):
        _take(_TAKE_PLACE, install, endpoint, patience=FURTHEST_SECONDS)


def pass_gate(install: Install, path: str, until: float) -> None:
    """Return when one request may start. Raises ``TooLateError`` at ``until``, or when the install is on hold.

    If PostgreSQL is slow twice, this start may be late, and the next one is later by as much.
    """
    began, endpoint, on_time, unused = time.monotonic(), limit_of(path), ON_TIME_SECONDS, None
    while _is_limited(install, endpoint):
        asked_at = time.monotonic()
        if asked_at >= until:
            raise TooLateError
        start = _take(_TAKE_START, install, endpoint, later=on_time - ON_TIME_SECONDS, unused=unused)
        took = time.monotonic() - asked_at
        if start.taken and took <= on_time:
            tallies.RATE_LIMIT_SECONDS.add(install.public_id, amount=time.monotonic() - began)
            return
        if start.on_hold:
            raise TooLateError
        if start.taken:
            on_time, unused = 2 * took if unused else on_time, start.taken
        else:
            time.sleep(max(0.0, min(start.seconds, until - time.monotonic())))


def _is_limited(install: Install, endpoint: str) -> bool:
    """Whether requests have a rate limit; ``endpoint`` is empty where ODP documents none, as for events."""
    return bool(endpoint and install.requests_per_second)


def _take(
    statement: sql.Statement[_Moment],
    install: Install,
    endpoint: str,
    *,
    patience: float = 0.0,
    later: float = 0.0,
    unused: datetime | None = None,
) -> _Moment:
    moment = statement.run(
        install=install.pk,
        endpoint=endpoint,
        interval=timedelta(seconds=SPAN_SECONDS / install.requests_per_second + later),
        catch_up=timedelta(seconds=CATCH_UP_SECONDS),
        patience=timedelta(seconds=patience),
        furthest=timedelta(seconds=FURTHEST_SECONDS),
        unused=unused,
    ).one()
    return moment or _Moment(taken=None, on_hold=True, seconds=0.0)
