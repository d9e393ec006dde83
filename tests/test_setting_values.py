"""Every setting with odd values: it is refused in one sentence, or works; and no accepted number makes things stand."""

import re
import runpy
from datetime import timedelta

import pytest
from django.core.checks import ERROR, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import Client, override_settings
from django.utils.timezone import now

from audiences.models import Audience, Install, Membership
from audiences.operations import installs
from local.stack import Stack
from lytics_sync import env
from sandbox.odp.testing import ThreadedSandbox
from tests import settings_page
from tests.delivering import drain_all
from tests.settings_page import Setting
from workers import tasks
from workers.app import app

ODD = {
    "blank": "",
    "spaces": "   ",
    "text": "abc",
    "negative": "-1",
    "zero": "0",
    "huge": "9" * 5_000,
    "huge float": "1e300",
    "not a number": "nan",
    "a line end": "5\n5",
    "quotes": '"5"',
    "apostrophes": "'5'",
    "another digit": "٣",
    "a byte that is not UTF-8": "5\udcff",
    "a zero-width blank": "5\u200b5",
    "commas": ",,",
    "a name": "host.example.com",
    "a URL": "https://host.example.com/path",
    "a port that cannot be": "https://host.example.com:99999",
    "a password": "https://user:geheim@wort@host.example.com",
    "a broken escape": "https://user:geheim%zz@host.example.com",
}
SETTINGS = list(settings_page.read(settings_page.SETTINGS.read_text(encoding="utf-8")))
NUMBERS = [one for one in SETTINGS if one.bounds]
# Settings whose reader takes any text in one line. What checks them is named; nothing needs to check the others.
ANY_TEXT = {
    "SECRET_KEY": "",
    "DATABASE_URL": "database_url",
    "REDIS_URL": "redis_url",
    "BACKUP_FILE": "",
    "EMAIL_HOST_USER": "",
    "EMAIL_HOST_PASSWORD": "",
    "ALERT_WEBHOOK_SECRET": "audiences.E016",
    "ALERT_QUIET_HOURS": "audiences.E017",
    "METRICS_TOKEN": "audiences.E015 and E023",
}
ANY_WORDS = {"SECRET_KEY_FALLBACKS", "FIELD_ENCRYPTION_KEYS", "PLACEHOLDER_IDENTIFIERS"}
UNIT = {"SECONDS": "seconds", "MINUTES": "minutes", "HOURS": "hours", "DAYS": "days"}


def loaded(monkeypatch: pytest.MonkeyPatch, **values: str) -> dict[str, object]:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return runpy.run_path(str(settings_page.SETTINGS))


def refusal(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> str:
    try:
        loaded(monkeypatch, **{name: value})
    except ImproperlyConfigured as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_an_odd_value_is_refused_in_one_sentence_that_names_the_setting(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {what: refusal(monkeypatch, setting.name, value) for what, value in ODD.items()}
    for what, words in refused.items():
        assert not words or (setting.name in words and words.endswith(".") and "\n" not in words), what
        assert len(words) < 300, what
        assert "heim" not in words, what
    never = {"a line end", "quotes", "apostrophes", "a byte that is not UTF-8", "a zero-width blank"}
    assert {what for what in never if not refused[what]} == set()
    if setting.name not in ANY_TEXT and setting.name not in ANY_WORDS:
        assert refused["a port that cannot be"]
    if setting.default != "**required**":
        assert refused["blank"] == refused["spaces"] == "", "as if it weren't set"


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.name)
def test_a_number_has_bounds_that_are_possible(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just outside of them the value is refused, with both bounds and the value."""
    least, most = setting.bounds["least"], setting.bounds["most"]
    for edge in (least, most):
        assert not refusal(monkeypatch, setting.name, f" {edge} ")
    for outside in (least - 1, most + 1):
        if not (outside == 0 and setting.bounds.get("zero")):
            words = refusal(monkeypatch, setting.name, str(outside))
            assert f"from {least} to {most}, not '{outside}'." in words
    assert (refusal(monkeypatch, setting.name, "0") == "") is bool(least <= 0 or setting.bounds.get("zero"))
    if unit := UNIT.get(setting.name.rpartition("_")[2]):
        assert now() - timedelta(**{unit: most}) < now() < now() + timedelta(**{unit: most})


def test_a_setting_of_any_text_has_a_check_or_needs_none() -> None:
    assert {one.name for one in SETTINGS if one.kind == "text"} == set(ANY_TEXT)


def test_every_number_is_read_with_bounds() -> None:
    kinds = {settings_page.KINDS["integer"], settings_page.KINDS["number"]}
    assert [one.name for one in SETTINGS if one.kind.partition(",")[0] in kinds and not one.bounds] == []


def test_the_local_runner_reads_its_settings_without_white_space_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PORT": " 8124 ",
        "HOST": "  ",
        "DATABASE_URL": " ",
        "PUBLIC_URL": " ",
        "DATA_DIR": " ",
    }.items():
        monkeypatch.setenv(name, value)
    stack = Stack.here()
    assert (stack.port, stack.host, stack.is_embedded) == (8124, "127.0.0.1", True)
    assert (stack.public_url, stack.folder.name) == ("http://127.0.0.1:8124", ".data")
    code = "".join(file.read_text(encoding="utf-8") for file in (env.PROJECT_DIR / "local").glob("*.py"))
    assert set(re.findall(r"environ\.get\((.*?)\)", code)) == {'"MAKELEVEL"'}, "which make sets"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("bound", ["least", "most"])
def test_with_all_numbers_at_a_bound_a_call_is_delivered_and_every_scheduled_task_runs(
    bound: str, odp: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = loaded(monkeypatch, **{one.name: str(one.bounds[bound]) for one in NUMBERS})
    values = {one.name: found[one.name] for one in NUMBERS if one.name in found}
    with override_settings(**values):
        assert [error for error in run_checks() if error.level >= ERROR] == []
        shop = Install(name="Shop", odp_host=odp.url, odp_api_key=odp.private_key, requests_per_second=0)
        installs.create(shop)
        (token,) = shop.tokens.all()
        at = f"{now():%Y-%m-%dT%H:%M:%SZ}"
        event = {"id": "0a" * 16, "slug": "gold", "event": "enter", "enter": at}
        answer = Client().post(
            f"/webhooks/lytics/{shop.public_id}",
            [{"data": {"_id": "u1", "segment_events": [event]}, "meta": {"timestamp": at}}],
            content_type="application/json",
            headers={"Authorization": installs.authorization(token)},
        )
        assert answer.status_code == 200
        drain_all(Install.objects.get())
        for name in app.conf.beat_schedule:
            getattr(tasks, name)()
    assert Membership.objects.get().is_member
    assert Audience.objects.get(slug="gold").provisioned_at
