"""The processes of one stack: started in order, kept running, stopped in reverse order.

The main thread does all work, in steps of a twentieth of a second. The kernel ends a child with the *thread* that
started it (see ``launch``), so no child may be started by a thread that ends.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn

Process = subprocess.Popen[bytes]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LAUNCH = Path(__file__).with_name("launch.py")
STEP_SECONDS = 0.05
# A program that fails sooner than this after its start, in seconds, counts as not started.
QUICK_SECONDS = 10
# Signals that mean a program crashed. Every other signal was sent by another process.
FAULTS = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP}
# The pauses before a child is restarted: the first one, then twice as long each time, up to the longest.
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30
# A longer log is renamed at the next start, and replaces the log that was renamed before.
LOG_BYTES = 50 * 1024 * 1024
# The number of quick exits of a child that are reported. The next report names its log file; later ones are left out.
QUICK_EXITS_REPORTED = 3
# The number of last lines of a log in which the reason of an end is looked for.
END_LINES = 20


class StackError(Exception):
    """A problem that stops the local stack and needs a person. Its text is printed."""


class AskedToStop(Exception):
    """Ctrl-C, SIGTERM, or the terminal is gone."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program: its command, its readiness check, and how to end it."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    # Called with the process id, repeatedly, until it returns True.
    ready: Callable[[int], bool] = lambda _pid: True
    stop_signal: signal.Signals = signal.SIGTERM
    # Seconds that the program gets to stop before it is killed.
    patience: float = 3
    # The signal that the kernel sends it when the runner has ended.
    orphan_signal: signal.Signals = signal.SIGKILL
    # The identity under which it runs (see ``launch``).
    identity: str = "same"


@dataclass(kw_only=True)
class Child:
    """One program of the fleet and, while it runs, its process."""

    program: Program
    log: Path
    pid_file: Path
    log_start: int = 0
    process: Process | None = None
    started_at: float = 0
    quick_ends: int = 0
    start_again_at: float = 0

    def start(self, env: Mapping[str, str]) -> None:
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as output:
            self.log_start = output.tell()
            self.process = _spawn(self.program, env=env, stdout=output, stderr=output)
        self.started_at = time.monotonic()
        write_pid(self.pid_file, self.process.pid)

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def is_ready(self) -> bool:
        return self.process is not None and self.program.ready(self.process.pid)


class Fleet:
    """The children, in the groups in which they were started."""

    def __init__(self, *, folder: Path, env: Mapping[str, str], tell: Callable[[str], None]) -> None:
        self.folder, self.runs, self.logs = folder, folder / "run", folder / "log"
        for place in (self.runs, self.logs):
            place.mkdir(mode=0o700, exist_ok=True)
        self.env = env
        self.tell = tell
        self.groups: list[list[Child]] = []
        self.stops_asked = 0

    def listen_to_signals(self) -> None:
        """Make Ctrl-C, SIGTERM and a closed terminal end the next wait; a second signal shortens the stopping."""
        for number in STOP_SIGNALS:
            signal.signal(number, self.ask_to_stop)

    def ask_to_stop(self, *_: object) -> None:
        self.stops_asked += 1

    def start(self, *programs: Program, seconds: float = 60) -> None:
        """Start ``programs`` together and return when all are ready. Raises ``StackError`` when one isn't in time."""
        group: list[Child] = []
        self.groups.append(group)
        for program in programs:
            log = self.logs / f"{program.name}.log"
            child = Child(program=program, log=log, pid_file=self.runs / f"{program.name}.pid")
            child.start(self.env)
            group.append(child)
        until = time.monotonic() + seconds
        for child in group:
            while not child.is_ready():
                if child.has_ended():
                    why = last_words(child.log, since=child.log_start)
                    raise StackError(f"{child.program.name} did not start: {why} (more in {child.log})")
                if time.monotonic() > until:
                    raise StackError(f"{child.program.name} was not ready after {seconds:.0f} s; see {child.log}.")
                self._step(besides=group)

    def wait(self, condition: Callable[[], bool], *, seconds: float = float("inf")) -> bool:
        """Keep the children running until ``condition`` holds, or for ``seconds``. Returns whether it holds."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                return False
            self._step()
        return True

    def wait_for_ever(self) -> NoReturn:
        """Keep the children running until ``AskedToStop``."""
        while True:
            self._step()

    def run(self, program: Program, *, each: Callable[[Path], None] = lambda _log: None) -> tuple[int, str]:
        """Run ``program`` to its end beside the children. Returns its exit code and its stdout.

        Every step calls ``each`` with the log of its stderr, to show the progress.
        """
        log = self.logs / f"{program.name}.log"
        with tempfile.TemporaryFile(dir=self.runs) as output:
            with log.open("wb") as errors:
                process = _spawn(program, env=self.env, stdout=output, stderr=errors)

            def done() -> bool:
                each(log)
                return process.poll() is not None

            try:
                self.wait(done)
            finally:
                process.kill()
                process.wait()
            output.seek(0)
            return process.returncode, output.read().decode(errors="replace")

    def _step(self, besides: Sequence[Child] = ()) -> None:
        if self.stops_asked:
            raise AskedToStop
        for child in self._children():
            if child not in besides:
                self._keep_running(child)
        time.sleep(STEP_SECONDS)

    def _children(self) -> Iterator[Child]:
        return (child for group in self.groups for child in group)

    def _keep_running(self, child: Child) -> None:
        if child.process is not None and child.has_ended():
            code, lived = child.process.returncode, time.monotonic() - child.started_at
            child.process = None
            child.pid_file.unlink(missing_ok=True)
            is_quick = lived < QUICK_SECONDS and ended_by_itself(code)
            child.quick_ends = child.quick_ends + 1 if is_quick else 0
            pause = min(FIRST_PAUSE_SECONDS * 2**child.quick_ends, LONGEST_PAUSE_SECONDS)
            child.start_again_at = time.monotonic() + pause
            self._tell_of_end(child, code)
        if child.process is None and time.monotonic() >= child.start_again_at:
            child.start(self.env)

    def _tell_of_end(self, child: Child, code: int) -> None:
        name, why = child.program.name, last_words(child.log, since=child.log_start)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code} ({why})"
        if child.quick_ends < QUICK_EXITS_REPORTED:
            self.tell(f"{name} {how}; it is started again.")
        elif child.quick_ends == QUICK_EXITS_REPORTED:
            self.tell(f"{name} {how} again, and is tried at growing intervals; more is in {child.log}.")

    def stop(self) -> None:
        """Stop every group, the last one first; kill processes that take too long."""
        asked_before = self.stops_asked
        while self.groups:
            group = self.groups.pop()
            alive = [child for child in group if not child.has_ended()]
            for child in alive:
                assert child.process is not None
                child.process.send_signal(child.program.stop_signal)
            asked_at = time.monotonic()
            while alive := [child for child in alive if not child.has_ended()]:
                hurry = self.stops_asked > asked_before
                for child in alive:
                    if hurry or time.monotonic() > asked_at + child.program.patience:
                        _kill(child)
                time.sleep(STEP_SECONDS)
            for child in group:
                child.pid_file.unlink(missing_ok=True)


def _spawn(program: Program, *, env: Mapping[str, str], stdout: IO[bytes], stderr: IO[bytes]) -> Process:
    """Start a program in a new session: Ctrl-C then reaches only the runner, which stops the programs in order."""
    launch = [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), str(int(program.orphan_signal))]
    # The child inherits this mask. launch.py unblocks the signal once an interrupt would end the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(  # noqa: S603 — the commands are the runner's own
            [*launch, program.identity, *program.command],
            env={**env, **program.env},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ended_by_itself(code: int) -> bool:
    """Whether a program failed on its own, as opposed to being killed or stopped."""
    return code > 0 or -code in FAULTS


def last_words(log: Path, *, since: int = 0) -> str:
    """The reason why a program ended, by its log."""
    return reason(log.read_bytes()[since:].decode(errors="replace"))


def reason(log_text: str) -> str:
    """The line at the end of a log that says what failed: PostgreSQL's last FATAL line, or the last one but hints."""
    lines = [words for line in log_text.splitlines() if (words := line.strip()) and not words.startswith("HINT:")]
    lines = lines[-END_LINES:]  # an earlier FATAL line is of a failure that the program outlived
    fatal = [line.split("FATAL:")[1].strip() for line in lines if "FATAL:" in line]
    return (fatal or lines or ["it printed nothing"])[-1]


def _kill(child: Child) -> None:
    """Kill the child and its session. The child isn't reaped yet, so no other process can have its id."""
    assert child.process is not None
    with suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)


# --- Process ids ---------------------------------------------------------------------------------------------


def write_pid(file: Path, pid: int) -> None:
    """Write ``pid`` so that a reader finds the old one, the new one, or no file, but never an empty one."""
    new = file.with_suffix(".new")
    new.write_text(f"{pid}\n", encoding="ascii")
    new.replace(file)


def read_pid(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return None


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process, and alive
        return True
    return True


def belongs_to(pid: int, folder: Path) -> bool:
    """Whether ``pid`` is a live process of the stack in ``folder``. Another program may have an id from an old file."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # ended, another user's, or not Linux
        return False
    return f"DATA_DIR={folder}".encode() in environment


# --- Ports ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    """A free port below the range that the kernel uses for outgoing connections.

    Another program may take it before the caller does; the caller's program then fails to start and reports it.
    """
    while not is_free(port := random.randrange(20_000, 30_000)):  # noqa: S311 — not a secret
        continue
    return port


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether this process could listen on ``port`` now."""
    return listening_error(port, host) is None


def listening_error(port: int, host: str) -> OSError | None:
    """Why this process can't listen on ``port`` now: another program does, a missing right, no such address."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # SO_REUSEADDR, as servers set it: a port with connections in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return error
    return None


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server accepts connections on ``port``."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
