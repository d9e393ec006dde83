"""Pace: when the next request to a rate-limited part of an ODP account may start, over the whole fleet.

Two moments in one row of PostgreSQL. The line gives each drain a place before it claims lanes, so that waiting makes
requests fuller instead of holding lanes. The gate is asked in the moment before the first byte and spaces requests
evenly; a burst allowance would let a late request and the next burst meet in one second at ODP. Emptying Redis
changes nothing here.
"""

import time

from django.db import connection

from audiences.models import Install

# Requests are this much further apart than the rate asks for: at 10 a second, ten of them span 1.018 s.
MARGIN = 1.018
# Permission is void after so many seconds. With the way to ODP it has to stay below what MARGIN leaves over in one
# second (18 ms), or two seconds could share a request.
FRESH = 0.012
# Nobody stands in line longer than this: enough to keep the line full, not so long that it holds worker slots.
PATIENCE = 0.25
# Claiming, folding and encoding start this long before one's place comes up.
LEAD = 0.04

_LINE_UP = """
INSERT INTO audiences_pace AS pace (install_id, endpoint, line_at, gate_at)
VALUES (%(install)s, %(endpoint)s, clock_timestamp() + %(interval)s * interval '1 second', clock_timestamp())
ON CONFLICT (install_id, endpoint) DO UPDATE
    SET line_at = greatest(pace.line_at, clock_timestamp()) + %(interval)s * interval '1 second'
    WHERE pace.line_at <= clock_timestamp() + %(patience)s * interval '1 second'
RETURNING extract(epoch FROM line_at - clock_timestamp())::float8 - %(interval)s
"""

_JUMP_LINE = """
UPDATE audiences_pace SET line_at = greatest(line_at, clock_timestamp()) + %(interval)s * interval '1 second'
WHERE install_id = %(install)s AND endpoint = %(endpoint)s
"""

_TAKE_TURN = """
UPDATE audiences_pace SET gate_at = clock_timestamp() + %(interval)s * interval '1 second'
WHERE install_id = %(install)s AND endpoint = %(endpoint)s AND gate_at <= clock_timestamp()
"""

_GATE_OPENS_IN = """
SELECT extract(epoch FROM gate_at - clock_timestamp())::float8 FROM audiences_pace
WHERE install_id = %(install)s AND endpoint = %(endpoint)s
"""


def has_limit(install: Install, endpoint: str) -> bool:
    """Whether requests to this part of ODP are paced at all: ODP documents no limit for events."""
    return bool(endpoint and install.requests_per_second)


def line_up(install: Install, endpoint: str) -> bool:
    """Wait for a place in line; False, at once, when enough others stand in it."""
    if not has_limit(install, endpoint):
        return True
    with connection.cursor() as cursor:
        cursor.execute(_LINE_UP, {**_row(install, endpoint), "patience": PATIENCE})
        row = cursor.fetchone()
    if row is None:
        return False
    time.sleep(max(0.0, row[0] - LEAD))
    return True


def jump_line(install: Install, endpoint: str) -> None:
    """Take a place without waiting, for a further request of a drain that holds lanes already.

    Whoever would line up behind waits for it: else each lease that takes many requests would be joined at the gate
    by one more, until all of them together wait longer than a lease lasts.
    """
    if has_limit(install, endpoint):
        with connection.cursor() as cursor:
            cursor.execute(_JUMP_LINE, _row(install, endpoint))


def pass_gate(install: Install, endpoint: str) -> None:
    """Return in a moment at which one request may start; it has to start within ``FRESH`` seconds of the answer.

    A worker that was held up between PostgreSQL's answer and here asks again: its permission may have gone stale.
    """
    while has_limit(install, endpoint):
        asked_at = time.monotonic()
        with connection.cursor() as cursor:
            cursor.execute(_TAKE_TURN, _row(install, endpoint))
            if cursor.rowcount and time.monotonic() - asked_at <= FRESH:
                return
            cursor.execute(_GATE_OPENS_IN, _row(install, endpoint))
            row = cursor.fetchone()
        time.sleep(max(0.0, row[0] if row else 0.0))


def _row(install: Install, endpoint: str) -> dict[str, int | float | str]:
    return {"install": install.pk, "endpoint": endpoint, "interval": MARGIN / max(1, install.requests_per_second)}
