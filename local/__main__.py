"""The local runner: ``python -m local run``, ``demo`` or ``up``, started by the make targets of the same names.

``run``   starts the whole stack with a sandbox ODP, sends a sample stream, and runs until Ctrl-C
``demo``  does the same, but ends after the stream, with success only if every audience is equal in ODP
``up``    starts the stack alone, for a real pair of accounts
"""

import argparse
import io
import json
import os
import secrets
import shlex
import signal
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from local import launch
from local.processes import AskedToStop, Fleet, Program, StackError, last_words
from local.stack import BYTES_WHILE_RUNNING, Stack, manage, python
from lytics_sync import env

ADMIN = "admin"
# The API token that the sandbox's Lytics API accepts.
LYTICS_TOKEN = "sandbox-lytics-token"  # noqa: S105 - of the sandbox
# The API key of the account that the sandbox has by default.
SANDBOX_KEY = "sandbox-public.sandbox-private"
# Seconds without progress after which the showcase stops waiting for deliveries.
STALLED_SECONDS = 60
# The most seconds that ODP may take to show what it has accepted.
VISIBLE_SECONDS = 30


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    parser.add_argument("mode", choices=["run", "demo", "up"])
    mode = parser.parse_args(arguments).mode
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale may lack the tick and the bar
    try:
        _follow_make()
        stack = Stack.here()
        os.chdir(env.PROJECT_DIR)
        with stack.claim_folder():
            return _run(stack, mode)
    except (StackError, ImproperlyConfigured) as trouble:
        print(trouble, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before any process was started
        return 130
    except OSError as error:
        # The usual cause is a disk that became full after the check at the start.
        print(f"{error.strerror or error}: {error.filename or env.data_dir()}.", file=sys.stderr)
        return 1


def _follow_make() -> None:
    """Stop when make ends, because Ctrl-C doesn't reach the stack of a killed make."""
    if os.environ.get("MAKELEVEL"):
        launch.die_with(os.getppid(), signal.SIGTERM)


def _run(stack: Stack, mode: str) -> int:
    fleet = Fleet(folder=stack.folder, env=stack.environment, tell=say)
    fleet.listen_to_signals()
    try:
        _bring_up(stack, fleet, with_sandbox=mode != "up")
        if mode == "up":
            _tell_how_to_connect(stack)
        else:
            equal = _showcase(stack, fleet, again=mode == "demo")
            if mode == "demo":
                return 0 if equal else 1
        say("\nRunning; Ctrl-C stops everything.")
        fleet.wait_for_ever()
    except AskedToStop:
        say("\nStopping …")
        return 130 if mode == "demo" else 0
    finally:
        fleet.stop()
        (stack.folder / "run" / "runner.pid").unlink(missing_ok=True)


# --- Starting ------------------------------------------------------------------------------------------------


def _bring_up(stack: Stack, fleet: Fleet, *, with_sandbox: bool) -> None:
    stack.check_room()
    stack.check_port()
    stack.make_secrets()
    say(f"Starting a stack in {stack.folder}\n")
    if postgres := stack.postgres():
        fleet.start(postgres)
        stack.create_database()
    if redis := stack.redis():
        fleet.start(redis)
    stack.check_servers()
    done(f"PostgreSQL {_where('DATABASE_URL', stack)}, Redis {_where('REDIS_URL', stack)}")
    _must(fleet, manage("migrate", "--noinput", "--verbosity", "0"))
    _must(fleet, manage("collectstatic", "--noinput", "--verbosity", "0"))
    done("database migrated")
    if with_sandbox:
        fleet.start(stack.sandbox(), stack.sandbox_lytics())
        done(f"ODP sandbox {_sandbox_url(stack)}, Lytics API sandbox {stack.memory.values['LYTICS_API_URL']}")
    else:
        stack.memory.forget("LYTICS_API_URL")
    fleet.start(stack.web(), *stack.workers(), stack.beat())
    if not fleet.wait(lambda: stack.answers("/health/ready"), seconds=30):
        raise StackError(f"The web process runs and says it is not ready; see {stack.folder / 'log' / 'web.log'}.")
    done(f"web {stack.public_url}, two workers with twelve slots each, beat")
    _tell_admin(stack, fleet)


def _where(name: str, stack: Stack) -> str:
    if env.in_environment(name):
        return f"as {name} says"
    return f"embedded, on port {urlsplit(stack.memory.values[name]).port}"


def _sandbox_url(stack: Stack) -> str:
    return f"http://127.0.0.1:{stack.memory.values['SANDBOX_PORT']}"


def _must(fleet: Fleet, program: Program) -> str:
    """Run ``program`` and return its output. Raises ``StackError`` when it fails."""
    code, output = fleet.run(program)
    if code:
        log = fleet.logs / f"{program.name}.log"
        raise StackError(f"{program.name} failed: {last_words(log)} (more in {log})")
    return output


def _tell_admin(stack: Stack, fleet: Fleet) -> None:
    if not stack.has_admin():
        # The password is saved first: a runner killed in between would leave an account with an unknown password.
        password = stack.memory.get_or_make("ADMIN_PASSWORD", lambda: secrets.token_urlsafe(12))
        account = {"USERNAME": ADMIN, "EMAIL": "admin@localhost", "PASSWORD": password}
        variables = {f"DJANGO_SUPERUSER_{name}": value for name, value in account.items()}
        _must(fleet, manage("createsuperuser", "--noinput", **variables))
    say("")
    tell("Admin", f"{stack.public_url}/admin/")
    known = stack.memory.values.get("ADMIN_PASSWORD")
    tell("Login", f"{ADMIN} / {known}" if known else "as you have set it up")
    tell("Logs", str(stack.folder / "log"))


def _tell_how_to_connect(stack: Stack) -> None:
    say("\nTo connect a Lytics account to an ODP account, in another terminal:")
    elsewhere = f"DATA_DIR={shlex.quote(str(stack.folder))} " if env.in_environment("DATA_DIR") else ""
    say(f"  {elsewhere}.venv/bin/python manage.py create_install NAME --odp-api-key PRIVATE_KEY")


# --- Showcase ------------------------------------------------------------------------------------------------


def _showcase(stack: Stack, fleet: Fleet, *, again: bool) -> bool:
    """Send a stream as Lytics would, and compare each audience with ODP afterwards."""
    install = _demo_install(stack, fleet)
    webhook = stack.public_url + urlsplit(install["webhook_url"]).path
    tell("Webhook URL", webhook)
    tell("Authorization", install["authorization"])
    tell("ODP sandbox", f"{_sandbox_url(stack)}   (API key {SANDBOX_KEY})")
    tell("Lytics API", f"{stack.memory.values['LYTICS_API_URL']}   (API token {LYTICS_TOKEN})")
    if stack.memory.values.get("SAMPLE_SENT") and not (again or env.in_environment("SAMPLE") == "1"):
        say("\nThe sample stream was sent earlier and its data is still there; SAMPLE=1 make run sends another.")
        return True
    memberships = stack.folder / "memberships.json"
    _send_stream(stack, fleet, webhook=webhook, authorization=install["authorization"], memberships=memberships)
    lanes = _wait_until_delivered(stack, fleet)
    equal = _compare(stack, fleet, memberships=memberships, lanes=lanes)
    stack.memory.keep(SAMPLE_SENT="1")
    return equal


def _demo_install(stack: Stack, fleet: Fleet) -> dict[str, Any]:
    """The stored install of the demo, or a new one if this database doesn't have it."""
    database = env.in_environment("DATABASE_URL") or "embedded"
    try:
        known: dict[str, Any] = json.loads(stack.memory.values.get("DEMO_INSTALL", "{}"))
    except ValueError:
        raise StackError(env.damaged("DEMO_INSTALL is no JSON")) from None
    if known.get("database") == database:
        return known
    made = _must(
        fleet,
        manage(
            *("create_install", "Demo", "--json"),
            *("--odp-host", _sandbox_url(stack), "--odp-api-key", SANDBOX_KEY),
        ),
    )
    install = {**json.loads(made), "database": database}
    stack.memory.keep(DEMO_INSTALL=json.dumps(install))
    return install


def _send_stream(stack: Stack, fleet: Fleet, *, webhook: str, authorization: str, memberships: Path) -> None:
    events, audiences = _number("EVENTS", 20_000), _number("AUDIENCES", 8)
    # A different seed gives different customers and audiences, so that streams never mix.
    seed = _number("SEED", secrets.randbelow(1_000_000))
    say(f"\nSending a stream as Lytics would: {events:,} events, {audiences} audiences, 20 callers (seed {seed})")
    sender = Program(
        name="sender",
        command=python(
            *("-m", "sandbox.lytics", "--url", webhook, "--authorization", authorization, "--json"),
            *("--events", str(events), "--audiences", str(audiences), "--seed", str(seed)),
            *("--state", str(stack.lytics_state)),
            *("--callers", "20", "--batch", "300", "--progress", "json", "--memberships", str(memberships)),
        ),
    )
    with Bar() as bar:

        def show(log: Path) -> None:
            # With a full disk every process waits without an error, the sender too, so a person is informed here.
            stack.check_room(BYTES_WHILE_RUNNING)
            if reported := _last_report(log):
                bar.show(reported["sent"], reported["total"])

        code, _ = fleet.run(sender, each=show)
    if code:
        log = fleet.logs / "sender.log"
        raise StackError(f"The stream could not be sent: {last_words(log)} (more in {log})")


def _number(name: str, default: int) -> int:
    value = env.in_environment(name) or str(default)
    if not value.isdecimal():
        raise StackError(f"{name} must be a whole number, not {value!r}.")
    return int(value)


def _last_report(log: Path) -> dict[str, Any] | None:
    """The progress of the sender, by the last complete line of its log."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    try:
        report: dict[str, Any] = json.loads(lines[-2])
    except (IndexError, ValueError):
        return None
    return report


def _wait_until_delivered(stack: Stack, fleet: Fleet) -> Path:
    """Wait until the backlog is empty or no longer falls. Returns the file with the last status of the lanes."""
    say("Delivering to ODP")
    file = fleet.folder / "lanes.json"
    file.unlink(missing_ok=True)
    most, least, stalled_at = 0, float("inf"), time.monotonic() + STALLED_SECONDS
    with Bar() as bar:
        while True:
            stack.check_room(BYTES_WHILE_RUNNING)
            code, status = fleet.run(manage("lane_status", "--json"))
            if code == 0:  # otherwise PostgreSQL may be restarting
                file.write_text(status, encoding="utf-8")
                backlog = json.loads(status)["backlog"]
                most = max(most, backlog)
                bar.show(most - backlog, most)
                if backlog == 0:
                    return file
                if backlog < least:
                    least, stalled_at = backlog, time.monotonic() + STALLED_SECONDS
            if time.monotonic() > stalled_at:
                break
            fleet.wait(lambda: False, seconds=0.5)
    if not file.exists():
        raise StackError(f"lane_status failed: {last_words(fleet.logs / 'lane_status.log')}")
    say(f"{least:,} events have been waiting for {STALLED_SECONDS} s; the admin's Audiences page says why.")
    return file


def _compare(stack: Stack, fleet: Fleet, *, memberships: Path, lanes: Path) -> bool:
    say("Asking ODP over GraphQL about everybody in the stream\n")
    files = ("--memberships", str(memberships), "--lanes", str(lanes), "--patience", str(VISIBLE_SECONDS))
    odp = ("--odp-host", _sandbox_url(stack), "--odp-api-key", SANDBOX_KEY)
    code, table = fleet.run(Program(name="compare", command=python("-m", "local.compare", *odp, *files)))
    if not table:
        log = fleet.logs / "compare.log"
        raise StackError(f"ODP could not be asked: {last_words(log)} (more in {log})")
    say(textwrap.indent(table.rstrip(), "  ") + "\n")
    say("Every audience is equal." if code == 0 else "Not every audience is equal.")
    return code == 0


# --- Output --------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a line. A closed output doesn't end the runner, which still has to stop the stack."""
    with suppress(OSError):
        print(text, flush=True)


def done(text: str) -> None:
    say(f"  ✓ {text}")


def tell(name: str, value: str) -> None:
    say(f"  {name:<14} {value}")


class Bar:
    """A progress bar: redrawn in place on a terminal; elsewhere one line for each quarter."""

    WIDTH = 30

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._shown: object = None

    def show(self, so_far: int, total: int) -> None:
        share = so_far / total if total else 1.0
        state = (so_far, total) if self._live else int(share * 4)
        if state == self._shown:
            return
        self._shown = state
        full = "█" * int(share * self.WIDTH)
        count = f"{so_far:,} of {total:,}" if total else "nothing was left to wait for"
        text = f"  {full:░<{self.WIDTH}} {share:4.0%}  {count}"
        with suppress(OSError):
            print(f"\r\x1b[K{text}" if self._live else text, end="" if self._live else "\n", flush=True)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._live and self._shown is not None:
            say("")


if __name__ == "__main__":
    sys.exit(main())
