"""Claims: lease ready lanes until one request is full, the longest unserved lanes first."""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from django.conf import settings
from django.db import Error, connection

from audiences import prepared_statements, sessions, sql
from audiences.delivery import request_records
from audiences.delivery.holds import give_back_token
from audiences.delivery.leases import WITHOUT_WAITING, Lease, Span, Work, capacity_of
from audiences.models import Install

_INSTALL_FIELDS = Install._meta.concrete_fields
# Without odp_api_key: decrypting it is slow, and most callers don't need it.
_KEYLESS_FIELDS = [field for field in _INSTALL_FIELDS if field.name != "odp_api_key"]


def _columns(fields: Iterable[Any]) -> str:
    return ", ".join(f"install.{field.column}" for field in fields)


_SQL = sql.beside(
    __file__, install_columns=_columns(_INSTALL_FIELDS), install_columns_but_key=_columns(_KEYLESS_FIELDS)
)

# Seconds that an audience's deliveries wait for a requested check in ODP, because their field may be missing there.
LOOK_SECONDS = 15

# The most audiences of one install that drains create at once. Each occupies a worker's slot until ODP responds, so
# with more of them a hanging ODP API would delay deliveries. The task that only creates audiences has threads of its
# own: see workers/making.py.
MAKING_AT_ONCE = 2


class Due(NamedTuple):
    install_id: int


class Locked(NamedTuple):
    has_rejections: bool
    install: Install


class Claimed(NamedTuple):
    """One leased lane. ``more`` and ``has_abandoned`` are those of ``Lease`` and ``close_abandoned``."""

    audience_id: int
    odp_id: str
    first: int
    last: int
    low: int
    high: int
    more: bool
    has_abandoned: bool


def _work(row: Sequence[Any]) -> Work:
    unprovisioned, ready, mechanism, *columns = row
    return Work(_install(_KEYLESS_FIELDS, columns), unprovisioned, ready, mechanism)


def _locked(row: Sequence[Any]) -> Locked:
    has_rejections, *columns = row
    return Locked(has_rejections, _install(_INSTALL_FIELDS, columns))


def _install(fields: Sequence[Any], columns: Sequence[Any]) -> Install:
    """An Install of its columns, in the order of ``fields``: Django makes objects that way."""
    values = [
        field.from_db_value(value, None, connection) if hasattr(field, "from_db_value") else value
        for field, value in zip(fields, columns, strict=True)
    ]
    return Install.from_db("default", [field.attname for field in fields], values)


_DUE = _SQL.query("due_installs", Due._make)
_WORK = _SQL.query("work_of_install", _work, prepared=True)
_LOCK = _SQL.query("lock_install", _locked, prepared=True)
_CLAIM = _SQL.query("claim_lanes", Claimed._make, prepared=True)


def due() -> list[int]:
    """The installs that have something to send and are allowed to."""
    return [row.install_id for row in _DUE.run(look_seconds=LOOK_SECONDS).all()]


def work(install_id: int, *, making_at_once: int = MAKING_AT_ONCE) -> Work | None:
    """What an install has to do now; None when there is no such install."""
    return _WORK.run(install=install_id, look_seconds=LOOK_SECONDS, making_at_once=making_at_once).one()


def claim(install_id: int, *, capacity: int | None = None, mechanism: str = "") -> Lease | None:
    """Lease the lanes served longest ago, up to ``capacity`` events (default: what one request of the install holds).

    All lanes have the same ``mechanism`` (default: that of the lane served longest ago), because each mechanism has an
    endpoint of its own. None when nothing is ready, the install is in backoff or switched off, or it has enough
    requests in flight. After a failure, one request at a time tries whether ODP works again.
    """
    if capacity is None or not mechanism:
        work_now = work(install_id)
        if work_now is None:
            return None
        mechanism = mechanism or work_now.mechanism
        capacity = capacity or capacity_of(work_now.install, mechanism)
    token = uuid.uuid4()
    try:
        return _claim(install_id, capacity, mechanism, token)
    except Error as error:
        if sessions.is_database_error(error):  # the claim may have been committed all the same
            give_back_token(token)
        raise


def _claim(install_id: int, capacity: int, mechanism: str, token: uuid.UUID) -> Lease | None:
    with prepared_statements.pipeline():
        WITHOUT_WAITING.run()
        locking = _LOCK.run(install=install_id)
        claiming = _CLAIM.run(
            install=install_id,
            capacity=capacity,
            mechanism=mechanism,
            token=token,
            lease_seconds=settings.LEASE_SECONDS,
            look_seconds=LOOK_SECONDS,
        )
    locked, claimed = locking.one(), claiming.all()
    if not claimed:
        return None
    if locked is None:  # a backoff ended between the two statements, so this claim ran without the lock
        give_back_token(token)
        return None
    spans = tuple(Span(lane.audience_id, lane.odp_id, lane.first, lane.last, lane.low, lane.high) for lane in claimed)
    more = any(lane.more for lane in claimed)  # the same in each row
    lease = Lease(token, locked.install, spans, more=more, has_rejections=locked.has_rejections, mechanism=mechanism)
    if any(lane.has_abandoned for lane in claimed):
        request_records.close_abandoned(lease)
    return lease
