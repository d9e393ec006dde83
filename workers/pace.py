"""The rate limit: when the next request to one limited part of an ODP account may start, for all workers together.

One row of PostgreSQL per install and endpoint is the schedule, so emptying Redis changes nothing here. ``gate_at`` is
the start of the next request; a worker takes it just before the first byte. ``line_at`` is the next place in the queue;
a drain takes one before it claims lanes, so that waiting makes its request fuller instead of holding lanes.
See docs/decisions/0013-rate-limit.md.
"""

import time
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from audiences import prepared_statements
from audiences.models import Install
from odp.deadline import TooLateError
from odp.mechanisms import limit_of

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

# {column} is the schedule, {other} the other one, %(unused)s what the schedule became when this worker took a moment
# that it didn't use. clock_timestamp() on conflict is read under the row's lock.
_TAKE = """
WITH taken AS (
    INSERT INTO audiences_pace AS pace (install_id, endpoint, {column}, {other}, passed, arrived)
    SELECT id, %(endpoint)s, clock_timestamp() + %(interval)s, clock_timestamp(), 0, '{{}}'
    FROM audiences_install
    WHERE id = %(install)s AND (brake_until_at IS NULL OR brake_until_at <= clock_timestamp())
    ON CONFLICT (install_id, endpoint) DO UPDATE SET {column} = %(interval)s + greatest(
        least(pace.{column}, clock_timestamp() + %(patience)s), clock_timestamp() - %(catch_up)s)
    WHERE pace.{column} NOT BETWEEN clock_timestamp() + %(patience)s AND clock_timestamp() + %(furthest)s
        OR pace.{column} = %(unused)s::timestamptz
    RETURNING {column} AS next_at
)
SELECT taken.next_at, coalesce(install.brake_until_at > clock_timestamp(), false), coalesce(extract(
    epoch FROM coalesce(taken.next_at - %(interval)s, pace.{column}) - clock_timestamp()), 0)::float8
FROM audiences_install AS install LEFT JOIN taken ON true
LEFT JOIN audiences_pace AS pace ON pace.install_id = install.id AND pace.endpoint = %(endpoint)s
WHERE install.id = %(install)s
"""
_TAKE_PLACE = _TAKE.format(column="line_at", other="gate_at")
_TAKE_START = _TAKE.format(column="gate_at", other="line_at")


class _Moment(NamedTuple):
    """The moment taken, and what the schedule is now; if ``taken`` is None, the next moment there is."""

    taken: datetime | None
    on_hold: bool
    seconds: float


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
    endpoint, on_time, unused = limit_of(path), ON_TIME_SECONDS, None
    while _is_limited(install, endpoint):
        asked_at = time.monotonic()
        if asked_at >= until:
            raise TooLateError
        start = _take(_TAKE_START, install, endpoint, later=on_time - ON_TIME_SECONDS, unused=unused)
        took = time.monotonic() - asked_at
        if start.taken and took <= on_time:
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
    statement: str,
    install: Install,
    endpoint: str,
    *,
    patience: float = 0.0,
    later: float = 0.0,
    unused: datetime | None = None,
) -> _Moment:
    values: dict[str, Any] = {
        "install": install.pk,
        "endpoint": endpoint,
        "interval": timedelta(seconds=SPAN_SECONDS / install.requests_per_second + later),
        "catch_up": timedelta(seconds=CATCH_UP_SECONDS),
        "patience": timedelta(seconds=patience),
        "furthest": timedelta(seconds=FURTHEST_SECONDS),
        "unused": unused,
    }
    with prepared_statements.cursor() as cursor:
        cursor.execute(statement, values)
        row = cursor.fetchone()
    return _Moment(*row) if row else _Moment(taken=None, on_hold=True, seconds=0.0)
