"""Which lanes are ready, and leasing them: one request of the install is filled, the longest unserved lanes first."""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from django.conf import settings
from django.db import Error, connection

from audiences import prepared_statements, sessions
from audiences.delivery import request_records
from audiences.delivery.holds import give_back_token
from audiences.delivery.leases import REFUSED_BY_ODP, WITHOUT_WAITING, Lease, Span, Work, capacity_of
from audiences.models import Install

# A lane that may be claimed, as far as the lane itself is concerned.
_FREE = """
    lane.paused_at IS NULL AND lane.blocked_at IS NULL
    AND (lane.lease_expires_at IS NULL OR lane.lease_expires_at <= clock_timestamp())
    AND (lane.fault_until_at IS NULL OR lane.fault_until_at <= clock_timestamp())
"""

# When a look at ODP was asked for, the audience's deliveries wait for it, because what they need may be gone there.
# After a look that failed they go on, and at the latest this many seconds after it was asked for.
LOOK_SECONDS = 15

_MADE = f"""
    audience.provisioned_at IS NOT NULL AND (audience.look_asked_at IS NULL OR audience.hold_failures > 0
        OR audience.look_asked_at <= clock_timestamp() - interval '{LOOK_SECONDS} seconds')
"""

# An audience that is to be made in ODP now: it has events or somebody asked, no worker is at it, and its pause after a
# failure is over.
TO_MAKE = """
    (audience.provisioned_at IS NULL AND audience.last_sequence > lane.delivered_sequence
        OR audience.look_asked_at IS NOT NULL)
    AND lane.paused_at IS NULL AND lane.blocked_at IS NULL
    AND (audience.hold_until_at IS NULL OR audience.hold_until_at <= clock_timestamp())
    AND (audience.making_until_at IS NULL OR audience.making_until_at <= clock_timestamp())
"""

# Audiences of one install that are made at once. Each holds a worker's slot for as long as ODP takes to answer, so more
# of them would let an API of ODP that hangs hold up deliveries.
MAKING_AT_ONCE = 2

GOING = "install.enabled AND (install.brake_until_at IS NULL OR install.brake_until_at <= clock_timestamp())"

_DUE = f"""
SELECT DISTINCT audience.install_id
FROM audiences_lane AS lane
JOIN audiences_audience AS audience ON audience.id = lane.audience_id
JOIN audiences_install AS install ON install.id = audience.install_id
WHERE {GOING} AND (audience.last_sequence > lane.delivered_sequence AND {_FREE} AND {_MADE} OR {TO_MAKE})
"""  # noqa: S608 — only constants of this module

# In their order: that is how Django makes an object of them.
_INSTALL_FIELDS = Install._meta.concrete_fields

# The key has to be decrypted, and not everybody needs it.
_KEYLESS_FIELDS = [field for field in _INSTALL_FIELDS if field.name != "odp_api_key"]


def _columns(fields: Iterable[Any]) -> str:
    return ", ".join(f"install.{field.column}" for field in fields)


_WORK = f"""
SELECT {_columns(_KEYLESS_FIELDS)}, lanes.unprovisioned, lanes.ready
FROM audiences_install AS install CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE to_make) > 0
            AND count(*) FILTER (WHERE making_until_at > clock_timestamp()) < {MAKING_AT_ONCE} AS unprovisioned,
        coalesce(sum(behind) FILTER (WHERE made AND {_FREE}), 0)::bigint AS ready
    FROM (
        SELECT lane.*, audience.making_until_at, audience.last_sequence - lane.delivered_sequence AS behind,
            {_MADE} AS made, {TO_MAKE} AS to_make
        FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
        WHERE audience.install_id = install.id
    ) AS lane
) AS lanes
WHERE install.id = %s
"""  # noqa: S608 — only constants of this module

# Locked so that one worker at a time claims for an install; receiving takes no lock that this one would hinder. A claim
# that PostgreSQL forgets when it dies costs nothing, since what it leads to is stored by a commit that waits: nobody
# else has to wait for the disk meanwhile.
_LOCK = f"""
SELECT {_columns(_INSTALL_FIELDS)}, EXISTS (SELECT 1 FROM audiences_parked AS parked
    WHERE parked.install_id = install.id AND parked.reason = '{REFUSED_BY_ODP}' AND parked.closed_at IS NULL)
FROM audiences_install AS install WHERE id = %s AND {GOING} FOR NO KEY UPDATE
"""  # noqa: S608

# The lanes longest unserved, until the request is full. A lane that a late settle has moved since is left for the
# next claim: its cursor is no longer the one that was read.
# A request that failed may have been applied. Fewer events of a lane than it held would fold to an older state than
# ODP has, so a lane is taken as far as its last Run went or not at all; the first one always has the room.
# A lane whose last delivery ended in an unexpected error of ours is taken alone, so that the error holds no other lane.
_CLAIM = f"""
WITH lane AS MATERIALIZED (
    SELECT lane.*, audience.odp_id, audience.last_sequence AS last, {_MADE} AS made
    FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
    WHERE audience.install_id = %(install)s
), ready AS (
    SELECT audience_id, odp_id, delivered_sequence AS cursor, last, last_served_at,
        CASE WHEN fault_since_at IS NOT NULL THEN audience_id END AS alone
    FROM lane WHERE made AND last > delivered_sequence AND {_FREE}
), chosen AS (
    SELECT audience_id, odp_id, cursor, last,
        (sum(last - cursor) OVER (ORDER BY last_served_at NULLS FIRST, audience_id))::bigint AS upto
    FROM ready WHERE alone IS NOT DISTINCT FROM
        (SELECT alone FROM ready ORDER BY last_served_at NULLS FIRST, audience_id LIMIT 1)
), room AS (
    SELECT %(capacity)s::bigint AS capacity, CASE WHEN brake_failures > 0 THEN 1 ELSE max_in_flight END
        - (SELECT count(DISTINCT lane.lease_token) FROM lane WHERE lease_expires_at > clock_timestamp()) AS requests
    FROM audiences_install AS install WHERE id = %(install)s AND {GOING}
), packed AS (
    SELECT audience_id, odp_id, cursor, least(last, cursor + room) AS last, capacity
    FROM (
        SELECT chosen.*, capacity, capacity - (upto - (last - cursor)) AS room FROM chosen, room WHERE requests > 0
    ) AS fitting
    WHERE room > 0 AND (room = capacity OR cursor + room >= last OR cursor + room >= coalesce(
        (SELECT run.last_sequence FROM audiences_run AS run WHERE run.audience_id = fitting.audience_id
            ORDER BY run.id DESC LIMIT 1), 0))
)
UPDATE audiences_lane AS lane SET
    lease_token = %(token)s,
    lease_expires_at = clock_timestamp() + make_interval(secs => %(lease)s),
    last_served_at = clock_timestamp()
FROM packed
WHERE lane.audience_id = packed.audience_id AND lane.delivered_sequence = packed.cursor AND {_FREE}
RETURNING packed.audience_id, packed.odp_id, packed.cursor + 1, packed.last,
    (SELECT sum(last - cursor) FROM ready) > (SELECT least(max(upto), packed.capacity) FROM chosen),
    EXISTS (SELECT 1 FROM audiences_run WHERE audience_id = packed.audience_id AND closed_at IS NULL)
        OR (SELECT min(opened_at) FROM audiences_delivery WHERE install_id = %(install)s AND closed_at IS NULL)
            <= clock_timestamp() - make_interval(secs => %(lease)s)
"""  # noqa: S608


def due() -> list[int]:
    """The installs that have something to send and are allowed to."""
    with connection.cursor() as cursor:
        cursor.execute(_DUE)
        return [row[0] for row in cursor.fetchall()]


def work(install_id: int) -> Work | None:
    """What an install has to do now; None when there is no such install."""
    with prepared_statements.cursor() as cursor:
        cursor.execute(_WORK, [install_id])
        row = cursor.fetchone()
    return row and Work(_install(_KEYLESS_FIELDS, row[:-2]), *row[-2:])


def _install(fields: Sequence[Any], row: Sequence[Any]) -> Install:
    values = [
        field.from_db_value(value, None, connection) if hasattr(field, "from_db_value") else value
        for field, value in zip(fields, row, strict=True)
    ]
    return Install.from_db("default", [field.attname for field in fields], values)


def claim(install_id: int, *, capacity: int | None = None) -> Lease | None:
    """Lease the lanes longest unserved, up to ``capacity`` events (default: what one request of the install holds).

    None when nothing is ready, the install is braked or switched off, or enough requests are under way. After a
    failure one request at a time finds out whether ODP is back.
    """
    if capacity is None:
        work_now = work(install_id)
        if work_now is None:
            return None
        capacity = capacity_of(work_now.install)
    token = uuid.uuid4()
    try:
        return _claim(install_id, capacity, token)
    except Error as error:
        if sessions.is_database_error(error):  # the claim may be stored all the same
            give_back_token(token)
        raise


def _claim(install_id: int, capacity: int, token: uuid.UUID) -> Lease | None:
    values: dict[str, Any] = {"install": install_id, "capacity": capacity, "token": token}
    locking, claiming = prepared_statements.cursor(), prepared_statements.cursor()
    with prepared_statements.pipeline():
        prepared_statements.cursor().execute(WITHOUT_WAITING)
        locking.execute(_LOCK, [install_id])
        claiming.execute(_CLAIM, {**values, "lease": settings.LEASE_SECONDS})
    locked, rows = locking.fetchone(), claiming.fetchall()
    if not rows:
        return None
    if locked is None:  # it was braked until between the two: then nobody was waited for
        give_back_token(token)
        return None
    spans = tuple(Span(*row[:4]) for row in rows)
    lease = Lease(token, _install(_INSTALL_FIELDS, locked[:-1]), spans, more=rows[0][4], has_refusals=locked[-1])
    if any(row[5] for row in rows):
        request_records.close_abandoned(lease)
    return lease
