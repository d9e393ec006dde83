"""The faults of a run. Each is a function that causes the fault, waits for its duration, and ends it.

Killed processes are restarted by the supervisor, as in production; the faults don't restart them.
"""

import os
import resource
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import psycopg

from tests.chaos.house import MAX_CONNECTIONS, House

# Customers whom ODP may refuse, by what their identifiers contain.
REFUSED = "bad"
# RLIMIT_FSIZE keeps PostgreSQL's files from growing, which is the closest simulation of a full disk.
SMALL_FILE, WAL_SEGMENT = 1 << 20, 16 << 20


@dataclass(frozen=True, kw_only=True)
class Fault:
    """``is_kill``: a process dies and has to be replaced. ``seconds``: about how long the fault takes.

    A kill with ``seconds`` above zero waits until the process is back.
    """

    label: str
    strike: Callable[[House, Random], None]
    is_kill: bool = False
    seconds: float = 0.0


# --- Processes ------------------------------------------------------------------------------------------------


def kill_worker(house: House, dice: Random) -> None:
    house.kill(dice.choice(house.workers))


def kill_web_worker(house: House, dice: Random) -> None:
    master = house.pid("web")
    children = Path(f"/proc/{master}/task/{master}/children").read_text(encoding="ascii").split()
    if children:
        with suppress(ProcessLookupError):
            os.kill(int(dice.choice(children)), signal.SIGKILL)


def kill_web(house: House, dice: Random) -> None:
    house.kill("web")


def kill_beat(house: House, dice: Random) -> None:
    house.kill("beat")


def zombie(house: House, dice: Random) -> None:
    """A worker is frozen for longer than its lease, and then continues.

    ODP is slow during the fault, so that the worker freezes within requests and continues while other workers hold its
    lanes.
    """
    house.odp.fault({}, {"delay_seconds": 0.6})
    house.rest(1)
    pid = house.pid(dice.choice(house.workers))
    os.kill(pid, signal.SIGSTOP)
    house.rest(float(house.settings["LEASE_SECONDS"]) + 1.5)
    os.kill(pid, signal.SIGCONT)
    house.rest(1)
    house.odp.clear_faults()


def deploy(house: House, dice: Random) -> None:
    """Replace the processes one by one, so that old and new ones run side by side, and migrate meanwhile."""
    house.kill("worker-1", signal.SIGTERM)
    house.manage("migrate", "--noinput", "--verbosity", "0", patience=20)
    for name in (*house.workers[1:], "web", "beat"):
        house.replace(name)


# --- PostgreSQL -----------------------------------------------------------------------------------------------

_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


def terminate_backend(house: House, dice: Random) -> None:
    if backends := house.sql(_BACKENDS):
        house.sql("SELECT pg_terminate_backend(%s)", dice.choice(backends)[0])


def kill_backend(house: House, dice: Random) -> None:
    """Kill one backend of PostgreSQL. It assumes damaged shared memory, ends all sessions and recovers."""
    if backends := house.sql(_BACKENDS):
        with suppress(ProcessLookupError):
            os.kill(dice.choice(backends)[0], signal.SIGKILL)


def kill_postgres(house: House, dice: Random) -> None:
    house.wait_for_database(instead_of=house.kill("postgres"))


def kill_postgres_twice(house: House, dice: Random) -> None:
    """Kill PostgreSQL, and again as soon as it recovers from the first kill."""
    first = house.kill("postgres")
    house.wait(lambda: house.pid("postgres") != first and "redo starts" in house.said("postgres"), seconds=60)
    house.wait_for_database(instead_of=house.kill("postgres"))


def restart_postgres(house: House, dice: Random) -> None:
    """A fast shutdown, as by a service manager; it is started again as soon as it is down."""
    house.wait_for_database(instead_of=house.kill("postgres", signal.SIGINT))


def exhaust_connections(house: House, dice: Random, seconds: float = 3) -> None:
    """Another client takes every database connection, and each one that becomes free."""
    held: list[Any] = []
    enough = threading.Event()

    def take() -> None:
        while not enough.is_set():
            try:
                held.append(house.database_connection())
            except psycopg.Error:
                enough.wait(0.02)

    threads = [threading.Thread(target=take, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    house.wait(lambda: len(held) >= MAX_CONNECTIONS, seconds=seconds)
    house.rest(seconds / 3)
    enough.set()
    for thread in threads:
        thread.join()
    for connection in held:
        connection.close()


def full_disk(house: House, dice: Random) -> None:
    """No file of PostgreSQL may grow: tables can't be extended, or the log can't be written, which stops it."""
    largest = house.sql("SELECT max(pg_relation_size(oid)) FROM pg_class WHERE relkind IN ('r', 'i')")[0][0]
    limit = WAL_SEGMENT if largest > WAL_SEGMENT else SMALL_FILE
    master = house.pid("postgres")
    _, hard = resource.prlimit(master, resource.RLIMIT_FSIZE)
    pids = [master, *(row[0] for row in house.sql("SELECT pid FROM pg_stat_activity"))]
    _limit_files(pids, (limit, hard))
    house.rest(2)
    # Those started since have it from the first process.
    children = Path(f"/proc/{master}/task/{master}/children")
    alive = children.read_text(encoding="ascii").split() if children.exists() else []
    _limit_files([master, *map(int, alive)], (hard, hard))


def _limit_files(pids: list[int], limits: tuple[int, int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


# --- The broker, and the ways to both servers -----------------------------------------------------------------


def kill_broker(house: House, dice: Random) -> None:
    """Kill the broker, which stores nothing on disk: all messages are lost."""
    house.kill("redis")


def empty_broker(house: House, dice: Random) -> None:
    house.flush_broker()


def _way(relay: str, how: Callable[[Any], AbstractContextManager[None]], seconds: float) -> Callable[..., None]:
    def strike(house: House, dice: Random) -> None:
        with how(getattr(house, relay)):
            house.rest(seconds)

    return strike


# --- ODP ------------------------------------------------------------------------------------------------------


def _odp(then: dict[str, Any], *, seconds: float = 1.5, times: int | None = None) -> Callable[..., None]:
    """ODP applies a fault to requests for ``seconds`` or ``times`` times; ``{late}`` is beyond the deadline."""

    def strike(house: House, dice: Random) -> None:
        deadline = float(house.settings["DELIVERY_DEADLINE_SECONDS"])
        told = {name: deadline + value.after if isinstance(value, _Late) else value for name, value in then.items()}
        lasts = seconds + (deadline if times else 0)
        number = house.odp.fault({} if times is None else {"times": times}, told)
        if times:
            house.wait(lambda: _struck(house, number) >= times, seconds=lasts)
            house.rest(lasts)
        else:
            house.rest(lasts)
        house.odp.clear_faults()

    return strike


@dataclass(frozen=True)
class _Late:
    """A moment after the deadline."""

    after: float


def _struck(house: House, number: int) -> int:
    known = house.odp.control("/sandbox/faults")["faults"]
    return next((int(fault["struck"]) for fault in known if fault["id"] == number), 0)


FAULTS: dict[str, Fault] = {
    "worker": Fault(label="worker killed", strike=kill_worker, is_kill=True),
    "web_worker": Fault(label="web: one of its processes killed", strike=kill_web_worker, is_kill=True),
    "web": Fault(label="web: the master killed", strike=kill_web, is_kill=True),
    "beat": Fault(label="beat killed", strike=kill_beat, is_kill=True),
    "backend_ended": Fault(label="PostgreSQL backend terminated", strike=terminate_backend, is_kill=True),
    "backend": Fault(label="PostgreSQL backend killed", strike=kill_backend, is_kill=True),
    "postgres": Fault(label="PostgreSQL itself killed", strike=kill_postgres, is_kill=True, seconds=1),
    "postgres_twice": Fault(
        label="PostgreSQL killed, and again while it recovers", strike=kill_postgres_twice, is_kill=True, seconds=2
    ),
    "postgres_restarted": Fault(label="PostgreSQL restarted", strike=restart_postgres, is_kill=True, seconds=1),
    "broker": Fault(label="broker killed, its data gone", strike=kill_broker, is_kill=True),
    "emptied": Fault(label="broker emptied", strike=empty_broker),
    "zombie": Fault(label="worker stopped within requests, back after its lease", strike=zombie, seconds=14),
    "deploy": Fault(label="deploy: all replaced, migrate meanwhile", strike=deploy, seconds=12),
    "connections": Fault(label="connections exhausted", strike=exhaust_connections, seconds=3),
    "disk": Fault(label="PostgreSQL's files can't grow", strike=full_disk, seconds=4),
    "broker_2ms": Fault(label="broker slow by 2 ms", strike=_way("broker", lambda r: r.slow(0.002), 3), seconds=3),
    "broker_200ms": Fault(label="broker slow by 200 ms", strike=_way("broker", lambda r: r.slow(0.2), 3), seconds=3),
    "broker_cut": Fault(label="broker cut off", strike=_way("broker", lambda r: r.cut(), 2), seconds=2),
    "broker_frozen": Fault(label="broker half-open, silent", strike=_way("broker", lambda r: r.frozen(), 4), seconds=4),
    "database_slow": Fault(
        label="PostgreSQL slow by 20 ms to a worker", strike=_way("database", lambda r: r.slow(0.02), 3), seconds=3
    ),
    "database_cut": Fault(label="PostgreSQL cut off from a worker", strike=_way("database", lambda r: r.cut(), 2)),
    "database_frozen": Fault(
        label="PostgreSQL half-open to a worker", strike=_way("database", lambda r: r.frozen(), 4), seconds=4
    ),
    "odp_500": Fault(label="ODP answers 500", strike=_odp({"status": 500}), seconds=1.5),
    "odp_500_applied": Fault(
        label="ODP answers 500 and has applied it", strike=_odp({"status": 500, "apply": True}), seconds=1.5
    ),
    "odp_429": Fault(label="ODP answers 429", strike=_odp({"status": 429}), seconds=1.5),
    "odp_429_later": Fault(
        label="ODP answers 429 with Retry-After",
        strike=_odp({"status": 429, "headers": {"Retry-After": "2"}}),
        seconds=1.5,
    ),
    "odp_401": Fault(label="ODP answers 401", strike=_odp({"status": 401}), seconds=1.5),
    "odp_html": Fault(label="ODP answers with a web page", strike=_odp({"status": 200, "html": True}), seconds=1.5),
    "odp_half": Fault(label="ODP sends half an answer", strike=_odp({"close": "halfway"}), seconds=1.5),
    "odp_reset": Fault(label="ODP hangs up after applying", strike=_odp({"close": "after"}), seconds=1.5),
    "odp_slow": Fault(label="ODP slow by 400 ms", strike=_odp({"delay_seconds": 0.4}, seconds=3), seconds=3),
    "odp_silent": Fault(
        label="ODP says nothing until the deadline",
        strike=_odp({"delay_seconds": _Late(1), "close": "before"}, times=3),
        seconds=10,
    ),
    "odp_drip": Fault(label="ODP drips its answer", strike=_odp({"drip_seconds": _Late(5)}, times=3), seconds=10),
    "odp_late": Fault(
        label="ODP applies after it was given up", strike=_odp({"delay_seconds": _Late(1.2)}, times=3), seconds=10
    ),
    "odp_refuses": Fault(
        label="ODP refuses some customers",
        strike=_odp({"refuse_items": {"identifier_contains": REFUSED}}, seconds=2),
        seconds=2,
    ),
}
KILLS = [name for name, fault in FAULTS.items() if fault.is_kill]
OTHERS = [name for name, fault in FAULTS.items() if not fault.is_kill]
