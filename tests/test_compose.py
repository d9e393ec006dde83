"""docker-compose.yml, Dockerfile and .env.example say the same as the settings and the local runner."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings

from local.processes import Program
from local.stack import Memory, Stack
from lytics_sync.env import PROJECT_DIR

# Read by the images of compose's servers, by compose itself, and by the local runner.
IMAGES = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}
# A setting of Grafana: its section and its name.
GRAFANA = re.compile(r"GF_[A-Z]+_[A-Z_]+")
COMPOSE = {"POSTGRES_PASSWORD", "BIND", "PORT", "REQUIREMENTS"}
# Read by the OpenTelemetry SDK itself.
SDK = {"OTEL_EXPORTER_OTLP_ENDPOINT"}
RUNNER = {"DATA_DIR", "PORT", "HOST"}
# Options that say where, and so differ between a container and a laptop.
PLACES = {"--bind", "--worker-tmp-dir", "--hostname", "--schedule", "--port", "--host", "--state"}
OURS = ("migrate", "web", "worker", "beat", "sandbox", "sandbox-lytics")


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((PROJECT_DIR / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


def read_by_settings() -> set[str]:
    code = (PROJECT_DIR / "lytics_sync" / "settings.py").read_text(encoding="utf-8")
    return set(re.findall(r"""env\.\w+\(\s*["']([A-Z_]+)["']""", code))


def required_by_settings() -> set[str]:
    """The settings without a default, which are required to start or hold secrets."""
    code = (PROJECT_DIR / "lytics_sync" / "settings.py").read_text(encoding="utf-8")
    return set(re.findall(r"""env\.(?:text|words)\(["']([A-Z_]+)["']\)""", code))


def example(*, only_given: bool = False) -> dict[str, str]:
    text = (PROJECT_DIR / ".env.example").read_text(encoding="utf-8")
    return dict(re.findall(r"^([A-Z_]+)=(.*)$" if only_given else r"^(?:# )?([A-Z_]+)=(.*)$", text, re.MULTILINE))


def image_command() -> list[str]:
    text = (PROJECT_DIR / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    found = re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert found
    command: list[str] = json.loads(found[1])
    return command


def meaning(command: Sequence[str]) -> tuple[tuple[str, ...], frozenset[tuple[str, ...]]]:
    """The program of a command and its options, without addresses and paths."""
    words = list(command[1:])  # the interpreter
    first_option = next((at for at, word in enumerate(words) if at and word.startswith("--")), len(words))
    options: list[tuple[str, ...]] = []
    for word in words[first_option:]:
        if word.startswith("--"):
            options.append((word,))
        else:
            options[-1] += (word,)
    return tuple(words[:first_option]), frozenset(option for option in options if option[0] not in PLACES)


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(folder=tmp_path, port=8000, host="127.0.0.1", memory=Memory(file=tmp_path / "local.env", values={}))


def test_the_image_starts_web_as_the_runner_does(stack: Stack) -> None:
    assert "command" not in compose()["services"]["web"]
    assert meaning(image_command()) == meaning(stack.web().command)


@pytest.mark.parametrize(
    ("service", "program"), [("beat", "beat"), ("sandbox", "sandbox"), ("sandbox-lytics", "sandbox_lytics")]
)
def test_compose_starts_it_as_the_runner_does(stack: Stack, service: str, program: str) -> None:
    started: Program = getattr(stack, program)()
    assert meaning(compose()["services"][service]["command"]) == meaning(started.command)


def test_compose_starts_as_many_workers_as_the_runner_and_in_the_same_way(stack: Stack) -> None:
    worker, started = compose()["services"]["worker"], list(stack.workers())
    assert worker["deploy"]["replicas"] == len(started)
    for program in started:
        assert meaning(worker["command"]) == meaning(program.command)


def test_every_variable_in_compose_is_read_by_the_settings_or_by_an_image() -> None:
    for name, service in compose()["services"].items():
        known = read_by_settings() if name in OURS else {*IMAGES, "METRICS_TOKEN"}
        named = set(service.get("environment", {}))
        assert {variable for variable in named if name != "grafana" or not GRAFANA.fullmatch(variable)} <= known, name


def test_every_variable_that_compose_fills_in_is_in_the_example() -> None:
    text = (PROJECT_DIR / "docker-compose.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{([A-Z_]+)", text)) <= set(example())


def test_every_required_setting_reaches_every_process() -> None:
    for name in set(OURS) - {"sandbox", "sandbox-lytics"}:
        service = compose()["services"][name]
        assert service["env_file"] == ".env"
        assert required_by_settings() <= set(service["environment"]) | set(example(only_given=True)), name


def test_the_example_has_every_setting_and_nothing_else() -> None:
    assert set(example()) == read_by_settings() | COMPOSE | RUNNER | SDK


def test_the_example_file_has_the_default_settings() -> None:
    compared = 0
    for name, value in (example().items() - example(only_given=True).items()) - {("DATA_DIR", ".data")}:
        default = getattr(settings, name, None)
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert float(value) == default, name
            compared += 1
    assert compared >= 8


def test_everything_that_keeps_running_has_a_health_check() -> None:
    services = compose()["services"]
    assert [name for name in services if name != "migrate" and "healthcheck" not in services[name]] == []


def test_nothing_starts_before_the_migrations_are_through() -> None:
    for name in ("web", "worker", "beat"):
        condition = compose()["services"][name]["depends_on"]["migrate"]["condition"]
        assert condition == "service_completed_successfully"


def test_the_sandbox_and_the_monitoring_start_only_with_their_profiles() -> None:
    profiles = {name: service["profiles"] for name, service in compose()["services"].items() if "profiles" in service}
    assert profiles == {
        **{name: ["sandbox"] for name in ("sandbox", "sandbox-lytics")},
        **{name: ["monitoring"] for name in ("prometheus", "grafana")},
    }


# --- what the containers may do -------------------------------------------------------------------------------


def test_the_image_runs_as_an_ordinary_user_known_by_number() -> None:
    text = (PROJECT_DIR / "Dockerfile").read_text(encoding="utf-8")
    (uid,), (gid,) = re.findall(r"--uid (\d+)", text), re.findall(r"--gid (\d+)", text)
    assert re.findall(r"^USER (.*)$", text, re.M) == [f"{uid}:{gid}"]
    assert int(uid) > 0


@pytest.mark.parametrize("name", OURS)
def test_our_containers_can_change_no_file_of_the_image_and_gain_no_rights(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["pids_limit"] >= 200


@pytest.mark.parametrize("name", OURS)
def test_commands_write_only_where_a_container_may_write(name: str) -> None:
    """Every container has its own writable /dev/shm."""
    service = compose()["services"][name]
    command = service.get("command") or image_command()
    written = [after for option, after in pairwise(command) if option in {"--schedule", "--worker-tmp-dir", "--state"}]
    volumes = [volume.partition(":")[2] for volume in service.get("volumes", [])]
    for path in written:
        assert path.startswith(("/dev/shm", *service["tmpfs"], *volumes)), path  # noqa: S108
    assert bool(written) == (name in {"web", "beat", "sandbox", "sandbox-lytics"})


def test_no_container_gains_rights_by_a_setuid_program_and_none_fills_the_disk_with_its_log() -> None:
    for name, service in compose()["services"].items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"max-size", "max-file"} <= set(service["logging"]["options"]), name
        assert "privileged" not in service, name


def test_the_sandbox_is_given_no_secret() -> None:
    for name in ("sandbox", "sandbox-lytics"):
        sandbox = compose()["services"][name]
        assert (sandbox["env_file"], sandbox["environment"]) == ([], {})


# --- Installed packages ---------------------------------------------------------------------------------------


def listed_in(name: str) -> str:
    """A list of packages with the lists that it includes."""
    text = (PROJECT_DIR / name).read_text(encoding="utf-8")
    return text + "".join(map(listed_in, re.findall(r"^-r (\S+)$", text, re.M)))


@pytest.mark.parametrize("name", ["requirements", "requirements-tracing", "requirements-dev"])
def test_the_lock_has_every_pinned_package_and_hashes_for_each(name: str) -> None:
    listed = re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==(\S+)", listed_in(f"{name}.txt"), re.M)
    lock = (PROJECT_DIR / f"{name}.lock").read_text(encoding="utf-8")
    entries = re.findall(r"^([\w.-]+)==([^\s\\]+)[^\n]*\\\n((?:    --hash=\S+(?: \\)?\n)+)", lock, re.M)
    locked = {package.lower(): version for package, version, _ in entries}
    assert len(listed) > 10
    assert {package.lower(): locked.get(package.lower()) for package, _ in listed} == {
        package.lower(): version for package, version in listed
    }
    assert len(entries) == len(re.findall(r"^[\w.-]+==", lock, re.M))


def test_the_packages_for_traces_change_no_other_package() -> None:
    without, with_traces = (
        set(re.findall(r"^[\w.-]+==\S+", (PROJECT_DIR / name).read_text(encoding="utf-8"), re.M))
        for name in ("requirements.lock", "requirements-tracing.lock")
    )
    assert without < with_traces


def test_the_image_has_the_packages_for_traces_only_on_request() -> None:
    text = (PROJECT_DIR / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^ARG REQUIREMENTS=(.*)$", text, re.M) == ["requirements.lock"]
    build = compose()["services"]["web"]["build"]
    assert build == {"context": ".", "args": {"REQUIREMENTS": "${REQUIREMENTS:-requirements.lock}"}}
    assert (example()["REQUIREMENTS"], settings.OTEL_TRACES_EXPORTER) == ("requirements.lock", "none")


def test_the_image_installs_the_locked_packages_only() -> None:
    text = (PROJECT_DIR / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"pip install (.*)", text) == ["--require-hashes -r /tmp/requirements.lock"]


PINNED = re.compile(r"[a-z0-9./-]+:[\w.-]+@sha256:[0-9a-f]{64}")


def foreign_images(folder: Path) -> list[str]:
    """Every image that is built elsewhere, as the Dockerfile and the compose file name it."""
    bases = re.findall(r"^FROM (\S+)", (folder / "Dockerfile").read_text(encoding="utf-8"), re.M)
    services = yaml.safe_load((folder / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    return bases + [service["image"] for service in services.values() if service["image"] != "lytics-sync"]


def test_every_image_that_is_not_ours_has_a_tag_to_read_and_a_digest_that_holds() -> None:
    images = foreign_images(PROJECT_DIR)
    assert len(images) == 5
    assert [image for image in images if not PINNED.fullmatch(image)] == []


def registry(folder: Path, answer: str) -> dict[str, str]:
    """An environment in which ``docker`` is a script that prints ``answer`` and keeps what it was asked."""
    program = folder / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$*" >>{folder}/asked\n{answer}\n', encoding="utf-8")
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}


def make_images(folder: Path, answer: str) -> subprocess.CompletedProcess[str]:
    for name in ("Makefile", "Dockerfile", "docker-compose.yml"):
        shutil.copy(PROJECT_DIR / name, folder)
    command = ["make", "-C", str(folder), "images"]
    return subprocess.run(command, env=registry(folder, answer), capture_output=True, text=True, check=False)


def test_make_images_pins_each_image_to_the_current_digest_of_its_tag(tmp_path: Path) -> None:
    made = make_images(tmp_path, f"echo sha256:{'ab' * 32}")
    assert made.returncode == 0, made.stderr
    before = [image.partition("@")[0] for image in foreign_images(PROJECT_DIR)]
    assert foreign_images(tmp_path) == [f"{image}@sha256:{'ab' * 32}" for image in before]
    assert len((tmp_path / "asked").read_text(encoding="utf-8").splitlines()) == len(before)
    assert {path.name for path in tmp_path.iterdir()} == {
        "Makefile",
        "Dockerfile",
        "docker-compose.yml",
        "bin",
        "asked",
    }


AT_SECOND = "test $(wc -l <$(dirname $0)/../asked) = 1 && echo sha256:%s" % ("ab" * 32)


@pytest.mark.parametrize("answer", ["exit 1", "echo unknown", f"echo sha256:{'ab' * 31}", "true", AT_SECOND])
def test_make_images_changes_nothing_when_the_registry_gives_no_digest(tmp_path: Path, answer: str) -> None:
    assert make_images(tmp_path, answer).returncode != 0
    assert foreign_images(tmp_path) == foreign_images(PROJECT_DIR)
