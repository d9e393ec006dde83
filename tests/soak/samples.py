"""A sample of what could grow: memory, connections, tables, write-ahead log, delays, and the logs of the programs."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from benchmarks import usage
from tests.chaos.house import House

_NOW = """
SELECT clock_timestamp(), pg_current_wal_insert_lsn() - '0/0'::pg_lsn,
    (SELECT coalesce(sum(last_sequence), 0)::bigint FROM audiences_audience),
    (SELECT coalesce(sum(audience.last_sequence - lane.delivered_sequence), 0)::bigint
     FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id),
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())
"""
OLD_PARTS = "old parts"
# The sizes of partitions are added to those of their table, except the parts of the old log, which have their own sum.
# PostgreSQL gives NULL for a partition that it just dropped.
_TABLES = f"""
SELECT CASE WHEN class.relname = ANY(%s) THEN '{OLD_PARTS}'
        ELSE coalesce(pg_partition_root(class.oid), class.oid)::regclass::text END,
    sum(pg_table_size(class.oid))::bigint, coalesce(sum(pg_indexes_size(class.oid)), 0)::bigint,
    coalesce(sum(stat.n_dead_tup), 0)::bigint
FROM pg_class AS class LEFT JOIN pg_stat_user_tables AS stat ON stat.relid = class.oid
WHERE class.relkind = 'r' AND class.relnamespace = 'public'::regnamespace
GROUP BY 1 HAVING sum(pg_table_size(class.oid)) IS NOT NULL
"""
# The delay of a Run is that of its first event, which has waited longest.
_DELAYS = """
SELECT coalesce(percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM run.closed_at - (
    SELECT received_at FROM audiences_event AS event
    WHERE event.audience_id = run.audience_id AND event.sequence = run.first_sequence
))), ARRAY[NULL, NULL]::float8[])
FROM audiences_run AS run WHERE run.closed_at > %s AND run.closed_at <= %s AND run.outcome = 'delivered'
"""
# Rows of these tables are added with each call or delivery, and go only when the log is pruned.
LOG = ("audiences_event", "audiences_receipt", "audiences_delivery", "audiences_run")


@dataclass(frozen=True)
class Table:
    table_bytes: int
    index_bytes: int
    dead_rows: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """``seconds`` since the start. ``memory`` and ``logs`` are by kind of process, in MiB and in bytes."""

    seconds: float
    at: datetime
    wal_bytes: int
    events: int
    backlog: int
    connections: int
    tables: Mapping[str, Table]
    memory: Mapping[str, float]
    logs: Mapping[str, int]
    # Seconds; None when nothing was delivered since the last sample.
    p50: float | None
    p99: float | None


def take(house: House, *, began: float, last: Sample | None, old_parts: Sequence[str]) -> Sample:
    """``old_parts`` are the tables of the old log's parts."""
    at, wal, events, backlog, connections = house.sql(_NOW)[0]
    p50, p99 = house.sql(_DELAYS, last.at, at)[0][0] if last else (None, None)
    tables = {name: Table(*map(int, sizes)) for name, *sizes in house.sql(_TABLES, list(old_parts))}
    return Sample(
        seconds=time.monotonic() - began,
        at=at,
        wal_bytes=int(wal),
        events=events,
        backlog=backlog,
        connections=connections,
        tables=tables,
        memory=_memory(house),
        logs=_logs(house),
        p50=p50,
        p99=p99,
    )


def _kind(program: str) -> str:
    return "workers" if program.startswith("worker") else program


def _memory(house: House) -> dict[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for name, process in _processes(house).items():
        if process is not None:
            found[_kind(name)] += usage.pss_mib(process.pid)
    return dict(found)


def _processes(house: House) -> dict[str, Any]:
    """The processes of the service and its servers, by program. Sandboxes aren't a part of the service."""
    children = (child for group in house.fleet.groups for child in group)
    return {child.program.name: child.process for child in children if not child.program.name.startswith("sandbox")}


def _logs(house: House) -> dict[str, int]:
    """The bytes of each program's log, with those put aside at a start."""
    found: defaultdict[str, int] = defaultdict(int)
    for name in _processes(house):
        for file in house.fleet.logs.glob(f"{name}.log*"):
            found[_kind(name)] += file.stat().st_size
    return dict(found)
