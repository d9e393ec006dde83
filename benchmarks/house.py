"""Starts the servers with durable settings, and the bridge's processes as ``make run`` does, all on one machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg

from benchmarks import usage
from benchmarks.double import Double
from benchmarks.load import Load, Report
from local.processes import STOP_SIGNALS, Child, Fleet, Program, StackError, free_port, last_words, listens
from local.stack import Memory, Stack, manage, python
from lytics_sync import env

if TYPE_CHECKING:
    from tests.servers import Migrated

ODP_DELAY_SECONDS = 0.05
# Seconds without progress after which a drain counts as stopped.
STALLED_SECONDS = 90
ONE_RUN = "one_open_run_per_lane"

_CHOSEN = "audience.install_id = %(install)s AND (%(only)s OR audience.segment_id = %(segment)s)"
_COUNT = f"SELECT count(*) FROM audiences_audience AS audience WHERE {_CHOSEN}"  # noqa: S608 — only constants here
_FILL = f"""
INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at, forced, receipt_id)
SELECT audience.id, audience.last_sequence + n, md5(random()::text || n), (random() < 0.6)::int,
    1772442900000000000 + n * 1000, now(), false, NULL
FROM audiences_audience AS audience, generate_series(1, %(each)s) AS n WHERE {_CHOSEN} ORDER BY n, audience.id
"""  # noqa: S608
_NUMBER = f"""
UPDATE audiences_audience AS audience SET last_sequence = last_sequence + %(each)s WHERE {_CHOSEN}
"""  # noqa: S608
_DELIVERED = f"""
UPDATE audiences_lane SET delivered_sequence = last_sequence FROM audiences_audience AS audience
WHERE audience.id = audience_id AND {_CHOSEN}
"""  # noqa: S608
_LEDGER = """
INSERT INTO audiences_membership (audience_id, identifier, is_member, occurred_ns, sequence, refused)
SELECT audience_id, identifier, kind > 0, occurred_ns, sequence, false
FROM audiences_event ORDER BY audience_id, identifier ON CONFLICT DO NOTHING
"""
_BACKLOG = """
SELECT coalesce(sum(audience.last_sequence - lane.delivered_sequence), 0)::bigint
FROM audiences_lane AS lane JOIN audiences_audience AS audience ON audience.id = lane.audience_id
WHERE %s IN ('', audience.segment_id)
"""
_LEASED = "SELECT count(*) FROM audiences_lane WHERE lease_token IS NOT NULL"
_FILLED = """
SELECT string_agg(relname, ', ') FROM pg_class
WHERE relkind = 'r' AND starts_with(relname, 'audiences_') AND pg_relation_size(oid) > 0
"""


@dataclass(frozen=True)
class Install:
    """The install that benchmarks send to."""

    pk: int
    url: str
    authorization: str


@dataclass(frozen=True)
class Sending:
    """A running load, and the file that gets its report."""

    process: "subprocess.Popen[bytes]"
    output: Path

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None


class House:
    """Keeps the servers running. The measured processes run only during a measurement."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self.folder, self.tell = folder, tell
        memory = Memory(file=folder / "local.env", values={})
        self.stack = Stack(folder=folder, port=free_port(), host="127.0.0.1", memory=memory)
        self.settings: dict[str, str] = {
            "LOG_LEVEL": "WARNING",
            "BACKLOG_HIGH_WATER": "1000000000",
            "PROBE_MINUTES": "0",
            "LOOK_MINUTES": "0",
            "AUDIT_HOURS": "0",
        }
        self.next_stamp = 0
        # One fleet for the servers, and one per group of programs, because groups stop separately.
        self.fleets: list[Fleet] = []

    @contextmanager
    def open(self) -> Iterator["House"]:
        os.chdir(env.PROJECT_DIR)
        with ExitStack() as undo:
            undo.enter_context(self.stack.claim_folder())
            self.stack.make_secrets()
            undo.callback(lambda: self.servers.stop())
            self.listen_to_signals()
            self._start_servers()
            yield self

    def _fleet(self) -> Fleet:
        return Fleet(folder=self.folder, env={**self.stack.environment, **self.settings}, tell=self.tell)

    def listen_to_signals(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._ask_to_stop)

    def _ask_to_stop(self, *_: object) -> None:
        """Whichever fleet waits, its next step ends."""
        for fleet in self.fleets:
            fleet.ask_to_stop()

    def restart_servers(self) -> None:
        """Restart them, so that their memory and caches are empty."""
        self.servers.stop()
        self.fleets.remove(self.servers)
        self._start_servers()

    def _start_servers(self) -> None:
        self.servers = self._fleet()
        self.fleets.append(self.servers)
        migrated = self._migrated()
        postgres, broker = self.stack.postgres(), self.stack.redis()
        assert postgres is not None
        assert broker is not None
        self.servers.start(postgres, broker)
        if migrated:
            migrated.name_database()
        self.stack.create_database()
        self.double = self._start_double("double", ODP_DELAY_SECONDS)
        self.null = self._start_double("null-server", 0)
        if not migrated:
            self.manage("migrate", "--noinput", "--verbosity", "0")
        self.install = self._connect()

    def _migrated(self) -> "Migrated | None":
        """The tests of the benchmarks begin with a database that has every migration."""
        if "CLUSTER" not in os.environ or (self.folder / "postgres").exists():
            return None
        from tests.servers import Migrated

        return Migrated.given(self.stack)

    def _start_double(self, name: str, delay: float) -> Double:
        port = free_port()
        command = python("-m", "benchmarks.double", "--port", str(port), "--delay", str(delay))
        self.servers.start(Program(name=name, command=command, ready=lambda _pid: listens(port)))
        return Double(port)

    def manage(self, *words: str) -> str:
        return self.run(manage(*words))

    def run(self, program: Program) -> str:
        """Run a program to its end, and return its output."""
        code, output = self.servers.run(program)
        if code:
            raise StackError(f"{program.name} failed: {last_words(self.servers.logs / f'{program.name}.log')}")
        return output

    # --- Processes -------------------------------------------------------------------------------------------

    @contextmanager
    def running(self, *programs: Program, ready: Callable[[], bool] = lambda: True) -> Iterator[None]:
        fleet = self._fleet()
        self.fleets.append(fleet)
        try:
            fleet.start(*programs)
            # The fleet restarts a process that dies here. A restart during the measurement would falsify it.
            if not fleet.wait(ready, seconds=120):
                raise StackError(f"{', '.join(program.name for program in programs)}: not ready in two minutes")
            yield
        finally:
            fleet.stop()
            self.fleets.remove(fleet)

    @contextmanager
    def bridge(self, *, web: bool = True, workers: bool = True, order: bool = True) -> Iterator[None]:
        """Run the bridge's processes, and wait until all are ready."""
        started = self.sql("SELECT clock_timestamp()")[0][0]
        programs = [self.stack.web()] if web else []
        if workers:
            programs += [*self.stack.workers(), self.stack.beat()]
        if not order:
            programs = [_bent(program) for program in programs]
        count = sum(program.name.startswith("worker") for program in programs)
        definition = self.sql("SELECT indexdef FROM pg_indexes WHERE indexname = %s", ONE_RUN)[0][0]

        def ready() -> bool:
            beating = self.sql("SELECT count(*) FROM audiences_worker WHERE beat_at >= %s", started)[0][0]
            return beating >= count and (not web or self.stack.answers("/health/ready"))

        try:
            if not order:
                self.sql(f"DROP INDEX {ONE_RUN}")
            with self.running(*programs, ready=ready):
                yield
        finally:
            if not order:
                self.clear()
                self.sql(definition)

    def has_workers(self) -> bool:
        return any(name.startswith("worker") for name in self.pids())

    def pids(self) -> dict[str, int]:
        """The process ids of the bridge and its servers, by name."""
        ours = (child for child in self._children() if child.program.name not in ("double", "null-server"))
        return {child.program.name: child.process.pid for child in ours if child.process is not None}

    def _children(self) -> Iterator[Child]:
        return (child for fleet in self.fleets for group in fleet.groups for child in group)

    def cpu_seconds(self) -> dict[str, float]:
        return {name: usage.cpu_seconds(pid) for name, pid in self.pids().items()}

    def rest(self, seconds: float) -> None:
        self.wait(lambda: False, seconds=seconds)

    def wait(self, condition: Callable[[], bool], *, seconds: float) -> bool:
        """Whether the condition becomes true in time. Raises Trouble if a process dies meanwhile."""

        def asked() -> bool:
            for child in self._children():
                if child.has_ended():
                    raise StackError(f"{child.program.name} has ended: {last_words(child.log, since=child.log_start)}")
            return condition()

        return self.servers.wait(asked, seconds=seconds)

    # --- Tables ----------------------------------------------------------------------------------------------

    @property
    def database_url(self) -> str:
        return self.stack.memory.values["DATABASE_URL"]

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as server:
            cursor = server.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def clear(self) -> None:
        """Empty the tables and write a checkpoint, so that each measurement starts from the same state."""
        if self.has_workers():
            # Wait for running deliveries: TRUNCATE takes its locks in another order and could deadlock with them.
            self.hold(self.install, go=False)
            self.wait(lambda: self.sql(_LEASED) == [(0,)], seconds=STALLED_SECONDS)
        self.sql(
            "TRUNCATE audiences_audience, audiences_event, audiences_receipt, audiences_delivery,"
            " audiences_run, audiences_membership, audiences_parked CASCADE"
        )
        self.sql("CHECKPOINT")
        self.double.forget()

    def _connect(self) -> Install:
        """Create the only install, which delivers to the double."""
        self.sql("TRUNCATE audiences_install CASCADE")
        account = ("--odp-host", self.double.url, "--odp-api-key", "bench.bench")
        made = json.loads(self.manage("create_install", "Bench", "--json", *account))
        pk = self.sql("SELECT id FROM audiences_install")[0][0]
        return Install(pk, self.stack.public_url + urlsplit(made["webhook_url"]).path, made["authorization"])

    def fresh(self, *, audiences: int) -> Install:
        """Empty tables and the given number of provisioned audiences, without a rate limit."""
        self.clear()
        self.sql("UPDATE audiences_install SET requests_per_second = 0, enabled = true")
        self.sql(
            "INSERT INTO audiences_audience (install_id, segment_id, slug, latest_slug, odp_id, last_sequence,"
            " created_at, provisioned_at) SELECT %s, 's' || n, 'bench_' || n, 'bench_' || n, 'lytics_bench_' || n, 0,"
            " now(), now() FROM generate_series(0, %s) AS n",
            self.install.pk,
            audiences - 1,
        )
        self.sql(
            "INSERT INTO audiences_lane (audience_id, delivered_sequence, member_count, paused_by, pause_reason,"
            " block_reason) SELECT id, 0, 0, '', '', '' FROM audiences_audience"
        )
        self.analyze()
        return self.install

    def analyze(self) -> None:
        """Update the statistics, as autovacuum has done on a bridge that ran for some minutes.

        Empty tables are left out: PostgreSQL assumes some rows for a table without statistics, and none for a table
        that was analyzed while empty.
        """
        self.sql(f"ANALYZE {self.sql(_FILLED)[0][0]}")

    def pace(self, install: Install, requests_per_second: int) -> None:
        self.sql("UPDATE audiences_install SET requests_per_second = %s WHERE id = %s", requests_per_second, install.pk)

    def pause_all(self, *, paused: bool) -> None:
        """Pause or resume all lanes. Paused lanes still receive events; an install that is switched off does not."""
        moment, who = ("now()", "bench") if paused else ("NULL", "")
        self.sql(f"UPDATE audiences_lane SET paused_at = {moment}, paused_by = %s, pause_reason = %s", who, who)  # noqa: S608

    def fill(self, install: Install, events: int, *, segment: str = "", delivered: bool = False) -> int:
        """Insert events into the log, evenly over all audiences or for one segment. Returns their number."""
        told: dict[str, Any] = {"install": install.pk, "only": not segment, "segment": segment}
        with psycopg.connect(self.database_url) as server:
            audiences = server.execute(_COUNT, told).fetchall()[0][0]
            told["each"] = max(1, events // audiences)
            server.execute(_FILL, told)
            server.execute(_NUMBER, told)
            if delivered:
                server.execute(_DELIVERED, told)
        self.analyze()
        self.sql("CHECKPOINT")
        return int(told["each"] * audiences)

    def remember(self) -> None:
        """Fill the ledger as if the whole log had been delivered."""
        self.sql(_LEDGER)
        self.analyze()
        self.sql("CHECKPOINT")

    def hold(self, install: Install, *, go: bool) -> None:
        """Switch an install on or off. Workers are idle while it is off."""
        self.sql("UPDATE audiences_install SET enabled = %s WHERE id = %s", go, install.pk)

    def backlog(self, segment: str = "") -> int:
        return int(self.sql(_BACKLOG, segment)[0][0])

    def wal_bytes(self) -> int:
        return int(self.sql("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")[0][0])

    # --- Loads and drains ------------------------------------------------------------------------------------

    def drained(self, items: int) -> float:
        """Wait until the double has responded to ``items`` items. Returns items per second since the first request."""
        most, stalled_at = 0, time.monotonic() + STALLED_SECONDS
        while (seen := self.double.seen())["items"] < items:
            if seen["items"] > most:
                most, stalled_at = seen["items"], time.monotonic() + STALLED_SECONDS
            if time.monotonic() > stalled_at:
                raise StackError(f"only {most:,} of {items:,} items came in; see {self.folder / 'log'}")
            self.rest(0.05)
        self.rest(2 * ODP_DELAY_SECONDS)
        seen = self.double.seen()
        took: float = seen["last_answer"] - seen["first"]
        return int(seen["items"]) / max(took, ODP_DELAY_SECONDS)

    def settled(self) -> None:
        if not self.wait(lambda: self.backlog() == 0, seconds=STALLED_SECONDS):
            raise StackError(f"{self.backlog():,} events are not settled")

    def send(self, install: Install, load: Load) -> Report:
        return self.finish(self.begin(install, load))

    def begin(self, install: Install, load: Load) -> "Sending":
        return self.start_load("sender", ("--url", install.url, "--authorization", install.authorization), load)

    def send_to(self, url: str, load: Load) -> Report:
        return self.finish(self.start_load("sender", ("--url", url), load))

    def store_bare(self, install: Install, load: Load) -> Report:
        words = ("--url", self.database_url, "--install", str(install.pk))
        return self.finish(self.start_load("limit", words, load))

    def start_load(self, module: str, words: Sequence[str], load: Load) -> "Sending":
        numbered = replace(load, first=self.next_stamp)
        self.next_stamp += load.calls
        command = [sys.executable, "-m", f"benchmarks.{module}", *words, *numbered.words()]
        # The report goes to a file: a long one would fill a pipe, which is read only at the end.
        output = self.folder / f"{module}.json"
        with output.open("w", encoding="utf-8") as file:
            return Sending(subprocess.Popen(command, stdout=file), output)  # noqa: S603 — our own

    def finish(self, sending: "Sending") -> Report:
        if code := sending.process.wait():
            raise StackError(f"the load ended with code {code}")
        report = Report(**json.loads(sending.output.read_text(encoding="utf-8").splitlines()[-1]))
        if report.trouble:
            raise StackError(f"the load was not taken: {report.trouble}")
        return report


def _bent(program: Program) -> Program:
    words = ["benchmarks.unordered" if word == "workers.app" else word for word in program.command]
    return replace(program, command=words)
