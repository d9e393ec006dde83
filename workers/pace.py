"""Pace: when the next request to a rate-limited part of an ODP account may start, over the whole fleet.

Two moments in one row of PostgreSQL. The line gives each drain a place before it claims lanes, so that waiting makes
requests fuller instead of holding lanes. The gate is asked in the moment before the first byte and spaces requests
evenly; a burst allowance would let a late request and the next burst meet in one second at ODP. Emptying Redis
changes nothing here.
"""

import time

from django.db import connection

from audiences.models import Install
from odp.client import limit_of
from odp.deadline import TooLateError

# Requests are this much further apart than the rate asks for: at 10 a second, ten of them span 1.05 s. With 1.018 a
# receiver on a busy machine counted eleven in one second: a body takes its time to be sent, and to be read.
MARGIN = 1.05
# Permission is void after so many seconds. With the way to ODP it has to stay below what MARGIN leaves over in one
# second (50 ms), or two seconds could share a request.
FRESH = 0.012
# Where PostgreSQL answers more slowly than that, permissions live longer and the next request waits longer by as
# much, up to so many seconds: slower, and still never one too many in a second.
LONGEST_FRESH = 1.0
# Nobody stands in line longer than this: enough to keep the line full, not so long that it holds worker slots.
PATIENCE = 0.25
# Claiming, folding and encoding start this long before one's place comes up.
LEAD = 0.04

# A moment further ahead than anybody can have put it was written before PostgreSQL's clock was set back.
_LINE_UP = """
INSERT INTO audiences_pace AS pace (install_id, endpoint, line_at, gate_at)
VALUES (%(install)s, %(endpoint)s, clock_timestamp() + %(interval)s * interval '1 second', clock_timestamp())
ON CONFLICT (install_id, endpoint) DO UPDATE
    SET line_at = CASE WHEN pace.line_at BETWEEN clock_timestamp() AND clock_timestamp() + interval '1 minute'
        THEN pace.line_at ELSE clock_timestamp() END + %(interval)s * interval '1 second'
    WHERE pace.line_at <= clock_timestamp() + %(patience)s * interval '1 second'
        OR pace.line_at > clock_timestamp() + interval '1 minute'
RETURNING extract(epoch FROM line_at - clock_timestamp())::float8 - %(interval)s
"""

_JUMP_LINE = """
UPDATE audiences_pace SET line_at = greatest(line_at, clock_timestamp()) + %(interval)s * interval '1 second'
WHERE install_id = %(install)s AND endpoint = %(endpoint)s
"""

# The time is read again under the row's lock: what stands in the SELECT was read before waiting for it.
_TAKE_TURN = """
INSERT INTO audiences_pace AS pace (install_id, endpoint, line_at, gate_at)
SELECT id, %(endpoint)s, clock_timestamp(), clock_timestamp() + %(interval)s * interval '1 second'
FROM audiences_install WHERE id = %(install)s AND (brake_until_at IS NULL OR brake_until_at <= clock_timestamp())
ON CONFLICT (install_id, endpoint) DO UPDATE SET gate_at = clock_timestamp() + %(interval)s * interval '1 second'
    WHERE pace.gate_at <= clock_timestamp() OR pace.gate_at > clock_timestamp() + interval '5 seconds'
"""

_WHY_NOT = """
SELECT coalesce(install.brake_until_at > clock_timestamp(), false),
    extract(epoch FROM pace.gate_at - clock_timestamp())::float8
FROM audiences_install AS install
LEFT JOIN audiences_pace AS pace ON pace.install_id = install.id AND pace.endpoint = %(endpoint)s
WHERE install.id = %(install)s
"""

# How long a permission lives in this process; it follows PostgreSQL's speed.
_fresh = FRESH


def has_limit(install: Install, path: str) -> bool:
    """Whether requests to this part of ODP are paced at all: ODP documents no limit for events."""
    return bool(limit_of(path) and install.requests_per_second)


def line_up(install: Install, path: str) -> bool:
    """Wait for a place in line; False, at once, when enough others stand in it."""
    if not has_limit(install, path):
        return True
    with connection.cursor() as cursor:
        cursor.execute(_LINE_UP, {**_row(install, path), "patience": PATIENCE})
        row = cursor.fetchone()
    if row is None:
        return False
    time.sleep(max(0.0, row[0] - LEAD))
    return True


def jump_line(install: Install, path: str) -> None:
    """Take a place without waiting, for a further request of a drain that holds lanes already.

    Whoever would line up behind waits for it: else each lease that takes many requests would be joined at the gate
    by one more, until all of them together wait longer than a lease lasts.
    """
    if has_limit(install, path):
        with connection.cursor() as cursor:
            cursor.execute(_JUMP_LINE, _row(install, path))


def pass_gate(install: Install, path: str, until: float) -> None:
    """Return in a moment at which one request may start. Raises ``TooLateError``: at ``until``, or under a brake.

    A worker that was held up between PostgreSQL's answer and here asks again: its permission may have gone stale. One
    that stood here while another request was told to come back later must not go before that.
    """
    while has_limit(install, path):
        asked_at, lives = time.monotonic(), _fresh
        if asked_at >= until:
            raise TooLateError
        with connection.cursor() as cursor:
            cursor.execute(_TAKE_TURN, _row(install, path, later=lives - FRESH))
            if cursor.rowcount:
                took = time.monotonic() - asked_at
                _follow(took)
                if took <= lives:
                    return
            cursor.execute(_WHY_NOT, _row(install, path))
            braked, opens_in = cursor.fetchone() or (True, None)
        if braked:
            raise TooLateError
        time.sleep(min(max(0.0, opens_in or 0.0), max(0.0, until - time.monotonic())))


def _follow(took: float) -> None:
    """Permissions live longer than PostgreSQL has just taken to give one, and shorten again step by step."""
    global _fresh
    _fresh = min(LONGEST_FRESH, max(FRESH, 1.5 * took, 0.9 * _fresh))


def _row(install: Install, path: str, *, later: float = 0.0) -> dict[str, int | float | str]:
    interval = MARGIN / max(1, install.requests_per_second) + later
    return {"install": install.pk, "endpoint": limit_of(path), "interval": interval}
