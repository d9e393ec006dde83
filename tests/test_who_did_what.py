"""Who did what: narrowed by person, action, thing and days, searched, and downloaded."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from audiences.models import Install, Parked, Token
from audiences.operations import installs
from audiences.receiving import ingest
from tests.people import someone
from tests.test_admin import press

pytestmark = pytest.mark.django_db

LOG = "/admin/admin/logentry/"


@pytest.fixture
def done(boss: Client, install: Install) -> Client:
    """An admin revealed an item, discarded another and downloaded a file; an operator revealed a token."""
    for _ in range(2):
        ingest.receive(install, b"not json")
    one, other = Parked.objects.order_by("pk")
    press(boss, "reveal", one)
    press(boss, "discard", other, reason="why not")
    press(someone("operator"), "reveal", Token.objects.get())
    boss.post("/admin/audiences/run/csv/")
    return boss


def whats(client: Client, **query: Any) -> list[str]:
    page = client.get(LOG, query)
    assert page.status_code == 200
    return [entry.get_change_message() for entry in page.context["cl"].result_list]


def test_reveals_and_downloads_of_this_month_are_one_click_away(done: Client) -> None:
    page = done.get(LOG).content.decode()
    found = re.search(r'href="([^"]+)">Revealed or downloaded this month<', page)
    assert found
    query = dict(pair.split("=") for pair in found[1].lstrip("?").replace("&amp;", "&").split("&"))
    assert len(whats(done, **query)) == 3
    LogEntry.objects.update(action_time=now() - timedelta(days=40))
    assert whats(done, **query) == []


def test_the_log_is_narrowed_by_action_person_and_thing_and_searched(done: Client) -> None:
    assert len(whats(done)) == 4
    assert len(whats(done, action="revealed")) == 2
    assert whats(done, action="downloaded") == ["Downloaded as CSV, all of it."]
    assert [told.startswith("Discarded") for told in whats(done, action="changed")] == [True]
    of = {model: ContentType.objects.get_for_model(model).pk for model in (Parked, Token)}
    assert (len(whats(done, thing=of[Parked])), len(whats(done, thing=of[Token]))) == (2, 1)
    operator = LogEntry.objects.get(content_type=of[Token]).user_id
    assert len(whats(done, user__id__exact=operator)) == 1
    assert len(whats(done, q="why not")) == 1
    assert len(whats(done, q="operator")) == 1


def test_the_log_is_narrowed_by_days_and_the_last_one_is_whole(done: Client) -> None:
    newest = LogEntry.objects.latest("pk")
    LogEntry.objects.exclude(pk=newest.pk).update(action_time=datetime(2025, 5, 3, 23, 59, tzinfo=UTC))
    assert len(whats(done, since="2025-05-03", until="2025-05-03")) == 3
    assert len(whats(done, until="2025-05-02")) == 0
    assert len(whats(done, since="2025-05-04")) == 1
    for odd in ("x", "2025-13-01", "9999-12-31", "\x00", "0001-01-01"):
        assert done.get(LOG, {"since": odd, "until": odd, "thing": odd, "action": odd}, follow=True).status_code == 200


def test_the_log_is_downloaded_as_it_is_narrowed_and_that_is_logged(done: Client) -> None:
    assert 'action="csv/?action=revealed"' in done.get(LOG, {"action": "revealed"}).content.decode()
    answer: Any = done.post(f"{reverse('admin:audiences_logentry_csv')}?action=revealed")
    lines = b"".join(answer.streaming_content).decode().splitlines()
    assert lines[0] == "when,user,kind,thing,id,what"
    assert [line.split(",")[1:3] for line in lines[1:]] == [["operator", "token"], ["admin", "parked"]]
    assert "action=revealed" in LogEntry.objects.order_by("-action_time")[0].change_message


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_only_an_admin_downloads_the_log(role: str, db: None) -> None:
    assert someone(role).post(reverse("admin:audiences_logentry_csv")).status_code == 403


def test_a_deleted_install_is_found_among_the_deletions(boss: Client) -> None:
    mistake = Install(name="Mistake", odp_api_key="a.b", odp_host="http://127.0.0.1:9")
    installs.create(mistake)
    address = reverse("admin:audiences_install_remove", args=[mistake.pk])
    boss.post(address, {"seen": boss.get(address).context["hidden"]["seen"]})
    assert not Install.objects.filter(pk=mistake.pk).exists()
    assert [what for what in whats(boss, action="deleted") if "Deleted, with its settings" in what]
