"""The processes of a chaos run, started from the project's own command lines and kept running by its own runner."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import redis

from local.processes import Child, Fleet, StackError, free_port, last_words
from local.stack import Memory, Stack, manage
from lytics_sync import env
from sandbox.odp.testing import RunningSandbox
from tests import servers
from tests.relay import Relay

# The second worker reaches PostgreSQL through a relay; the last one's clock is a minute ahead, all along.
RELAYED = "worker-2"
AHEAD_SECONDS = 60
# Web uses 20 connections and three workers 30; few enough for a fault to take all of them.
MAX_CONNECTIONS = 80
HOOK = Path(__file__).parent / "hook"
# The name of a pair of accounts, its mechanism, and its requests per second (0: no limit).
Wanted = tuple[str, str, int]


class House:
    """All processes of the run. The main thread starts, supervises and kills them (see ``processes``)."""

    def __init__(
        self, *, folder: Path, settings: dict[str, str], workers: int, twin: str = "", is_plain: bool = False
    ) -> None:
        """``is_plain``: nothing but faults disturbs the processes (no relays, no wrong clock), and Lytics' API runs."""
        self.folder = folder
        self.workers = tuple(f"worker-{number + 1}" for number in range(workers))
        self.settings = settings
        self.stack = Stack(
            folder=folder, port=free_port(), host="127.0.0.1", memory=Memory(file=folder / "local.env", values={})
        )
        self.twin = twin
        self.is_plain = is_plain
        self.notes: list[str] = []
        self._undo = ExitStack()

    @contextmanager
    def open(self) -> Iterator["House"]:
        os.chdir(env.PROJECT_DIR)
        with self._undo:
            self._undo.enter_context(self.stack.claim_folder())
            self.stack.make_secrets()
            self.fleet = Fleet(folder=self.folder, env=self._environment(), tell=self.notes.append)
            self.fleet.listen_to_signals()
            self._undo.callback(self._end)
            self._start_servers()
            self._start_programs()
            yield self

    def _end(self) -> None:
        """Kill all processes; the run is over, so no process has to finish its work."""
        for child in (child for group in self.fleet.groups for child in group):
            if child.process is not None and not child.has_ended():
                os.killpg(child.process.pid, signal.SIGKILL)
        self.fleet.stop()

    def _environment(self) -> dict[str, str]:
        paths = os.pathsep.join((str(HOOK), str(env.PROJECT_DIR)))
        twin = {"CHAOS_TWIN": self.twin} if self.twin else {}
        return {**self.stack.environment, "PYTHONPATH": paths, **self.settings, **twin}

    def _start_servers(self) -> None:
        migrated = servers.Migrated.given(self.stack)
        postgres, broker = self.stack.postgres(), self.stack.redis()
        assert postgres is not None
        assert broker is not None
        few = ("-c", f"max_connections={MAX_CONNECTIONS}")
        self.fleet.start(replace(postgres, command=[*postgres.command, *few]), broker)
        if migrated:
            migrated.name_database()
        self.stack.create_database()
        self.database_url, self.broker_url = (self.stack.memory.values[n] for n in ("DATABASE_URL", "REDIS_URL"))
        if self.is_plain:
            self.fleet.start(self.stack.sandbox_lytics())
        else:
            self._start_relays()
        unlimited = ("--rate-profiles", "0", "--rate-lists", "0", "--latency", "0.005-0.05")
        self.odp = self._undo.enter_context(RunningSandbox(*unlimited))

    def _start_relays(self) -> None:
        self.database, self.broker = Relay(self.database_url), Relay(self.broker_url)
        for relay in (self.database, self.broker):
            self._undo.callback(relay.close)
        self.fleet.env = {**self.fleet.env, "REDIS_URL": self.broker.url}

    def _start_programs(self) -> None:
        if "CLUSTER" not in os.environ:
            self.manage("migrate", "--noinput", "--verbosity", "0")
        workers = [replace(worker, env=self._bent(worker.name)) for worker in self.stack.workers(self.workers)]
        self.fleet.start(self.stack.web(), *workers, self.stack.beat())
        if not self.wait(lambda: self.stack.answers("/health/ready"), seconds=30):
            raise StackError(f"web is not ready; see {self.folder / 'log' / 'web.log'}")

    def _bent(self, worker: str) -> dict[str, str]:
        if self.is_plain:
            return {}
        relayed = {"DATABASE_URL": self.database.url} if worker == RELAYED else {}
        return {**relayed, **({"CHAOS_CLOCK": str(AHEAD_SECONDS)} if worker == self.workers[-1] else {})}

    def manage(self, *words: str, patience: float = 0) -> str:
        """The output of one of the project's commands, which is retried for ``seconds`` when it fails."""
        until = time.monotonic() + patience
        while True:
            code, output = self.fleet.run(manage(*words))
            if code == 0 or (output and time.monotonic() > until):
                return output
            if time.monotonic() > until:
                raise StackError(f"{words[0]} failed: {last_words(self.fleet.logs / f'{words[0]}.log')}")

    def connect(self, *wanted: "Wanted", then: str = "") -> list["Install"]:
        """Pairs of accounts: one at the sandbox without limits, and an install for it. ``then`` is Python to run there.

        In one process, because each start of Django takes 1 s of CPU.
        """
        words = []
        for name, mechanism, pace in wanted:
            key = f"{name}.secret"
            self.odp.control("/sandbox/accounts", {"private_key": key, "rates": {"profiles": 0, "lists": 0}})
            account = ("--odp-host", self.odp.url, "--odp-api-key", key, "--mechanism", mechanism)
            words.append(("create_install", name, "--json", *account, "--requests-per-second", str(pace)))
        code = f"from django.core.management import call_command\nfor words in {words!r}: call_command(*words)\n{then}"
        made = [json.loads(line) for line in self.manage("shell", "--no-imports", "-c", code).splitlines()]
        return [
            Install(name, self.stack.public_url + urlsplit(one["webhook_url"]).path, one["authorization"], pace)
            for (name, _, pace), one in zip(wanted, made, strict=True)
        ]

    # --- Time passes ---------------------------------------------------------------------------------------------

    def rest(self, seconds: float) -> None:
        """Let time pass; processes that have died are restarted."""
        self.fleet.wait(lambda: False, seconds=seconds)

    def wait(self, condition: Callable[[], bool], *, seconds: float) -> bool:
        return self.fleet.wait(condition, seconds=seconds)

    # --- Processes -----------------------------------------------------------------------------------------------

    def child(self, name: str) -> Child:
        return next(child for group in self.fleet.groups for child in group if child.program.name == name)

    def pid(self, name: str) -> int:
        """The process id of a program, as soon as it runs."""
        child = self.child(name)
        if not self.wait(lambda: not child.has_ended(), seconds=60):
            raise StackError(f"{name} does not come back; see {child.log}")
        assert child.process is not None
        return child.process.pid

    def said(self, name: str) -> str:
        """The log of a program since its last start."""
        child = self.child(name)
        return child.log.read_bytes()[child.log_start :].decode(errors="replace")

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Kill the process; returns its process id."""
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    def replace(self, name: str) -> None:
        """Stop a process gracefully and start it again, as a deploy does."""
        old = self.pid(name)
        os.kill(old, signal.SIGTERM)
        self.wait(lambda: self.pid(name) != old, seconds=60)

    # --- Servers -------------------------------------------------------------------------------------------------

    def database_connection(self) -> "psycopg.Connection[Any]":
        return psycopg.connect(self.database_url, connect_timeout=5, autocommit=True)

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of a statement, as soon as PostgreSQL answers."""
        rows: list[tuple[Any, ...]] = []

        def asked() -> bool:
            try:
                with self.database_connection() as server:
                    rows[:] = server.execute(statement, values or None).fetchall()
            except psycopg.Error:
                return False
            return True

        if not self.wait(asked, seconds=60):
            raise StackError("PostgreSQL does not come back")
        return rows

    def wait_for_database(self, *, instead_of: int) -> None:
        """Wait until a new PostgreSQL accepts connections, so that each kill is a separate fault."""
        self.wait(lambda: self.pid("postgres") != instead_of, seconds=60)
        self.sql("SELECT 1")

    def flush_broker(self) -> None:
        with redis.Redis.from_url(self.broker_url, socket_timeout=5) as server:
            server.flushall()


class Install:
    """What the stream needs of a pair of accounts."""

    def __init__(self, name: str, url: str, authorization: str, requests_per_second: int) -> None:
        self.name = name
        self.url = url
        self.authorization = authorization
        self.requests_per_second = requests_per_second
