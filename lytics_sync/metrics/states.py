"""The metrics that are true now, read from PostgreSQL at each scrape.

The number of queries is fixed, and no query reads a log: the cost is that of the installs and audiences. Labels are the
public id of an install, and words of a fixed set; no audience and no customer is a label.
"""

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from django.conf import settings
from django.db import OperationalError
from django.db.models import Count, F, Q, Subquery, Sum
from django.utils.timezone import now

from audiences.admin.filters import COUNTED
from audiences.admin.pages import last_call
from audiences.admin.parked_groups import found as parked_groups
from audiences.agreement import audits
from audiences.insight import backlogs, heartbeats, probes, stalled_work
from audiences.insight.horizons import KINDS
from audiences.models import Delivery, Install, Lane, Pruning
from audiences.operations import troubles
from audiences.receiving import backlog, disk_usage

# Seconds after which no further query is begun. With the limit of one query, DATABASE_WEB_SECONDS, a scrape ends before
# the 10 s that Prometheus waits.
SECONDS = 4.0


@dataclass(frozen=True)
class State:
    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"


ENABLED = State(
    "lytics_sync_install_enabled", "1 when the install accepts calls, 0 when it is switched off.", ("install",)
)
INFO = State("lytics_sync_install_info", "Always 1; the name of the install.", ("install", "name"))
ON_HOLD = State(
    "lytics_sync_install_on_hold", "1 while requests of the install wait for a backoff to end.", ("install",)
)
LAST_CALL = State(
    "lytics_sync_last_call_timestamp_seconds",
    "When the newest call of Lytics was stored; absent before the first.",
    ("install",),
)
WAITING = State("lytics_sync_backlog_events", "Events that are stored and not delivered.", ("install",))
DELIVERABLE = State(
    "lytics_sync_backlog_deliverable_events",
    "Events that are stored and not delivered, of audiences that aren't blocked, paused, failing or on hold.",
    ("install",),
)
HIGH_WATER = State(
    "lytics_sync_backlog_high_water_ratio",
    "Deliverable events divided by BACKLOG_HIGH_WATER; above 1 calls get 503.",
    ("install",),
)
OLDEST = State(
    "lytics_sync_oldest_undelivered_seconds", "The age of the oldest waiting event; 0 without one.", ("install",)
)
OLDEST_DELIVERABLE = State(
    "lytics_sync_oldest_deliverable_seconds",
    "The age of the oldest event that workers could deliver now; 0 without one. The number to scale workers by.",
    ("install",),
)
IN_FLIGHT = State("lytics_sync_odp_requests_in_flight", "Deliveries to ODP under way.", ("install",))
IN_FLIGHT_LIMIT = State(
    "lytics_sync_odp_requests_in_flight_limit", "The most deliveries under way at once.", ("install",)
)
AUDIENCES = State("lytics_sync_audiences", "Audiences.", ("install",))
STOPPED = State(
    "lytics_sync_audiences_stopped",
    "Audiences that deliver nothing: blocked, paused, set aside, failing, or on hold because ODP can't create them.",
    ("install", "state"),
)
MEMBERS = State("lytics_sync_members", "Members of all audiences, as ODP has accepted them.", ("install",))
LOGGED = State(
    "lytics_sync_events_logged_total",
    "Events stored, with those that this service sends again.",
    ("install",),
    "counter",
)
SETTLED = State(
    "lytics_sync_events_settled_total", "Events delivered, folded, parked or skipped.", ("install",), "counter"
)
PARKED = State(
    "lytics_sync_parked_items", f"Open parked items; {COUNTED:,} means that there may be more.", ("install", "reason")
)
PROBE = State(
    "lytics_sync_probe_success",
    "1 when ODP showed what the newest test customer sent, 0 when it did not or when none was sent for two intervals.",
    ("install",),
)
PROBE_AT = State(
    "lytics_sync_probe_last_success_timestamp_seconds", "When ODP last showed a test customer as sent.", ("install",)
)
AUDITS = State(
    "lytics_sync_audit_findings",
    "Audiences whose newest audit found people that differ, found members whom only ODP has, or has no result.",
    ("install", "state"),
)
TROUBLES = State(
    "lytics_sync_troubles",
    "Open troubles of the page Now, as each minute's check stores them; at most 500 of a kind are checked.",
    ("install", "kind", "severity", "state"),
)
WORKERS = State("lytics_sync_workers", "Workers whose heartbeats arrive, and those that fell silent.", ("state",))
HEARTBEAT = State("lytics_sync_worker_last_heartbeat_timestamp_seconds", "The newest heartbeat of any worker.")
WORKED = State("lytics_sync_worker_last_work_timestamp_seconds", "When a worker last delivered or made something.")
STUCK = State(
    "lytics_sync_work_stuck", "1 when ready work has not moved for WORK_STUCK_SECONDS, as /health/workers says."
)
DATABASE_BYTES = State("lytics_sync_database_bytes", "The size of the database.")
PRUNED = State(
    "lytics_sync_pruned_rows_total",
    "Rows deleted because of their age, and request bodies deleted from rows that stay.",
    ("kind",),
    "counter",
)
PRUNE_PENDING = State(
    "lytics_sync_prune_pending", "1 while rows of this kind may be left to delete today, 0 after that.", ("kind",)
)
DATABASE_LIMIT = State("lytics_sync_database_high_water_bytes", "DATABASE_HIGH_WATER_BYTES; 0 for no limit.")

ALL = (
    *(INFO, ENABLED, ON_HOLD, LAST_CALL, LOGGED, SETTLED, WAITING, DELIVERABLE, HIGH_WATER, OLDEST, OLDEST_DELIVERABLE),
    *(IN_FLIGHT, IN_FLIGHT_LIMIT, AUDIENCES, STOPPED, MEMBERS, PARKED, PROBE, PROBE_AT, AUDITS, TROUBLES),
    *(WORKERS, HEARTBEAT, WORKED, STUCK, DATABASE_BYTES, DATABASE_LIMIT, PRUNED, PRUNE_PENDING),
)

_STOPPED = {
    "blocked": backlog.BLOCKED,
    "paused": backlog.PAUSED,
    "failing": backlog.FAULTY & Q(blocked_at=None, paused_at=None),
    "on_hold": backlog.CAN_NOT_BE_MADE & Q(blocked_at=None, paused_at=None),
}


@dataclass
class Samples:
    """Values by metric and labels."""

    installs: list[Any]
    found: dict[str, dict[tuple[str, ...], float]] = field(default_factory=dict)

    def put(self, state: State, value: float | datetime | None, *labels: str) -> None:
        """None is left out."""
        if value is not None:
            number = value.timestamp() if isinstance(value, datetime) else float(value)
            self.found.setdefault(state.name, {})[labels] = number


def read() -> Samples:
    """Raises ``django.db.Error`` when PostgreSQL doesn't respond in time."""
    until = time.monotonic() + SECONDS
    samples = Samples(list(Install.objects.defer("odp_api_key").annotate(called_at=Subquery(last_call()))))
    for put in (
        _installs,
        _backlogs,
        _in_flight,
        _audiences,
        _parked,
        _probes,
        _audits,
        _troubles,
        _workers,
        _database,
    ):
        if time.monotonic() > until:
            raise OperationalError(f"the states were not read within {SECONDS:g} s")
        put(samples)
    return samples


def _installs(samples: Samples) -> None:
    for install in samples.installs:
        samples.put(INFO, 1, install.public_id, install.name)
        samples.put(ENABLED, install.enabled, install.public_id)
        samples.put(ON_HOLD, install.backoff_until_at is not None, install.public_id)
        samples.put(LAST_CALL, install.called_at, install.public_id)
        samples.put(IN_FLIGHT_LIMIT, install.max_in_flight, install.public_id)


def _backlogs(samples: Samples) -> None:
    waiting, at = backlogs.by_install(), now()

    def age(moment: datetime | None) -> float:
        return max(0.0, (at - moment).total_seconds()) if moment else 0.0

    for install in samples.installs:
        one = waiting.get(install.pk, backlogs.Backlog())
        samples.put(WAITING, one.waiting, install.public_id)
        samples.put(DELIVERABLE, one.free, install.public_id)
        samples.put(HIGH_WATER, one.free / max(1, settings.BACKLOG_HIGH_WATER), install.public_id)
        samples.put(OLDEST, age(one.oldest_at), install.public_id)
        is_delivering = install.enabled and install.backoff_until_at is None
        samples.put(OLDEST_DELIVERABLE, age(one.oldest_free_at) if is_delivering else 0.0, install.public_id)


def _in_flight(samples: Samples) -> None:
    under_way = Delivery.objects.filter(closed_at=None).order_by()
    found = dict(under_way.values("install_id").annotate(requests=Count("pk")).values_list("install_id", "requests"))
    for install in samples.installs:
        samples.put(IN_FLIGHT, found.get(install.pk, 0), install.public_id)


def _audiences(samples: Samples) -> None:
    stopped = {name: Count("pk", filter=condition) for name, condition in _STOPPED.items()}
    rows = (
        Lane.objects.order_by()
        .values("audience__install_id")
        .annotate(
            audiences=Count("pk"),
            members=Sum("member_count"),
            logged=Sum(F("audience__last_sequence")),
            settled=Sum("delivered_sequence"),
            **stopped,
        )
    )
    found: dict[int, Any] = {row["audience__install_id"]: row for row in rows}
    for install in samples.installs:
        row = found.get(install.pk, {})
        for state, name in ((AUDIENCES, "audiences"), (MEMBERS, "members"), (LOGGED, "logged"), (SETTLED, "settled")):
            samples.put(state, row.get(name, 0), install.public_id)
        for name in _STOPPED:
            samples.put(STOPPED, row.get(name, 0), install.public_id, name)


def _parked(samples: Samples) -> None:
    public_ids = {install.pk: install.public_id for install in samples.installs}
    for group in parked_groups():
        if group.install in public_ids:  # one that was made after the installs were read is in the next scrape
            samples.put(PARKED, min(group.rows, COUNTED), public_ids[group.install], group.reason)


def _probes(samples: Samples) -> None:
    proofs = probes.proofs(samples.installs)
    for install in samples.installs:
        proof = proofs[install.pk]
        if proof.word != "none":
            samples.put(PROBE, not proof.is_bad, install.public_id)
        samples.put(PROBE_AT, proof.at, install.public_id)


def _audits(samples: Samples) -> None:
    states = {
        "differing": Q(problem="", differing__gt=0),
        "only_odp": Q(problem="", differing=0, only_in_odp__gt=0),
        "failed": ~Q(problem=""),
    }
    counts = {f"{state}_audits": Count("pk", filter=condition) for state, condition in states.items()}
    bad = audits.to_act_on().order_by()
    found: dict[int, Any] = {row["install_id"]: row for row in bad.values("install_id").annotate(**counts)}
    for install in samples.installs:
        for state in states:
            samples.put(AUDITS, found.get(install.pk, {}).get(f"{state}_audits", 0), install.public_id, state)


def _troubles(samples: Samples) -> None:
    for install, kind, is_bad, is_muted, many in troubles.counted():
        severity, state = "bad" if is_bad else "warning", "muted" if is_muted else "open"
        samples.put(TROUBLES, many, install, kind, severity, state)


def _workers(samples: Samples) -> None:
    pulse = heartbeats.pulse()
    workers = [*pulse.answering, *pulse.silent]
    samples.put(WORKERS, len(pulse.answering), "answering")
    samples.put(WORKERS, len(pulse.silent), "silent")
    samples.put(HEARTBEAT, max((worker.beat_at for worker in workers), default=None))
    samples.put(WORKED, max((worker.worked_at for worker in workers if worker.worked_at), default=None))
    samples.put(STUCK, stalled_work.stuck() is not None)


def _database(samples: Samples) -> None:
    samples.put(DATABASE_BYTES, disk_usage.used())
    samples.put(DATABASE_LIMIT, settings.DATABASE_HIGH_WATER_BYTES)
    for row in Pruning.objects.all():
        samples.put(PRUNED, row.pruned, row.kind)
        is_kept = getattr(settings, KINDS.get(row.kind, ""), 0) <= 0
        samples.put(PRUNE_PENDING, not row.is_done and not is_kept, row.kind)
