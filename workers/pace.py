"""Pace: when the next request to a rate-limited part of an ODP account may start, over the whole fleet.

One row of PostgreSQL. The line gives each drain a place before it claims lanes, so that waiting makes requests fuller
instead of holding lanes. The gate is asked in the moment before the first byte: it spaces requests evenly, and lets the
eleventh go only a second after the first has arrived, as far as its answer tells when that was. Emptying Redis changes
nothing here. See docs/decisions/0013-rate-limit.md.
"""

import threading
import time
from typing import Any, NamedTuple

from django.db import connection

from audiences import prepared_statements
from audiences.models import Install
from odp.deadline import TooLateError
from odp.mechanisms import limit_of

# Requests are this much further apart than the rate asks for, and the window over them is longer by so many seconds.
MARGIN = 1.004
SPARE = 0.003
# By when a request has arrived, in seconds after it was allowed, as long as its answer tells no better: with a way to
# ODP that is longer for one request than for another, and with a body that takes its time to be read.
ON_ITS_WAY = 0.05
# Permission is void after so many seconds; a request that leaves later would arrive later than was reckoned with.
FRESH = 0.012
# Where PostgreSQL answers more slowly than that, permissions live longer and the next request waits longer by as
# much, up to so many seconds: slower, and still never one too many in a second.
LONGEST_FRESH = 1.0
# Nobody stands in line longer than this: enough to keep the line full, not so long that it holds worker slots.
PATIENCE = 0.25
# Claiming, folding and encoding start this long before one's place comes up.
LEAD = 0.04
# Answers that are only looked at, before the quickest of them tells anything: the first one may itself have been late.
LEARNING = 10
# By so much, in seconds, the quickest answer is forgotten with each slower one: the way to ODP may have become longer.
FORGET = 0.0001

# A moment further ahead than anybody can have put it was written before PostgreSQL's clock was set back.
_LINE_UP = """
INSERT INTO audiences_pace AS pace (install_id, endpoint, line_at, gate_at, passed, arrived)
VALUES (%(install)s, %(endpoint)s, clock_timestamp() + %(interval)s * interval '1 second', clock_timestamp(), 0, '{}')
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

# The time is read again under the row's lock: what stands in the SELECT was read before waiting for it. Who is late by
# less than an interval doesn't make the next one late too. The place that is taken in the window is that of the request
# as many before as may start in a second.
_OPENS_AT = """
greatest(pace.gate_at, pace.arrived[pace.passed %% %(rate)s + 1] + (1 + %(spare)s) * interval '1 second')
"""
_TAKE_TURN = f"""
INSERT INTO audiences_pace AS pace (install_id, endpoint, line_at, gate_at, passed, arrived)
SELECT id, %(endpoint)s, clock_timestamp(), clock_timestamp() + %(interval)s * interval '1 second',
    1, ARRAY[clock_timestamp() + %(on_its_way)s * interval '1 second']
FROM audiences_install WHERE id = %(install)s AND (brake_until_at IS NULL OR brake_until_at <= clock_timestamp())
ON CONFLICT (install_id, endpoint) DO UPDATE SET
    gate_at = %(interval)s * interval '1 second' + CASE
        WHEN %(later)s = 0 AND pace.gate_at BETWEEN clock_timestamp() - %(interval)s * interval '1 second'
            AND clock_timestamp() THEN pace.gate_at ELSE clock_timestamp() END,
    passed = pace.passed + 1,
    arrived[pace.passed %% %(rate)s + 1] = clock_timestamp() + %(on_its_way)s * interval '1 second'
    WHERE {_OPENS_AT} <= clock_timestamp() OR {_OPENS_AT} > clock_timestamp() + interval '5 seconds'
RETURNING passed
"""  # noqa: S608 — only constants of this module

# Of a place that another request has taken by now, nothing is left to be said.
_ARRIVED = """
UPDATE audiences_pace SET arrived[(%(number)s - 1) %% %(rate)s + 1] =
    arrived[(%(number)s - 1) %% %(rate)s + 1] - %(earlier)s * interval '1 second'
WHERE install_id = %(install)s AND endpoint = %(endpoint)s AND passed BETWEEN %(number)s AND %(number)s + %(rate)s - 1
"""

_WHY_NOT = f"""
SELECT coalesce(install.brake_until_at > clock_timestamp(), false),
    extract(epoch FROM {_OPENS_AT} - clock_timestamp())::float8
FROM audiences_install AS install
LEFT JOIN audiences_pace AS pace ON pace.install_id = install.id AND pace.endpoint = %(endpoint)s
WHERE install.id = %(install)s
"""  # noqa: S608

# How long a permission lives in this process; it follows PostgreSQL's speed.
_fresh = FRESH
# The quickest answer of late, in seconds, and how many there were, by install and endpoint.
_quickest: dict[tuple[int, str], tuple[float, int]] = {}


class _Permission(NamedTuple):
    """The last one that this thread was given: its number, how long it took to come, and how long its request was
    then thought to be on its way, in seconds."""

    number: int
    took: float
    on_its_way: float


_thread = threading.local()


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
        row = _row(install, path, later=lives - FRESH)
        with prepared_statements.cursor() as cursor:
            cursor.execute(_TAKE_TURN, row)
            if given := cursor.fetchone():
                took = time.monotonic() - asked_at
                _follow(took)
                if took <= lives:
                    _thread.permission = _Permission(given[0], took, row["on_its_way"])
                    return
            cursor.execute(_WHY_NOT, row)
            braked, opens_in = cursor.fetchone() or (True, None)
        if braked:
            raise TooLateError
        time.sleep(min(max(0.0, opens_in or 0.0), max(0.0, until - time.monotonic())))


def note_answer(install: Install, path: str, *, seconds: float) -> None:
    """This thread's last request was answered ``seconds`` after its first byte, so it had arrived before that.

    By as long at least as the quickest answer of late took in all. It makes room for the next one only if it tells
    more than was reckoned with; a slow answer may be ODP's own slowness and tells nothing.
    """
    permission: _Permission | None = getattr(_thread, "permission", None)
    _thread.permission = None
    if permission is None or not has_limit(install, path):
        return
    place = install.pk, limit_of(path)
    quickest, seen = _quickest.get(place, (seconds, 0))
    quickest = min(seconds, quickest + FORGET)
    _quickest[place] = quickest, seen + 1
    earlier = permission.on_its_way - permission.took - (seconds - quickest)
    if seen >= LEARNING and earlier > 0:
        with prepared_statements.cursor() as cursor:
            cursor.execute(_ARRIVED, {**_row(install, path), "number": permission.number, "earlier": earlier})


def _follow(took: float) -> None:
    """Permissions live longer than PostgreSQL has just taken to give one, and shorten again step by step."""
    global _fresh
    _fresh = min(LONGEST_FRESH, max(FRESH, 1.5 * took, 0.9 * _fresh))


def _row(install: Install, path: str, *, later: float = 0.0) -> dict[str, Any]:
    rate = max(1, install.requests_per_second)
    return {
        "install": install.pk,
        "endpoint": limit_of(path),
        "rate": rate,
        "interval": MARGIN / rate + later,
        "later": later,
        "spare": SPARE,
        "on_its_way": ON_ITS_WAY + later,
    }
