"""What others would run in our place, each in a database of its own in the same PostgreSQL, 20 requests at once.

The baseline is ours to write (``benchmarks/baseline``); Procrastinate and Graphile Worker come from the package
registries and are configured as their docs advise. Queues are full before the clock starts, the audiences in turn.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg

from benchmarks.house import House
from local.processes import Program, free_port, listens
from local.stack import WEB_THREADS, WORKER_SLOTS, WORKERS, python
from lytics_sync import env

GRAPHILE = Path(__file__).parent / "graphile"
# Where `make bench` has npm put it.
NODE_MODULES = env.PROJECT_DIR / ".venv" / "bench-node" / "node_modules"

# As many jobs for each audience, each with so many items of its own, in the order in which events would have come.
_JOBS = """
SELECT n, audience, jsonb_build_object('items', (
    SELECT jsonb_agg(jsonb_build_object('attributes', jsonb_build_object(
        'fs_user_id', who, 'web_user_id', who, 'lytics_bench_' || audience, true)))
    FROM (SELECT md5(random()::text || item || n || audience) AS who
          FROM generate_series(1, %(items)s) AS item) AS people)) AS payload
FROM generate_series(1, %(each)s) AS n, generate_series(1, %(audiences)s) AS audience ORDER BY n, audience
"""
_PROCRASTINATE = f"""
INSERT INTO procrastinate_jobs (queue_name, task_name, lock, args)
SELECT 'bench', 'deliver', audience::text, payload FROM ({_JOBS}) AS jobs ORDER BY n, audience
"""  # noqa: S608 — only constants of this module
_GRAPHILE = f"""
SELECT count(*) FROM graphile_worker.add_jobs((
    SELECT array_agg((json_populate_record(NULL::graphile_worker.job_spec, json_build_object(
        'identifier', 'deliver', 'queue_name', audience::text, 'payload', payload))) ORDER BY n, audience)
    FROM ({_JOBS}) AS jobs))
"""  # noqa: S608


class Peer:
    """A queue that keeps order per key, and its workers."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.database = type(self).__name__.lower()
        self.url = house.database_url.rpartition("/")[0] + f"/{self.database}"
        self.env = {
            "PEER_DATABASE_URL": self.url.replace("postgres://", "postgresql://"),
            "BASELINE_DATABASE_URL": self.url,
            "BENCH_ODP_URL": house.double.url,
        }

    @property
    def missing(self) -> str:
        """Why it can't be measured here; empty when it can."""
        return ""

    def lay(self) -> None:
        """A database with nothing in it but its tables."""
        self.house.sql(f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)")
        self.house.sql(f"CREATE DATABASE {self.database}")

    def fill(self, events: int, *, audiences: int, items: int) -> int:
        raise NotImplementedError

    def workers(self) -> list[Program]:
        raise NotImplementedError

    def drain(self, events: int, *, audiences: int, items: int) -> float:
        """Events a second."""
        self.lay()
        self.house.double.forget()
        count = self.fill(events, audiences=audiences, items=items)
        with psycopg.connect(self.url, autocommit=True) as server:
            server.execute("ANALYZE")
        self.house.sql("CHECKPOINT")
        with self.house.running(*self.workers()):
            return self.house.drained(count)

    def _insert(self, statement: str, events: int, audiences: int, items: int) -> int:
        each = max(1, events // audiences // items)
        with psycopg.connect(self.url) as server:
            server.execute(statement, {"each": each, "audiences": audiences, "items": items})
        return each * audiences * items


class Procrastinate(Peer):
    @property
    def missing(self) -> str:
        return "" if find_spec("procrastinate") else "Procrastinate is not installed (requirements-bench.txt)"

    def _command(self, *words: str) -> list[str]:
        return python("-m", "procrastinate", "--app=benchmarks.procrastinate_app.app", *words)

    def lay(self) -> None:
        super().lay()
        schema = self._command("schema", "--apply")
        self.house.run(Program(name="procrastinate-schema", command=schema, env=self.env))

    def fill(self, events: int, *, audiences: int, items: int) -> int:
        return self._insert(_PROCRASTINATE, events, audiences, items)

    def workers(self) -> list[Program]:
        # Jobs that are done are deleted: kept ones would slow it down, and its docs say so.
        work = self._command("worker", "--concurrency", WORKER_SLOTS, "--delete-jobs", "successful")
        return [Program(name=f"procrastinate-{name}", command=work, env=self.env) for name in WORKERS]


class Graphile(Peer):
    @property
    def missing(self) -> str:
        if not shutil.which("node"):
            return "Graphile Worker takes node, which is not here"
        return "" if self._binary.exists() else "Graphile Worker is not installed (npm is not here, or could not)"

    @property
    def _binary(self) -> Path:
        return NODE_MODULES / "graphile-worker" / "dist" / "cli.js"

    def _program(self, name: str, *words: str) -> Program:
        # It finds its tasks in the working directory.
        script = 'cd "$1" && shift && exec "$@"'
        command = ["/bin/sh", "-c", script, "sh", str(GRAPHILE), shutil.which("node") or "", str(self._binary)]
        return Program(name=name, command=[*command, "-c", self.url, *words], env=self.env)

    def lay(self) -> None:
        super().lay()
        self.house.run(self._program("graphile-schema", "--schema-only"))

    def fill(self, events: int, *, audiences: int, items: int) -> int:
        return self._insert(_GRAPHILE, events, audiences, items)

    def workers(self) -> list[Program]:
        # Its docs ask for a pool as large as the jobs at once, and two more.
        flags = ("--jobs", WORKER_SLOTS, "--max-pool-size", str(int(WORKER_SLOTS) + 2))
        return [self._program(f"graphile-{name}", *flags) for name in WORKERS]


class Baseline(Peer):
    """Serializers, ``bulk_create``, and a Celery task per event."""

    def __init__(self, house: House) -> None:
        super().__init__(house)
        self.port = free_port()
        self.webhook = f"http://127.0.0.1:{self.port}/webhook"

    def lay(self) -> None:
        super().lay()
        django = ("-m", "django", "migrate", "--run-syncdb", "--verbosity", "0")
        settings = {"DJANGO_SETTINGS_MODULE": "benchmarks.baseline.settings", "PYTHONPATH": str(env.PROJECT_DIR)}
        self.house.run(Program(name="baseline-schema", command=python(*django), env={**self._env, **settings}))

    @property
    def _env(self) -> dict[str, str]:
        return {**self.env, "REDIS_URL": self.house.stack.memory.values["REDIS_URL"]}

    @contextmanager
    def web(self, *, publish: bool = True) -> Iterator[None]:
        bind = ("--bind", f"127.0.0.1:{self.port}", "--worker-class", "gthread", "--keep-alive", "75")
        command = python("-m", "gunicorn", "benchmarks.baseline.app:web", *WEB_THREADS, "--no-control-socket", *bind)
        settings = {**self._env, "BASELINE_PUBLISH": str(int(publish))}
        program = Program(name="baseline-web", command=command, env=settings, ready=lambda _pid: listens(self.port))
        with self.house.running(program):
            yield

    def workers(self) -> list[Program]:
        command = python("-m", "celery", "-A", "benchmarks.baseline.app", "worker", "--pool", "threads")
        flags = ("--concurrency", WORKER_SLOTS, "--without-gossip", "--without-mingle")
        return [
            Program(name=f"baseline-{name}", command=[*command, *flags, "--hostname", f"{name}@%h"], env=self._env)
            for name in WORKERS
        ]

    def fill(self, events: int, *, audiences: int, items: int) -> int:
        """Through its own web process, which sends a task for each event."""
        from benchmarks.load import Load

        per_call = min(300, events)
        load = Load(calls=max(1, events // per_call), batch=per_call, audiences=audiences, spread=audiences)
        self.forget_tasks()
        with self.web():
            self.house.send_to(self.webhook, load)
        return load.calls * load.batch

    def forget_tasks(self) -> None:
        import redis

        with redis.Redis.from_url(self._env["REDIS_URL"], socket_timeout=5) as server:
            server.flushall()


def described() -> dict[str, str]:
    """Their versions."""
    told = {}
    if find_spec("procrastinate"):
        from importlib.metadata import version

        told["Procrastinate"] = version("procrastinate")
    package = NODE_MODULES / "graphile-worker" / "package.json"
    if package.exists():
        told["Graphile Worker"] = json.loads(package.read_text(encoding="utf-8"))["version"]
    return told
