"""Starts the baseline's web process on a database of its own, in the same PostgreSQL server as the bridge."""

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.house import House
from local.processes import Program, free_port, listens
from local.stack import WEB_THREADS, python
from lytics_sync import env


class Baseline:
    def __init__(self, house: House) -> None:
        self.house = house
        self.port = free_port()
        self.webhook = f"http://127.0.0.1:{self.port}/webhook"
        self._env = {"BASELINE_DATABASE_URL": house.database_url.rpartition("/")[0] + "/baseline"}

    def create_database(self) -> None:
        """An empty database with the baseline's table; an earlier one is dropped."""
        self.house.sql("DROP DATABASE IF EXISTS baseline WITH (FORCE)")
        self.house.sql("CREATE DATABASE baseline")
        django = ("-m", "django", "migrate", "--run-syncdb", "--verbosity", "0")
        settings = {"DJANGO_SETTINGS_MODULE": "benchmarks.baseline.settings", "PYTHONPATH": str(env.PROJECT_DIR)}
        self.house.run(Program(name="baseline-schema", command=python(*django), env={**self._env, **settings}))

    @contextmanager
    def web(self) -> Iterator[None]:
        bind = ("--bind", f"127.0.0.1:{self.port}", "--worker-class", "gthread", "--keep-alive", "75")
        command = python("-m", "gunicorn", "benchmarks.baseline.app:web", *WEB_THREADS, "--no-control-socket", *bind)
        ready = Program(name="baseline-web", command=command, env=self._env, ready=lambda _pid: listens(self.port))
        with self.house.running(ready):
            yield
