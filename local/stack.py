"""The local stack: its folder, its stored secrets and ports, and its programs."""

import errno
import fcntl
import os
import resource
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO
from urllib.parse import SplitResult, urlsplit

import psycopg
import redis
from cryptography.fernet import Fernet

from local import embedded, launch
from local.processes import (
    Program,
    StackError,
    belongs_to,
    free_port,
    is_free,
    listening_error,
    listens,
    read_pid,
    write_pid,
)
from lytics_sync import env

# The free space that a start needs: an empty PostgreSQL with its write-ahead log, and the events of the stream.
BYTES_NEEDED = 300 << 20
# The least free space while running: with less than two segments of write-ahead log, PostgreSQL soon stops.
BYTES_WHILE_RUNNING = 32 << 20
# Seconds in which the children of a killed runner end.
LEFTOVER_SECONDS = 15
WORKERS = ("worker-1", "worker-2")
WEB_THREADS = ("--workers", "2", "--threads", "10")
WORKER_SLOTS = "12"
# What ALLOWED_HOSTS has by default. An address in HOST is added to it.
ALLOWED_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass(kw_only=True)
class Memory:
    """``local.env`` in the data directory: secrets and ports generated at first use (see ``env``, which reads it)."""

    file: Path
    values: dict[str, str] = field(default_factory=lambda: dict(env._local_file()))

    def keep(self, **values: str) -> None:
        self.values |= values
        lines = ["# Made by the local runner for this stack alone. The process environment goes first."]
        lines += [f"{name}={value}" for name, value in sorted(self.values.items())]
        new = self.file.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_text("\n".join(lines) + "\n", encoding="utf-8")
        new.replace(self.file)

    def forget(self, name: str) -> None:
        if self.values.pop(name, None) is not None:
            self.keep()

    def address(self, name: str) -> SplitResult:
        """The stored address ``name``, or an empty one."""
        try:
            url = urlsplit(self.values.get(name, ""))
            url.port  # noqa: B018 — reading it is what finds a wrong one
        except ValueError:
            raise StackError(env.damaged(f"{name} is no address")) from None
        return url

    def get_or_make(self, name: str, make: Callable[[], str]) -> str:
        if name not in self.values:
            self.keep(**{name: make()})
        return self.values[name]


@dataclass(kw_only=True)
class Stack:
    """One stack: a folder, a web port, and the settings that were not given in the environment."""

    folder: Path
    port: int
    host: str
    memory: Memory

    @classmethod
    def here(cls) -> "Stack":
        """The stack that ``DATA_DIR``, ``PORT`` and ``HOST`` name."""
        folder = env.data_dir()
        port = env.in_environment("PORT") or "8000"
        if not (port.isdecimal() and 0 < int(port) < 65536):
            raise StackError(f"PORT must be a number from 1 to 65535, not {port!r}.")
        host = env.in_environment("HOST") or embedded.HOST
        return cls(folder=folder, port=int(port), host=host, memory=Memory(file=folder / "local.env"))

    @property
    def public_url(self) -> str:
        return (env.in_environment("PUBLIC_URL") or f"http://{_in_url(self._address)}:{self.port}").rstrip("/")

    @property
    def _address(self) -> str:
        """The address at which this machine reaches the web process."""
        return {"0.0.0.0": embedded.HOST, "::": "::1"}.get(self.host, self.host)  # noqa: S104

    @property
    def postgres_folder(self) -> Path:
        return self.folder / "postgres"

    @property
    def is_embedded(self) -> bool:
        """Whether PostgreSQL is the embedded one."""
        return not env.in_environment("DATABASE_URL")

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every child, in addition to ``local.env``."""
        ours = {"DATA_DIR": str(self.folder), "PORT": str(self.port), "PYTHONUNBUFFERED": "1"}
        if _in_url(self._address) not in ALLOWED_HOSTS and not env.in_environment("ALLOWED_HOSTS"):
            public = urlsplit(self.public_url).hostname or ""
            ours["ALLOWED_HOSTS"] = ",".join({*ALLOWED_HOSTS, _in_url(self._address), _in_url(public)})
        return {**os.environ, **ours}

    # --- Before the start ------------------------------------------------------------------------------------

    def claim_folder(self) -> IO[str]:
        """Create the folder and lock it, until the returned lock is closed or this process ends in any way."""
        runs = self.folder / "run"
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                self.folder.chmod(0o700)
            runs.mkdir(mode=0o700, exist_ok=True)
            lock = (runs / "runner.lock").open("w")
        except OSError as error:
            raise StackError(f"DATA_DIR, {self.folder}, can't be written to: {error.strerror}.") from error
        if self.memory.file.exists() and not os.access(self.memory.file, os.R_OK):
            raise StackError(
                f"{self.memory.file} belongs to another user; start as that user, or choose another DATA_DIR."
            )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = read_pid(runs / "runner.pid")
            raise StackError(
                f"Another runner (process {holder or 'unknown'}) already uses {self.folder}; stop it with Ctrl-C, "
                "or choose another place with DATA_DIR and PORT."
            ) from None
        self._clear_leftovers(runs)
        write_pid(runs / "runner.pid", os.getpid())
        return lock

    def _clear_leftovers(self, runs: Path) -> None:
        """Wait for processes of a killed runner, and end them. Other programs aren't touched."""
        files = list(runs.glob("*.pid"))
        until = time.monotonic() + LEFTOVER_SECONDS
        while left := [pid for file in files if (pid := read_pid(file)) and belongs_to(pid, self.folder)]:
            for pid in left if time.monotonic() > until else ():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        for file in files:
            file.unlink(missing_ok=True)

    def check_room(self, needed: int = BYTES_NEEDED) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise StackError(
                f"Only {free >> 20} MB are free where {self.folder} is, and the stack needs {needed >> 20} MB; "
                "make room or choose another place with DATA_DIR."
            )

    def check_port(self) -> None:
        error = listening_error(self.port, self.host)
        if error is None:
            return
        if error.errno == errno.EADDRINUSE:
            reason = f"Port {self.port} on {self.host} is in use by another program"
        elif error.errno == errno.EACCES:
            reason = f"Port {self.port} needs more rights than this user has"
        else:
            raise StackError(f"HOST must be an address of this machine, not {self.host!r}: {error.strerror}.")
        raise StackError(f"{reason}; choose another one, for example with PORT={free_port()}.")

    def make_secrets(self) -> None:
        if "DATABASE_URL" not in self.memory.values and self.postgres_folder.exists() and self.is_embedded:
            raise StackError(env.damaged(f"it has no DATABASE_URL, and {self.postgres_folder} exists"))
        self.memory.get_or_make("SECRET_KEY", lambda: secrets.token_urlsafe(50))
        self.memory.get_or_make("FIELD_ENCRYPTION_KEYS", lambda: Fernet.generate_key().decode())
        # Stored, so that a command in a second terminal prints the addresses of this stack.
        self.memory.keep(PORT=str(self.port))

    def sandbox_port(self) -> int:
        """The stored port, which never changes, because the ODP host of the demo install contains it."""
        known = self.memory.get_or_make("SANDBOX_PORT", lambda: str(free_port()))
        if not known.isdecimal():
            raise StackError(env.damaged("SANDBOX_PORT is no number"))
        port = int(known)
        if not is_free(port):
            raise StackError(
                f"Port {port}, which the demo install knows as its ODP sandbox, is in use by another program; "
                "free it, or start afresh with another DATA_DIR."
            )
        return port

    # --- The servers -----------------------------------------------------------------------------------------

    def postgres(self) -> Program | None:
        """The embedded PostgreSQL, or None where ``DATABASE_URL`` names another."""
        if not self.is_embedded:
            return None
        port, password = self._port_and_password("DATABASE_URL", embedded.postgres_url)
        return embedded.postgres(folder=self.postgres_folder, port=port, password=password)

    def redis(self) -> Program | None:
        """The embedded Redis-compatible server, or None where ``REDIS_URL`` names another."""
        if env.in_environment("REDIS_URL"):
            return None
        port, password = self._port_and_password("REDIS_URL", embedded.redis_url)
        return embedded.redis(folder=self.folder / "redis", port=port, password=password)

    def _port_and_password(self, name: str, url: Callable[..., str]) -> tuple[int, str]:
        """The stored port and password. A port that another program uses is replaced."""
        known = self.memory.address(name)
        port, password = known.port, known.password or secrets.token_urlsafe(24)
        if port is None or not is_free(port):
            port = free_port()
        self.memory.keep(**{name: url(port=port, password=password)})
        return port, password

    @property
    def database_url(self) -> str:
        return env.in_environment("DATABASE_URL") or self.memory.values["DATABASE_URL"]

    def create_database(self) -> None:
        known = self.memory.address("DATABASE_URL")
        assert known.port is not None
        assert known.password is not None
        try:
            embedded.create_database(port=known.port, password=known.password)
        except psycopg.Error as error:
            raise StackError(f"The embedded PostgreSQL can't be used: {_first_line(error)}") from error

    def check_servers(self) -> None:
        """Check that the servers named in the environment respond. The embedded servers are ready at this point."""
        try:
            psycopg.connect(self.database_url, connect_timeout=5).close()
        except psycopg.Error as error:
            raise StackError(f"The PostgreSQL that DATABASE_URL names does not answer: {_first_line(error)}") from error
        url = env.in_environment("REDIS_URL") or self.memory.values["REDIS_URL"]
        try:
            with redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=5) as server:
                server.ping()
        except (redis.RedisError, ValueError) as error:
            raise StackError(f"The Redis that REDIS_URL names does not answer: {_first_line(error)}") from error

    def has_admin(self) -> bool:
        with psycopg.connect(self.database_url, connect_timeout=5) as server:
            found = server.execute("SELECT 1 FROM auth_user WHERE is_superuser AND is_active LIMIT 1").fetchone()
        return found is not None

    # --- The programs ----------------------------------------------------------------------------------------

    def web(self) -> Program:
        options = {
            "--bind": f"{_in_url(self.host)}:{self.port}",
            "--worker-class": "lytics_sync.web_worker.Worker",
            "--logger-class": "lytics_sync.logs.GunicornLogger",
            # Longer than a sender's pause between two calls; gunicorn's default of 2 s would close the connection.
            "--keep-alive": "75",
            "--graceful-timeout": "5",
            # In memory if possible: gunicorn's workers touch a file here to show that they are alive.
            "--worker-tmp-dir": "/dev/shm" if Path("/dev/shm").is_dir() else str(self.folder),  # noqa: S108
        }
        return Program(
            name="web",
            command=[
                *python("-m", "gunicorn", "lytics_sync.wsgi:application", *WEB_THREADS),
                # Its socket would be in the home directory.
                "--no-control-socket",
                *(word for option in options.items() for word in option),
            ],
            ready=lambda _pid: self.answers("/health/live"),
            patience=8,
            # gunicorn's workers end with their parent only if it can still signal them.
            orphan_signal=signal.SIGQUIT,
        )

    def answers(self, path: str) -> bool:
        """Whether the web process answers 200 to ``path``."""
        connection = HTTPConnection(self._address, self.port, timeout=3)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def workers(self, names: Iterable[str] = WORKERS) -> Iterable[Program]:
        for name in names:
            options = ("--pool", "threads", "--concurrency", WORKER_SLOTS, "--hostname", f"{name}@%h")
            yield Program(
                name=name,
                command=python(
                    *("-m", "celery", "-A", "workers.app", "-q", "worker", "--loglevel", "INFO"),
                    *("--without-gossip", "--without-mingle", *options),
                ),
                # A worker accepts no new task and finishes the current ones.
                patience=8,
            )

    def beat(self) -> Program:
        schedule = str(self.folder / "run" / "beat-schedule")
        return Program(
            name="beat",
            command=python(
                "-m", "celery", "-A", "workers.app", "-q", "beat", "--loglevel", "INFO", "--schedule", schedule
            ),
        )

    @property
    def lytics_state(self) -> Path:
        """The state file that the sandbox's sender and its Lytics API share."""
        return self.folder / "lytics.sqlite3"

    def sandbox_lytics(self) -> Program:
        """Lytics' API of the sandbox. ``LYTICS_API_URL`` is kept, so that every process of the stack calls it."""
        known = self.memory.address("LYTICS_API_URL").port
        port = known if known and is_free(known) else free_port()
        self.memory.keep(LYTICS_API_URL=f"http://127.0.0.1:{port}")
        return Program(
            name="sandbox-lytics",
            command=python("-m", "sandbox.lytics.api", "--port", str(port), "--state", str(self.lytics_state)),
            ready=lambda _pid: listens(port),
            orphan_signal=signal.SIGTERM,
        )

    def sandbox(self) -> Program:
        port = self.sandbox_port()
        state = str(self.folder / "sandbox.json")
        return Program(
            name="sandbox",
            command=python("-m", "sandbox.odp", "--port", str(port), "--state", state),
            ready=lambda _pid: listens(port),
            orphan_signal=signal.SIGTERM,
        )


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


def manage(*words: str, **environment: str) -> Program:
    """One of the project's commands."""
    return Program(name=words[0], command=python("manage.py", *words), env=environment)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def stand_alone() -> None:
    """Set the environment for runs with their own servers and secrets, which end when make ends."""
    for name in ("DATABASE_URL", "REDIS_URL", "DATA_DIR", "PORT", "PUBLIC_URL", "SECRET_KEY", "HOST"):
        os.environ.pop(name, None)
    os.environ["FIELD_ENCRYPTION_KEYS"] = Fernet.generate_key().decode()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if os.environ.get("MAKELEVEL"):
        launch.die_with(os.getppid(), signal.SIGTERM)
