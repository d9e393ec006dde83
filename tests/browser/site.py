"""All processes of production with a separate database: gunicorn, a Celery worker and beat; and the calls of Lytics.

The tests use it over HTTP, as people and Lytics do, and query the sandbox for the result.
"""

import json
import os
import secrets
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg import errors, sql
from redis import Redis

from local.processes import Fleet, Program, free_port
from local.stack import Memory, Stack, manage
from tests.servers import TEMPLATE

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "long enough for anyone"
ROLES = ("viewer", "operator", "admin")
# In one process, because each start of Django takes 0.7 s of CPU.
PREPARE = f"""
from django.core.management import call_command
call_command("migrate", interactive=False, verbosity=0)
call_command("collectstatic", interactive=False, verbosity=0)
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group, User
password = make_password({PASSWORD!r})
for role in {ROLES!r}:
    User.objects.create(username=role, password=password, is_staff=True).groups.add(Group.objects.get(name=role))
"""


class Site:
    def __init__(self, folder: Path, *, server: str = "", **settings: str) -> None:
        """``server`` is PostgreSQL or a proxy before it; by default that of the tests."""
        self.folder = folder
        self.server = _renamed(server or os.environ["DATABASE_URL"], "postgres")  # there is always one of that name
        self.database = f"browser_{secrets.token_hex(4)}"
        self.redis = _renamed(os.environ["REDIS_URL"], "1")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        own = {
            "DATABASE_URL": _renamed(self.server, self.database),
            "REDIS_URL": self.redis,
            "PORT": str(port),
            **settings,
        }
        self.fleet = Fleet(folder=folder, env={**os.environ, **own}, tell=print)
        self.stack = Stack(folder=folder, port=port, host="127.0.0.1", memory=Memory(file=folder / "env", values={}))

    def start(self, *more: Program) -> None:
        with psycopg.connect(self.server, autocommit=True) as server:
            has_template = server.execute("SELECT 1 FROM pg_database WHERE datname = %s", [TEMPLATE]).fetchone()
            names = (sql.Identifier(name) for name in (self.database, TEMPLATE if has_template else "template1"))
            server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
        self._run(manage("shell", "--no-imports", "--command", PREPARE))
        worker, *_ = self.stack.workers()
        self.fleet.start(self.stack.web(), worker, self.stack.beat(), *more)

    def stop(self) -> None:
        self.fleet.stop()
        with psycopg.connect(self.server, autocommit=True) as server:
            server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(self.database)))

    def forget(self) -> None:
        """Empty the tables that a test can have filled, and forget failed tasks; accounts and roles stay."""
        with psycopg.connect(_renamed(self.server, self.database), autocommit=True) as server:
            rows = server.execute(
                "SELECT tablename FROM pg_tables WHERE tablename ~ '^(audiences_|django_session|django_admin_log)'"
                " AND tablename <> 'audiences_logpart'"
            )
            tables = sql.SQL(", ").join(sql.Identifier(name) for (name,) in rows)
            for _ in range(3):
                try:
                    server.execute(sql.SQL("TRUNCATE {}").format(tables))
                    break
                except errors.DeadlockDetected:  # the sweep was looking into two of them
                    continue
            else:
                raise AssertionError("the tables are never free")
        # Tasks that failed because their rows were gone would be shown to the next test.
        with Redis.from_url(self.redis) as redis:
            for key in redis.scan_iter("lytics-sync:failed:*"):
                redis.delete(key)

    def execute(self, code: str) -> None:
        """Run Python in a process with the settings of the site."""
        self._run(manage("shell", "--no-imports", "--command", code))

    def is_called(
        self, url: str, authorization: str, *, events: int = 60, audiences: int = 2, seed: int = 7
    ) -> dict[str, list[str]]:
        """Lytics sends a stream. By ODP id: who must be a member once all of it is delivered."""
        file = self.folder / "memberships.json"
        self._run(
            Program(
                name="sender",
                command=[
                    *(sys.executable, "-m", "sandbox.lytics", "--url", url, "--authorization", authorization),
                    *("--events", str(events), "--audiences", str(audiences), "--seed", str(seed), "--batch", "10"),
                    *("--memberships", str(file)),
                ],
            )
        )
        told = json.loads(file.read_text(encoding="utf-8"))["audiences"].values()
        return {audience["odp_id"]: sorted(audience["members"]) for audience in told}

    def _run(self, program: Program) -> None:
        code, said = self.fleet.run(program)
        assert code == 0, said + (self.fleet.logs / f"{program.name}.log").read_text(encoding="utf-8")


def _renamed(url: str, name: str) -> str:
    return urlsplit(url)._replace(path=f"/{name}").geturl()
