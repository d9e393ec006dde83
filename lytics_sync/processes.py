"""One child process: how it is started, known to be ready, and stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LAUNCH = Path(__file__).with_name("launch.py")


class Trouble(Exception):
    """What stops the local stack and needs a person; its text is the one sentence they read."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What to run, and how to tell that it runs."""

    name: str
    command: Sequence[str]
    # Asked with the process id, again and again, until it says yes.
    ready: Callable[[int], bool]
    env: Mapping[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    identity: str = "same"


def spawn(program: Program, *, log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start ``program`` in a session of its own, so that Ctrl-C reaches the runner alone and it can stop in order.

    Whatever ends the runner, kill -9 included, the kernel hands the program its stop signal. That is tied to the
    *thread* that starts it: call this from the main thread.
    """
    launch = [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), str(int(program.stop_signal))]
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 — the commands are the runner's own
            [*launch, program.identity, *program.command],
            env={**(os.environ if env is None else env), **program.env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def wait_until_ready(program: Program, process: subprocess.Popen[bytes], *, seconds: float, log: Path) -> None:
    """Return when ``program`` says it is ready; ``Trouble`` when it ended or took too long."""
    until = time.monotonic() + seconds
    while not program.ready(process.pid):
        if process.poll() is not None:
            raise Trouble(f"{program.name} did not start: {last_line(log)} (all of it: {log})")
        if time.monotonic() > until:
            raise Trouble(f"{program.name} was not ready after {seconds:.0f} s; what it said is in {log}.")
        time.sleep(0.02)


def stop(program: Program, process: subprocess.Popen[bytes], *, seconds: float) -> None:
    """Ask ``process`` to stop, and after ``seconds`` no longer ask."""
    if process.poll() is None:
        process.send_signal(program.stop_signal)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_line(log: Path) -> str:
    """The last thing said in ``log``."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def free_port() -> int:
    """A port that nobody listens on now. Somebody may before we do; whoever asked then fails to start and says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether we could listen on ``port`` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody answers on ``port``."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
