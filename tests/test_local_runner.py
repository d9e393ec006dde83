"""The local runner: a whole stack on free ports is started, damaged, killed and started again."""

import errno
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from local import embedded, stack
from local.__main__ import done, main
from local.processes import StackError, belongs_to, free_port, is_free, read_pid, reason
from lytics_sync.env import PROJECT_DIR
from tests import settings_page
from tests.threads import PATIENCE, eventually

NAMES = {"runner", "postgres", "redis", "web", "worker-1", "worker-2", "beat", "sandbox", "sandbox-lytics"}
# What tests.servers has set for Django under test; the runner is to find a bare environment.
OURS = ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "FIELD_ENCRYPTION_KEYS", "DEBUG", "DATA_DIR")


@dataclass(kw_only=True)
class Runner:
    """A data directory, a port, and the runner that is or was at work there."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[str] | None" = None

    def start(self, mode: str, **environment: str) -> None:
        bare = {name: value for name, value in os.environ.items() if name not in OURS}
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "local", mode],
                cwd=PROJECT_DIR,
                env={**bare, "DATA_DIR": str(self.folder), "PORT": str(self.port), **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
            )

    @property
    def output(self) -> Path:
        return self.folder.with_suffix(".output")

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def wait_until_up(self) -> None:
        assert self.process is not None
        process = self.process
        eventually(lambda: "Running;" in self.said() or process.poll() is not None)
        assert process.poll() is None, self.said()

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def pid(self, name: str) -> int | None:
        return read_pid(self.folder / "run" / f"{name}.pid")

    def kill(self, name: str) -> int:
        pid = self.pid(name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return pid

    def runs_again(self, name: str, *, instead_of: int) -> bool:
        pid = self.pid(name)
        return pid not in (None, instead_of) and belongs_to(pid, self.folder)

    def alive(self) -> list[str]:
        """Everything of this stack that runs, gunicorn's own workers and Django's commands included."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        found = []
        for pid in pids:
            with suppress(OSError):  # it has ended meanwhile
                if belongs_to(pid, self.folder):
                    found.append(f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes()!r}")
        return found


def refused(runner: Runner, mode: str = "up", **environment: str) -> str:
    """The one sentence with which a runner that can't start ends."""
    runner.start(mode, **environment)
    assert runner.process is not None
    assert runner.process.wait(PATIENCE) == 1
    assert "Traceback" not in runner.said()
    return runner.said().strip().splitlines()[-1]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """One stack for the whole file; its tests depend on their order."""
    one = Runner(folder=tmp_path_factory.mktemp("local") / "data")
    one.start("run", EVENTS="1200", AUDIENCES="3")
    yield one
    if one.process and one.process.poll() is None:
        one.process.kill()
        one.process.wait()


# --- A first run ----------------------------------------------------------------------------------------------


def test_the_first_run_shows_where_to_log_in_and_that_every_audience_is_equal(runner: Runner) -> None:
    runner.wait_until_up()
    said = runner.said()
    for line in (
        rf"Admin +http://127\.0\.0\.1:{runner.port}/admin/",
        r"Login +admin / \S+",
        rf"Webhook URL +http://127\.0\.0\.1:{runner.port}/webhooks/lytics/\w+",
        r"Authorization +\S+",
        r"audience +members Lytics would count +members ODP answers over GraphQL +equal",
        "Every audience is equal",
    ):
        assert re.search(line, said), f"{line} is missing in:\n{said}"
    assert len(re.findall(r"^  lytics_\w+ +[\d,]+ +[\d,]+  yes$", said, re.MULTILINE)) == 3


def test_its_files_are_readable_by_their_owner_only(runner: Runner) -> None:
    assert runner.folder.stat().st_mode & 0o777 == 0o700
    assert (runner.folder / "local.env").stat().st_mode & 0o777 == 0o600
    assert (runner.folder / "postgres").stat().st_mode & 0o777 == 0o700


def test_there_is_a_pid_file_for_each_process(runner: Runner) -> None:
    assert {file.stem for file in (runner.folder / "run").glob("*.pid")} == NAMES
    for name in NAMES:
        pid = runner.pid(name)
        assert pid is not None
        assert belongs_to(pid, runner.folder), name


def test_a_second_runner_in_the_same_folder_names_the_first(runner: Runner) -> None:
    # Its output goes elsewhere, for the first one still writes to its own.
    second = Runner(folder=runner.folder.with_name("second"))
    sentence = refused(second, DATA_DIR=str(runner.folder))
    assert sentence.startswith(f"Another runner (process {runner.pid('runner')}) already uses {runner.folder}")


def test_a_second_stack_on_the_same_port_says_so(runner: Runner) -> None:
    second = Runner(folder=runner.folder.with_name("other"), port=runner.port)
    assert f"Port {runner.port} on 127.0.0.1 is in use by another program" in refused(second)
    assert second.alive() == []


def test_a_killed_worker_is_started_again(runner: Runner) -> None:
    killed = runner.kill("worker-1")
    eventually(lambda: runner.runs_again("worker-1", instead_of=killed))
    eventually(lambda: "worker-1 was ended by SIGKILL; it is started again." in runner.said())


def test_killed_servers_and_a_killed_web_process_come_back(runner: Runner) -> None:
    killed = {name: runner.kill(name) for name in ("postgres", "redis", "web")}
    for name, pid in killed.items():
        eventually(partial(runner.runs_again, name, instead_of=pid))
    here = stack.Stack(folder=runner.folder, port=runner.port, host=embedded.HOST, memory=memory(runner))
    eventually(lambda: here.answers("/health/ready"))


def memory(runner: Runner) -> stack.Memory:
    text = (runner.folder / "local.env").read_text(encoding="utf-8")
    return stack.Memory(file=runner.folder / "local.env", values=dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)))


def test_ctrl_c_stops_everything_and_leaves_nothing_behind(runner: Runner) -> None:
    assert runner.end(signal.SIGINT) == 0
    assert runner.alive() == []
    assert list((runner.folder / "run").glob("*.pid")) == []
    assert is_free(runner.port)


# --- And again ------------------------------------------------------------------------------------------------


def test_a_second_run_keeps_the_data_and_sends_no_stream_again(runner: Runner) -> None:
    login = re.findall(r"Login +(.*)", runner.said())
    authorization = re.findall(r"Authorization +(.*)", runner.said())
    runner.start("run")
    runner.wait_until_up()
    assert re.findall(r"Login +(.*)", runner.said()) == login
    assert re.findall(r"Authorization +(.*)", runner.said()) == authorization
    assert "The sample stream was sent earlier" in runner.said()


def test_kill_9_of_the_runner_ends_all_its_processes(runner: Runner) -> None:
    assert len(runner.alive()) > len(NAMES)  # gunicorn's workers are there, too
    runner.end(signal.SIGKILL)
    eventually(lambda: runner.alive() == [])
    assert is_free(runner.port)
    assert runner.pid("web") is not None  # no runner was left to remove it


def test_a_start_after_kill_9_just_works(runner: Runner) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    # A process id in an old file may belong to another program by now.
    for file in (runner.folder / "run" / "web.pid", runner.folder / "postgres" / "postmaster.pid"):
        file.write_text(f"{bystander.pid}\n", encoding="ascii")
    try:
        runner.start("up")
        runner.wait_until_up()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert {file.stem for file in (runner.folder / "run").glob("*.pid")} == NAMES - {"sandbox", "sandbox-lytics"}
    assert "create_install" in runner.said()


def test_sigterm_stops_it_as_ctrl_c_does(runner: Runner) -> None:
    assert runner.end(signal.SIGTERM) == 0
    assert runner.alive() == []


# --- What stops it before it starts ---------------------------------------------------------------------------


def test_a_data_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sentence = refused(Runner(folder=tmp_path / "data"), DATA_DIR=str(tmp_path / "file" / "data"))
    assert sentence == f"DATA_DIR, {tmp_path}/file/data, can't be written to: Not a directory."


def test_an_invalid_port_is_reported_in_one_sentence(tmp_path: Path) -> None:
    assert (
        refused(Runner(folder=tmp_path / "data"), PORT="http") == "PORT must be a number from 1 to 65535, not 'http'."
    )


def test_servers_that_do_not_answer_are_one_sentence(tmp_path: Path) -> None:
    url = f"postgres://nobody@127.0.0.1:{free_port()}/nothing"
    sentence = refused(Runner(folder=tmp_path / "data"), DATABASE_URL=url)
    assert sentence.startswith("The PostgreSQL that DATABASE_URL names does not answer: ")


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=12 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    here = stack.Stack(folder=tmp_path, port=1, host="", memory=stack.Memory(file=tmp_path / "local.env", values={}))
    with pytest.raises(StackError, match=r"Only 12 MB are free where .* is, and the stack needs 300 MB"):
        here.check_room()


def stack_at(host: str, folder: Path) -> stack.Stack:
    memory = stack.Memory(file=folder / "local.env", values={})
    return stack.Stack(folder=folder, port=free_port(), host=host, memory=memory)


def test_a_setting_that_is_refused_is_named_and_not_only_its_hint() -> None:
    assert reason("ERRORS:\n?: (audiences.E015) METRICS_TOKEN is short.\n\tHINT: Empty switches it off.\n\n").endswith(
        "METRICS_TOKEN is short."
    )


def test_a_failure_that_a_program_outlived_is_not_why_it_ended() -> None:
    ended = ["FATAL:  no space left", *["LOG:  shut down"] * 3]
    assert reason("\n".join(ended)) == "no space left"
    outlived = ["psycopg.OperationalError: FATAL:  the database system is shutting down", *["task done"] * 100]
    assert (
        reason("\n".join([*outlived, "worker shutting down signal=SIGTERM"])) == "worker shutting down signal=SIGTERM"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "nowhere.invalid"])
def test_a_host_that_is_no_address_of_this_machine_is_one_sentence(tmp_path: Path, host: str) -> None:
    with pytest.raises(StackError, match=rf"^HOST must be an address of this machine, not '{host}': .+\.$"):
        stack_at(host, tmp_path).check_port()


def test_a_port_that_needs_rights_is_not_said_to_be_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "listening_error", lambda *_: PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(StackError, match="needs more rights than this user has; choose another one"):
        stack_at("127.0.0.1", tmp_path).check_port()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        *(("127.0.0.1", "http://127.0.0.1"), ("::1", "http://[::1]"), ("::", "http://[::1]")),
        *(("0.0.0.0", "http://127.0.0.1"), ("192.0.2.1", "http://192.0.2.1")),  # noqa: S104
    ],
)
def test_the_web_process_is_called_at_the_address_where_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, url: str
) -> None:
    monkeypatch.delenv("PUBLIC_URL", raising=False)
    monkeypatch.delenv("ALLOWED_HOSTS", raising=False)
    here = stack_at(host, tmp_path)
    assert here.public_url == f"{url}:{here.port}"
    allowed = here.environment.get("ALLOWED_HOSTS", ",".join(stack.ALLOWED_HOSTS)).split(",")
    assert url.removeprefix("http://") in allowed


def test_the_local_runner_knows_the_default_of_allowed_hosts() -> None:
    settings = settings_page.read(settings_page.SETTINGS.read_text(encoding="utf-8"))
    (default,) = [setting.default for setting in settings if setting.name == "ALLOWED_HOSTS"]
    assert default.strip("`").startswith(",".join(stack.ALLOWED_HOSTS))


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("DATABASE_URL", "postgres://x:y@127.0.0.1:many/z", "no address"),
        ("REDIS_URL", "redis://:y@127.0.0.1:99999/0", "no address"),
        ("LYTICS_API_URL", "http://[::1", "no address"),
        ("SANDBOX_PORT", "many", "no number"),
    ],
)
def test_a_damaged_file_of_secrets_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, what: str
) -> None:
    for server in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(server, raising=False)
    monkeypatch.setattr(embedded, "postgres", lambda **_: None)
    here = stack_at("127.0.0.1", tmp_path)
    here.memory.values[name] = value
    with pytest.raises(StackError, match=rf"local\.env is damaged: {name} is {what}\. .* start afresh"):
        [step() for step in (here.postgres, here.redis, here.sandbox_lytics, here.sandbox)]


def test_no_new_secrets_are_made_beside_old_data(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    assert f"it has no DATABASE_URL, and {tmp_path}/postgres exists" in refused(Runner(folder=tmp_path))
    assert not (tmp_path / "local.env").exists()
    (tmp_path / "local.env").write_bytes(b"\xff\xfe")
    assert refused(Runner(folder=tmp_path)).startswith(f"{tmp_path}/local.env is damaged: it is no text. Only it has")


def test_a_folder_with_quotes_and_backslashes_is_one_word_of_the_redis_configuration(tmp_path: Path) -> None:
    folder = tmp_path / r'a "b" \ c'
    embedded.redis(folder=folder, port=1, password="")
    lines = (folder / "server.conf").read_text(encoding="utf-8").splitlines()
    assert [shlex.split(line) for line in lines if line.startswith("dir ")] == [["dir", str(folder)]]


def test_a_checkout_in_which_initdb_can_not_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr='program "postgres" was not found')
    monkeypatch.setattr(embedded, "_postgres_binaries", lambda: Path("/home/kim/$work/bin"))
    monkeypatch.setattr(embedded, "_identity", lambda **_: "same")
    monkeypatch.setattr(embedded, "_run_as", lambda *_: failed)
    with pytest.raises(StackError, match=r"initdb can't run in /home/kim/\$work/bin: .*; move the checkout"):
        embedded.postgres(folder=tmp_path / "postgres", port=1, password="")


def test_a_locale_without_the_tick_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "file"))
    monkeypatch.delenv("MAKELEVEL", raising=False)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["up"]) == 1
    done("up")
    assert written.getvalue() == b"  ? up\n"


def test_a_platform_without_binaries_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match=r"There is no PostgreSQL for .*; install PostgreSQL or set DATABASE_URL"):
        embedded.postgres(folder=tmp_path / "postgres", port=1, password="")
    with pytest.raises(StackError, match=r"There is no Redis-compatible server for .* or set REDIS_URL"):
        embedded.redis(folder=tmp_path / "redis", port=1, password="")


# --- make -----------------------------------------------------------------------------------------------------


def make(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_an_unknown_target_is_one_sentence() -> None:
    made = make(PROJECT_DIR, "frobnicate")
    assert made.returncode != 0
    assert made.stderr.startswith("There is no target 'frobnicate'; make help lists those there are.\n")


def test_a_python_that_is_too_old_is_one_sentence(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="ascii")
    old.chmod(0o755)
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(PROJECT_DIR / name, tmp_path)
    made = make(tmp_path, "run", f"PYTHON={old}")
    assert made.returncode != 0
    assert made.stderr.startswith(f"Python 3.11 or newer is needed, and none of these is: {old}.")


def test_a_folder_that_can_not_be_written_to_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(PROJECT_DIR / "Makefile", tmp_path)
    tmp_path.chmod(0o555)
    monkeypatch.chdir(tmp_path)
    # Root may write everywhere. The folder's parents are closed to others, and the folder is already entered.
    identity = "same" if os.geteuid() else "65534:65534"
    made = embedded._run_as(identity, [shutil.which("make") or "make", "run"])
    assert made.returncode != 0
    assert "/. can't be written to: the disk is read-only, or another user owns it." in made.stderr.splitlines()[0]


def test_every_target_is_in_the_help() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (PROJECT_DIR / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets
    helped = set(re.findall(r"^make ([\w-]+)", make(PROJECT_DIR).stdout, re.MULTILINE))
    assert helped == set(targets[1].split()) - {"help", "installed", "installed-dev", "installed-bench"}
