"""While all calls of an install are answered 503, every page and command that says how it is says so."""

import io
import json
import re
from collections.abc import Callable

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.insight import checklist, state
from audiences.models import Install
from audiences.operations.doctor import service
from audiences.operations.doctor.case import Case
from audiences.receiving import backlog, disk_usage
from tests.delivering import enter, make_audience

pytestmark = pytest.mark.django_db


# The page of an install also explains that calls are answered 503 when it is off.
SAYS_SO = re.compile("are answered 503(:|, and Lytics)")
BACKOFF = {"backoff_reason": "503: down", "backoff_failures": 1}


def over_the_high_water_mark(settings: Settings) -> str:
    settings.BACKLOG_HIGH_WATER = 1
    return "Too many events wait for ODP."


def over_the_disk_mark(settings: Settings) -> str:
    settings.DATABASE_HIGH_WATER_BYTES = 1
    return "The database is as large as it may get."


@pytest.fixture
def shop(install: Install, monkeypatch: pytest.MonkeyPatch) -> Install:
    monkeypatch.setattr(backlog, "_read_at", {})
    monkeypatch.setattr(backlog, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(disk_usage, "FRESH_SECONDS", 0.0)
    Install.objects.update(key_accepted_at="2026-01-01T00:00Z")
    enter(make_audience(install), "u1", "u2")
    return Install.objects.get()


def answers(shop: Install, boss: Client) -> dict[str, str]:
    said, lines = io.StringIO(), io.StringIO()
    call_command("lane_status", stdout=said)
    call_command("lane_status", "--json", stdout=lines)
    return {
        "Now": boss.get("/admin/").content.decode(),
        "the list": boss.get(reverse("admin:audiences_install_changelist")).content.decode(),
        "the page": boss.get(reverse("admin:audiences_install_change", args=[shop.pk])).content.decode(),
        "lane_status": said.getvalue(),
        "lane_status --json": json.dumps(json.loads(lines.getvalue())["installs"]),
        "the check list": " ".join(line.state.why for line in checklist.lines(shop)),
        "the doctor": str(service.install(Case(shop))),
    }


@pytest.mark.parametrize("mark", [over_the_high_water_mark, over_the_disk_mark])
def test_each_page_says_that_calls_are_answered_503(
    mark: Callable[[Settings], str], shop: Install, admin_client: Client, settings: Settings
) -> None:
    assert [where for where, said in answers(shop, admin_client).items() if SAYS_SO.search(said)] == []
    before = settings.BACKLOG_HIGH_WATER, settings.DATABASE_HIGH_WATER_BYTES
    reason = mark(settings)
    found = answers(shop, admin_client)
    assert [where for where, said in found.items() if not SAYS_SO.search(said)] == []
    assert [where for where, said in found.items() if reason not in said] == ["Now"], "which has numbers"
    assert not any(re.search(r"\bactive\b", found[where]) for where in ("lane_status", "lane_status --json"))
    settings.BACKLOG_HIGH_WATER, settings.DATABASE_HIGH_WATER_BYTES = before
    assert [where for where, said in answers(shop, admin_client).items() if SAYS_SO.search(said)] == []


@pytest.mark.parametrize("mark", [over_the_high_water_mark, over_the_disk_mark])
@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"key_accepted_at": None}, "draft"),
        (
            {
                "backoff_until_at": now(),
                "backoff_since_at": now(),
                "backoff_reason": "503: down",
                "backoff_failures": 1,
            },
            "on hold",
        ),
    ],
)
def test_a_draft_and_an_install_on_hold_say_it_too(
    mark: Callable[[Settings], str], values: dict[str, object], word: str, shop: Install, settings: Settings
) -> None:
    Install.objects.update(**values)
    reason = mark(settings)
    shown = state.of_install(Install.objects.get())
    assert shown.word == word
    assert reason in shown.why
    assert "accepted and stored" not in shown.why
