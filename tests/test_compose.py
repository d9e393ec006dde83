"""docker-compose.yml, Dockerfile and .env.example say the same as the settings and the local runner."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings

from lytics_sync.env import PROJECT_DIR
from lytics_sync.processes import Program
from lytics_sync.stack import Memory, Stack

# Read by the images of compose's servers, by compose itself, and by the local runner.
IMAGES = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}
COMPOSE = {"POSTGRES_PASSWORD", "BIND", "PORT"}
RUNNER = {"DATA_DIR", "PORT", "HOST"}
# Options that say where, and so differ between a container and a laptop.
PLACES = {"--bind", "--worker-tmp-dir", "--hostname", "--schedule", "--port", "--host", "--state"}
OURS = ("migrate", "web", "worker", "beat", "sandbox")


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((PROJECT_DIR / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


def read_by_settings() -> set[str]:
    code = (PROJECT_DIR / "lytics_sync" / "settings.py").read_text(encoding="utf-8")
    return set(re.findall(r"""env\.\w+\(["']([A-Z_]+)["']""", code))


def required_by_settings() -> set[str]:
    """Those that have no default: without them nothing starts, or nothing can be kept secret."""
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
    """What a command runs, and its options without those that say where."""
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


@pytest.mark.parametrize(("service", "program"), [("beat", "beat"), ("sandbox", "sandbox")])
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
        known = read_by_settings() if name in OURS else IMAGES
        assert set(service.get("environment", {})) <= known, name


def test_every_variable_that_compose_fills_in_is_in_the_example() -> None:
    text = (PROJECT_DIR / "docker-compose.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{([A-Z_]+)", text)) <= set(example())


def test_every_required_setting_reaches_every_process() -> None:
    for name in OURS:
        service = compose()["services"][name]
        assert service["env_file"] == ".env"
        assert required_by_settings() <= set(service["environment"]) | set(example(only_given=True)), name


def test_the_example_has_every_setting_and_nothing_else() -> None:
    assert set(example()) == read_by_settings() | COMPOSE | RUNNER


def test_the_defaults_in_the_example_are_those_of_the_settings() -> None:
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


def test_the_sandbox_is_only_started_when_asked_for() -> None:
    services = compose()["services"]
    assert [name for name, service in services.items() if service.get("profiles")] == ["sandbox"]


def test_the_image_runs_as_an_ordinary_user() -> None:
    lines = (PROJECT_DIR / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER app"]


# --- what is installed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_the_lock_has_every_pinned_package_and_hashes_for_each(name: str) -> None:
    listed = re.findall(
        r"^([\w.-]+)(?:\[[^\]]*\])?==(\S+)", (PROJECT_DIR / f"{name}.txt").read_text(encoding="utf-8"), re.M
    )
    lock = (PROJECT_DIR / f"{name}.lock").read_text(encoding="utf-8")
    entries = re.findall(r"^([\w.-]+)==([^\s\\]+)[^\n]*\\\n((?:    --hash=\S+(?: \\)?\n)+)", lock, re.M)
    locked = {package.lower(): version for package, version, _ in entries}
    assert len(listed) > 10
    assert {package.lower(): locked.get(package.lower()) for package, _ in listed} == {
        package.lower(): version for package, version in listed
    }
    assert len(entries) == len(re.findall(r"^[\w.-]+==", lock, re.M))


def test_the_image_installs_what_is_locked_and_nothing_else() -> None:
    text = (PROJECT_DIR / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"pip install (.*)", text) == ["--require-hashes -r /tmp/requirements.lock"]
