"""docs/settings.md says what the settings are."""

import ast
import runpy
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from audiences.models import Audit
from lytics_sync import env, redis_url
from tests import settings_page

ROOT = Path(__file__).resolve().parent.parent
MODULE = """
_MANY = "a,b"
# The port. More about it.
PORT = env.integer("PORT", 8 * 1000, least=1, most=2**13, zero=True)
ADDRESS = env.text("ADDRESS", f"http://{PORT}")

# --- Delivering ---------

# Names to know,
# on two lines. And more.
NAMES = env.words("NAMES", _MANY)
OPTIONS = {
    # Whether it is on.
    "on": 5 if env.flag("ON", True) else None,
}
# A key.
KEY = env.text("KEY")
# The same as the port.
OTHER = env.text("OTHER", PORT)
"""


def test_the_page_of_settings_is_current() -> None:
    """Run ``make settings`` when this fails."""
    assert settings_page.PAGE.read_text(encoding="utf-8") == settings_page.page()


def test_each_setting_is_read_with_its_type_default_and_description() -> None:
    assert [one[:5] for one in settings_page.read(MODULE)] == [
        ("PORT", "whole number, 0 or 1 to 8192", "`8000`", "The port.", "General"),
        ("ADDRESS", "text", "`http://{PORT}`", "", "General"),
        ("NAMES", "list, with commas", "`a,b`", "Names to know, on two lines.", "Delivering"),
        ("ON", "yes or no", "yes", "Whether it is on.", "Delivering"),
        ("KEY", "text", "**required**", "A key.", "Delivering"),
        ("OTHER", "text", "`{PORT}`", "The same as the port.", "Delivering"),
    ]


def test_every_reader_of_the_environment_has_a_type_on_the_page() -> None:
    tree = ast.parse((ROOT / "lytics_sync" / "env.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    readers = {
        node.name for node in functions if [arg.arg for arg in node.args.args][:1] == ["name"] and node.name[0] != "_"
    }
    assert readers == {*settings_page.KINDS, "one_of"}


def test_every_setting_is_described_in_one_sentence() -> None:
    described = {
        setting.name: setting.description
        for setting in settings_page.read(settings_page.SETTINGS.read_text(encoding="utf-8"))
    }
    assert len(described) > 50
    assert [name for name, words in described.items() if not (words.endswith(".") and words[:1].isupper())] == []


def test_no_other_module_reads_a_setting_that_the_page_lacks() -> None:
    """The local runner reads the environment itself, for the settings that it makes or passes on."""
    own = [
        file
        for room in ("lytics_sync", "audiences", "workers", "lytics", "odp", "outgoing")
        for file in (ROOT / room).rglob("*.py")
    ]
    readers = [
        str(file.relative_to(ROOT))
        for file in own
        if any(f"env.{reader}(" in file.read_text(encoding="utf-8") for reader in (*settings_page.KINDS, "one_of"))
    ]
    assert readers == ["lytics_sync/settings.py"]


@pytest.mark.parametrize("former", env.RENAMED)
def test_a_former_name_of_a_setting_is_refused_with_its_current_name(
    former: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.refuse_former_names()
    monkeypatch.setenv(former, "5")
    with pytest.raises(ImproperlyConfigured, match=f"{former} is now {env.RENAMED[former]}"):
        env.refuse_former_names()
    monkeypatch.setenv(former, "")
    env.refuse_former_names()


def test_every_renamed_setting_has_its_current_name_on_the_page() -> None:
    names = {setting.name for setting in settings_page.read(settings_page.SETTINGS.read_text(encoding="utf-8"))}
    assert set(env.RENAMED.values()) <= names
    assert not set(env.RENAMED) & names


# Why an unusable value is refused. A value that only fails when it is used would fail long after the start.
UNUSABLE = {
    ("AUDIT_MODE", "monthly"): "AUDIT_MODE must be one of quick, sample, full, not 'monthly'.",
    ("AUDIT_HOURS", "-24"): "AUDIT_HOURS must be a whole number from 0 to 8760, not '-24'.",
    ("AUDIT_SAMPLE", "0"): "AUDIT_SAMPLE must be a whole number from 1 to 1000000, not '0'.",
    (
        "AUDIT_CUSTOMERS_PER_REQUEST",
        "0",
    ): "AUDIT_CUSTOMERS_PER_REQUEST must be a whole number from 1 to 10000, not '0'.",
    ("LOGIN_FAILURE_LIMIT", "0"): "LOGIN_FAILURE_LIMIT must be a whole number from 1 to 10000, not '0'.",
    ("BACKLOG_HIGH_WATER", "many"): "BACKLOG_HIGH_WATER must be a whole number from 1000 to 1000000000000, not 'many'.",
    ("REPAIR_PERCENT", "-1"): "REPAIR_PERCENT must be a number from 0 to 100, not '-1'.",
    ("REPAIR_PERCENT", "one"): "REPAIR_PERCENT must be a number from 0 to 100, not 'one'.",
    ("AUDIT_ODP_REQUESTS_PER_SECOND", "0"): "AUDIT_ODP_REQUESTS_PER_SECOND must be a number from 0.25 to 500, not '0'.",
    ("LEASE_SECONDS", "nan"): "LEASE_SECONDS must be a number from 3 to 3600, not 'nan'.",
    ("LOG_LEVEL", "verbose"): "LOG_LEVEL must be one of debug, info, warning, error, critical, not 'verbose'.",
    **{
        ("ALLOWED_HOSTS", f"localhost,{host}"): "ALLOWED_HOSTS must have host names only, without https:// and port,"
        f" not '{host}'."
        for host in ("https://sync.example.com", "sync.example.com:8000", "[::1]:80", "::1", "sync.example.com/", "a b")
    },
    ("WORKER_HEALTH_PORT", "80010"): "WORKER_HEALTH_PORT must be a whole number from 0 to 65535, not '80010'.",
    **{
        (name, value): f"{name} must be a URL that begins with https:// or http:// and names a host."
        for name in ("PUBLIC_URL", "LYTICS_API_URL", "ALERT_SLACK_URL", "ALERT_WEBHOOK_URL")
        for value in ("sync.example.com", "ftp://sync.example.com", "https://", "https://h:port", "https://h h")
    },
}


@pytest.mark.parametrize(("name", "value"), UNUSABLE)
def test_an_unusable_value_is_refused_in_one_sentence(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ImproperlyConfigured) as refused:
        runpy.run_path(str(settings_page.SETTINGS))
    assert str(refused.value) == UNUSABLE[name, value]


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://:geheim@h",
        "sentinel://a;sentinel://b",
        "redis://:ge#heim@h:6379/0",
        "redis://:ge/heim@h:6379/0",
        "redis://:geheim@h:6379/geheim",
        "redis://h/0?geheim=1",
        "rediss://h/0?ssl_cert_reqs=geheim",
    ],
)
def test_an_unusable_address_of_redis_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="REDIS_URL must be like redis://") as refused:
        redis_url.read(url)
    assert "heim" not in str(refused.value)


@pytest.mark.parametrize("url", ["redis://h", "redis://u:p%23w@[::1]:1/15", "rediss://h/0?ssl_cert_reqs=none"])
def test_a_usable_address_of_redis_is_kept(url: str) -> None:
    assert redis_url.read(url) == url


def test_host_names_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", "*,.example.com, sync_1.example.com ,10.1.2.3,[fe80::1]")
    found = runpy.run_path(str(settings_page.SETTINGS))["ALLOWED_HOSTS"]
    assert found == ["*", ".example.com", "sync_1.example.com", "10.1.2.3", "[fe80::1]"]


def test_a_level_of_the_log_is_read_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "debug")
    assert runpy.run_path(str(settings_page.SETTINGS))["LOGGING"]["root"]["level"] == "DEBUG"


def test_the_schedule_has_the_modes_of_audits() -> None:
    found = settings_page.read(settings_page.SETTINGS.read_text(encoding="utf-8"))
    (kind,) = [setting.kind for setting in found if setting.name == "AUDIT_MODE"]
    assert kind == f"one of {', '.join(Audit.Mode.values)}"
