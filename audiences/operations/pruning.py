"""Prune: delete rows that are older than their retention, in small steps. The only writer of Pruning and Horizon.

A step is one transaction over at most ``ROWS`` rows, with its progress. A process that dies in one loses that step, and
the next run goes on. No step waits for a row that something else has locked, and none locks a row that a call, a claim
or a settle needs: what it deletes is closed and older than a day. See docs/retention.md.
"""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import structlog
from django.conf import settings
from django.db import Error, transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from audiences import sessions, sql
from audiences.insight import trials
from audiences.insight.horizons import KINDS
from audiences.models import Audience, Pruning
from audiences.operations import parts

log = structlog.get_logger(__name__)

# The most rows that one step reads.
ROWS = 1_000
# The longest run, in seconds. Half of it is pauses.
SECONDS = 10.0


class Moment(NamedTuple):
    at: datetime


class Waiting(NamedTuple):
    install_id: int
    received_at: datetime


class LastCall(NamedTuple):
    id: int


class Step(NamedTuple):
    """The result of one step; ``position`` is None when it looked at no row."""

    pruned: int
    position: int | None
    is_done: bool


_SQL = sql.beside(__file__)
_HORIZON = _SQL.query("horizon", Moment._make)
_WAITING = _SQL.query("oldest_waiting", Waiting._make)
_LAST_CALLS = _SQL.query("last_calls", LastCall._make)
_REQUESTS = _SQL.query("requests", Step._make)
_PARKED = _SQL.query("parked", Step._make)
_DELIVERIES = _SQL.query("deliveries", Step._make)
_RUNS = _SQL.query("runs", Step._make)
_RECEIPTS = _SQL.query("receipts", Step._make)
_EVENTS = _SQL.query("events", Step._make)
_DIFFERENCES = _SQL.query("differences", Step._make)
_AUDITS = _SQL.query("audits", Step._make)
_MESSAGES = _SQL.query("messages", Step._make)
_TROUBLES = _SQL.query("troubles", Step._make)
_STATEMENTS = {
    statement.name: statement
    for statement in (
        *(_REQUESTS, _PARKED, _DELIVERIES, _RUNS, _RECEIPTS),
        *(_DIFFERENCES, _AUDITS, _MESSAGES, _TROUBLES),
    )
}

# The kinds whose pass begins where the one before ended, because their rows stay in the table.
CONTINUED = {"requests"}


def prune(*, seconds: float = SECONDS, pause: Callable[[float], None] = time.sleep) -> int:
    """Take steps for at most ``seconds``, one of each kind in turn. Returns the number of rows deleted."""
    until = time.monotonic() + seconds
    parts.advance(pause=pause)
    open_kinds = {kind: _needs(kind) for kind in KINDS if _begin(kind)}
    pruned = 0
    failure: Error | None = None
    while open_kinds:
        for kind, needs in list(open_kinds.items()):
            began = time.monotonic()
            if began >= until:
                open_kinds.clear()
                break
            try:
                step = _step(kind, needs)
            except Error as error:
                if sessions.is_away(error):
                    raise
                # Such as a missing right of the role. It stops no other kind.
                step, failure = None, failure or error
            if step is None or step.is_done:
                del open_kinds[kind]
            pruned += step.pruned if step else 0
            pause(time.monotonic() - began)
    if pruned:
        log.info("old rows deleted", rows=pruned)
    if failure:
        raise failure
    return pruned


def _needs(kind: str) -> dict[str, Any]:
    """Further parameters of a kind's statement. They are read once per run, because each reading reads all lanes."""
    if kind != "receipts":
        return {}
    waiting = _WAITING.run(horizon=Pruning.objects.get(kind=kind).horizon_at).all()
    return {
        "installs": [one.install_id for one in waiting],
        "waiting": [one.received_at for one in waiting],
        "last_calls": [one.id for one in _LAST_CALLS.run(test_job=trials.JOB).all()],
    }


def _begin(kind: str) -> bool:
    """Begin a pass if the horizon has moved. Returns whether there is anything left to do."""
    days: int = getattr(settings, KINDS[kind])
    if days <= 0:
        return False
    horizon = _HORIZON.run(days=days).one()
    assert horizon is not None
    Pruning.objects.get_or_create(kind=kind)
    # A horizon in the future is that of a clock that was ahead: no pass would begin until then.
    is_wrong = Q(horizon_at=None) | Q(horizon_at__gt=Now())
    # A pass that takes longer than a day ends first: begun again each day, it would never reach the last rows.
    is_next = Q(horizon_at__lt=horizon.at, is_done=True)
    start: dict[str, Any] = {} if kind in CONTINUED else {"position": 0, "sequence": 0}
    with transaction.atomic():
        # Another process may be in a long step.
        moved = Pruning.objects.select_for_update(skip_locked=True).filter(is_wrong | is_next, kind=kind)
        Pruning.objects.filter(pk__in=moved.values("pk")).update(horizon_at=horizon.at, is_done=False, **start)
    # The horizon is later than the setting says when somebody has raised it since.
    return Pruning.objects.filter(kind=kind, is_done=False, horizon_at__lte=horizon.at).exists()


def _step(kind: str, needs: dict[str, Any]) -> Step | None:
    """Take one step, in one transaction. None when another process has this kind, or the log is in use."""
    with transaction.atomic():
        row = Pruning.objects.select_for_update(skip_locked=True).filter(kind=kind, is_done=False).first()
        if row is None:
            return None
        if kind == "events":
            return _step_of_events(row)
        step = _STATEMENTS[kind].run(after=row.position, rows=ROWS, horizon=row.horizon_at, **needs).one()
        assert step is not None
        position = row.position if step.position is None else step.position
        return _store(row, step, position=position)


def _step_of_events(row: Pruning) -> Step | None:
    """Delete events of the audience after the last one done. A pass ends with the parts that nothing needs any more."""
    audience = Audience.objects.filter(pk__gt=row.position).order_by("pk").values_list("pk", flat=True).first()
    if audience is None:
        assert row.horizon_at is not None
        try:
            dropped = parts.drop_one(row.horizon_at)
        except parts.LockedError as error:
            log.info("an old part of the log stays", reason="the log is in use", part=error.part)
            return None
        return _store(row, Step(dropped or 0, None, is_done=dropped is None))
    step = _EVENTS.run(audience=audience, after=row.sequence, rows=ROWS, horizon=row.horizon_at).one()
    assert step is not None
    place = {"position": audience, "sequence": 0} if step.is_done else {"sequence": step.position}
    return _store(row, step._replace(is_done=False), **place)


def _store(row: Pruning, step: Step, **place: int | None) -> Step:
    """Store the progress, in the transaction of the step."""
    Pruning.objects.filter(pk=row.pk).update(is_done=step.is_done, pruned=F("pruned") + step.pruned, **place)
    return step
