"""``connect`` as people use it: the command, and the buttons on the page of an install."""

import io
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import lytics_account
from audiences.encryption import decrypt
from audiences.models import Install, LyticsAccount, Token
from audiences.receiving import tokens
from sandbox.lytics.api.server import LyticsServer
from tests.connecting import CART, VIP, add_job, edit, fault, made_auths, made_jobs, make_shop, sandbox_lytics, the_job
from tests.lytics_sandbox import TOKEN
from tests.test_admin import hidden, press, url

pytestmark = pytest.mark.django_db

CHOICES = ("lytics-token", "no-lytics-token", "connect", "start-job")


@pytest.fixture
def lytics(tmp_path: Path, settings: Settings) -> Iterator[LyticsServer]:
    with sandbox_lytics(tmp_path, settings) as running:
        yield running


@pytest.fixture
def shop(lytics: LyticsServer) -> Install:
    return make_shop()


# --- the command ----------------------------------------------------------------------------------------------


def run(*words: str) -> str:
    said = io.StringIO()
    call_command("connect", *words, stdout=said)
    return said.getvalue()


def test_the_command_makes_the_job_shows_it_and_starts_it(lytics: LyticsServer, shop: Install) -> None:
    said = run(shop.public_id, "--audience", VIP.slug, "--audience", CART.slug)
    assert f"Audience {VIP.slug}, " in said
    assert "paused" in said
    assert "run this again with --start" in said
    said = run("Shop", "--start")
    assert "done: Start the job" in said
    assert "--start" not in said
    assert the_job(lytics)["status"] == "running"
    assert "done:" not in run("Shop")


def test_the_command_reports_to_programs(lytics: LyticsServer, shop: Install) -> None:
    facts = json.loads(run("Shop", "--audience", VIP.slug, "--json"))
    job = the_job(lytics)
    assert (facts["install_id"], facts["problem"], facts["by_hand"]) == (shop.public_id, "", None)
    assert (facts["job"]["id"], facts["job"]["state"]) == (job["id"], "paused")
    assert [one["slug"] for one in facts["job"]["audiences"]] == [VIP.slug]
    assert len(facts["steps"]) == 2


def test_the_command_lists_audiences_where_none_is_chosen(lytics: LyticsServer, shop: Install) -> None:
    said = run("Shop")
    assert "Choose audiences with --audience" in said
    assert f"  {VIP.slug}, " in said


def test_the_command_shows_what_a_person_changed(lytics: LyticsServer, shop: Install) -> None:
    add_job(lytics, shop)
    assert "Differs  Existing Users: not set instead of selected." in run("Shop")


def test_a_dry_run_of_the_command_changes_nothing(lytics: LyticsServer, shop: Install) -> None:
    said = run("Shop", "--audience", VIP.slug, "--start", "--dry-run")
    assert "would do: Start the job" in said
    assert (made_jobs(lytics), made_auths(lytics)) == ([], [])


@pytest.mark.parametrize("field", ["_id", "customer_number"])
def test_without_an_api_token_the_command_prints_what_to_enter(field: str) -> None:
    shop = make_shop()
    lytics_account.set_token(shop, "")
    Install.objects.update(identifier_field=field)
    said = io.StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("connect", "Shop", "--audience", "vip", "--json", stdout=said)
    assert ended.value.code == 1
    facts = json.loads(said.getvalue())
    entered = {label: value for page in facts["by_hand"].values() for label, value in page.items()}
    header = entered["Request header"].removeprefix("Authorization: ")
    assert tokens.authenticate(public_id=shop.public_id, authorization=header)[1] is not None
    exported = "Lytics ID" if field == "_id" else field
    assert entered["Webhook URL"].endswith(shop.public_id)
    assert (entered["Audiences"], entered["Export Fields"]) == ("vip", f"{exported}, segment_events")
    assert (entered["Batch Size"], entered["HTTPMethod"]) == ("300", "POST")


def test_a_dry_run_without_any_token_makes_none_and_says_so() -> None:
    lytics_account.set_token(make_shop(), "")
    Token.objects.all().delete()
    with pytest.raises(CommandError, match="A run would create one"):
        run("Shop", "--dry-run")
    assert not Token.objects.exists()
    with pytest.raises(CommandError, match="no Lytics API token"):
        run("Shop")
    assert Token.objects.get().name == "Lytics job"


def test_tokens_that_all_end_are_given_to_nobody() -> None:
    lytics_account.set_token(shop := make_shop(), "")
    tokens.create(shop)
    Token.objects.update(expires_at=now() + timedelta(days=1))
    said = io.StringIO()
    with pytest.raises(SystemExit):
        call_command("connect", "Shop", "--json", stdout=said)
    facts = json.loads(said.getvalue())
    assert "Revoke one of them" in facts["problem"]
    assert facts["by_hand"] is None


def test_without_a_right_the_command_prints_what_to_enter_and_why(lytics: LyticsServer, shop: Install) -> None:
    fault(lytics, "/v2/auth", {"status": 403, "body": {"errors": [{"message": "no such role"}]}})
    said = io.StringIO()
    with pytest.raises(CommandError, match="no such role"):
        call_command("connect", "Shop", "--audience", VIP.slug, stdout=said)
    assert "Batch Send Duration          3" in said.getvalue()
    assert f"Authorization: Bearer {Token.objects.get().secret}" in said.getvalue()


def test_a_job_found_by_hand_printing_is_adopted_by_its_name(lytics: LyticsServer, shop: Install) -> None:
    """Its label, entered as printed, makes it ours among several jobs."""
    fault(lytics, "/v2/auth", {"status": 403})
    said = io.StringIO()
    with pytest.raises(SystemExit):
        call_command("connect", "Shop", "--audience", VIP.slug, "--json", stdout=said)
    pages = json.loads(said.getvalue())["by_hand"].values()
    label = next(page["Label"] for page in pages)
    add_job(lytics, shop)
    add_job(lytics, shop, name=label)
    assert json.loads(run("Shop", "--json"))["job"]["name"] == label


def test_a_problem_that_another_try_may_solve_prints_no_secret(lytics: LyticsServer, shop: Install) -> None:
    fault(lytics, "/v2/segment", {"status": 503}, method="GET")
    said = io.StringIO()
    with pytest.raises(CommandError, match="Try again later"):
        call_command("connect", "Shop", stdout=said)
    assert said.getvalue() == ""


# --- the API token -----------------------------------------------------------------------------------------------


def messages_of(client: Client, shop: Install) -> str:
    return client.get(reverse("admin:audiences_install_change", args=[shop.pk])).content.decode()


def test_an_operator_sets_the_api_token_and_it_is_stored_encrypted(
    lytics: LyticsServer, shop: Install, operator: Client
) -> None:
    lytics_account.set_token(shop, "")
    press(operator, "lytics-token", shop, api_token=f" {TOKEN} ")
    account = LyticsAccount.objects.get()
    assert account.api_token == TOKEN
    stored = LyticsAccount.objects.extra(select={"raw": "api_token"}).values_list("raw", flat=True).get()
    assert decrypt(stored.encode()).decode() == TOKEN
    page = messages_of(operator, shop)
    assert "shows 4 audiences" in page
    assert TOKEN not in page
    assert TOKEN not in "".join(LogEntry.objects.values_list("change_message", flat=True))


def test_a_token_that_lytics_rejects_is_not_stored(lytics: LyticsServer, shop: Install, operator: Client) -> None:
    press(operator, "lytics-token", shop, api_token="wrong")
    assert LyticsAccount.objects.get().api_token == TOKEN
    assert "is not stored" in messages_of(operator, shop)


@pytest.mark.parametrize(
    ("path", "then"), [("/v2/segment", {"status": 503}), ("/v2/job", {"status": 403}), ("/v2/auth", {"status": 403})]
)
def test_a_token_that_could_not_be_checked_whole_is_stored_with_a_warning(
    lytics: LyticsServer, shop: Install, operator: Client, path: str, then: dict[str, Any]
) -> None:
    lytics_account.set_token(shop, "")
    fault(lytics, path, then, method="GET")
    press(operator, "lytics-token", shop, api_token=TOKEN)
    assert lytics_account.has_token(shop)
    page = messages_of(operator, shop)
    assert "The Lytics API token is stored" in page
    assert str(then["status"]) in page


def test_an_operator_removes_the_api_token(shop: Install, operator: Client) -> None:
    press(operator, "no-lytics-token", shop)
    assert not lytics_account.has_token(shop)
    assert operator.get(url("no-lytics-token", shop)).status_code == 302


@pytest.mark.parametrize("verb", CHOICES)
def test_a_viewer_can_not_reach_lytics(lytics: LyticsServer, shop: Install, viewer: Client, verb: str) -> None:
    assert viewer.post(url(verb, shop)).status_code == 403
    assert "Lytics API token" not in messages_of(viewer, shop)


# --- the job ------------------------------------------------------------------------------------------------------


def test_an_operator_chooses_audiences_looks_at_the_job_and_starts_it(
    lytics: LyticsServer, shop: Install, operator: Client
) -> None:
    asked = press(operator, "connect", shop, segment_ids=[VIP.segment_id, CART.segment_id])
    assert VIP.slug in asked
    assert the_job(lytics)["status"] == "paused"
    assert set(the_job(lytics)["config"]["segment_ids"]) == {VIP.segment_id, CART.segment_id}
    asked = press(operator, "start-job", shop)
    assert f"{VIP.slug}, {CART.slug}" in asked or f"{CART.slug}, {VIP.slug}" in asked
    assert "Its settings are ours." in asked
    assert the_job(lytics)["status"] == "running"
    history = list(LogEntry.objects.order_by("pk").values_list("change_message", flat=True))
    assert "Start the job" in history[-1]
    assert Token.objects.get().secret not in "".join(history)


def test_deselected_audiences_leave_and_unlisted_ones_stay(
    lytics: LyticsServer, shop: Install, operator: Client
) -> None:
    press(operator, "connect", shop, segment_ids=[VIP.segment_id])
    edit(lytics, the_job(lytics), config={"segment_ids": [VIP.segment_id, "unlisted"], "batch_size": 50})
    asked = press(operator, "connect", shop, segment_ids=[CART.segment_id])
    assert "Batch Size is 50 instead of 300" in asked
    config = the_job(lytics)["config"]
    assert (config["segment_ids"], config["batch_size"]) == (["unlisted", CART.segment_id], 50)


def test_a_job_that_changed_after_the_page_was_opened_is_left_alone(
    lytics: LyticsServer, shop: Install, operator: Client
) -> None:
    press(operator, "connect", shop, segment_ids=[VIP.segment_id])
    for verb, answers in (("connect", {"segment_ids": [CART.segment_id]}), ("start-job", {})):
        asked = operator.get(url(verb, shop)).content.decode()
        edit(lytics, the_job(lytics), config={"batch_size": the_job(lytics)["config"]["batch_size"] + 1})
        before = the_job(lytics)
        operator.post(url(verb, shop), {**hidden(asked), **answers})
        assert the_job(lytics) == before
        assert "changed after the page was loaded" in messages_of(operator, shop)


def test_without_an_audience_nothing_is_made(lytics: LyticsServer, shop: Install, operator: Client) -> None:
    press(operator, "connect", shop)
    assert made_jobs(lytics) == []


@pytest.mark.parametrize("verb", ["connect", "start-job"])
def test_a_page_says_why_lytics_can_not_be_read(
    lytics: LyticsServer, shop: Install, operator: Client, verb: str
) -> None:
    fault(lytics, "/v2/job", {"status": 403, "body": {"message": "no role for jobs"}}, method="GET")
    assert operator.get(url(verb, shop)).status_code == 302
    page = messages_of(operator, shop)
    assert "no role for jobs" in page
    assert "Install Instructions on this page say what to enter" in page


def test_a_press_that_lytics_rejects_says_so(lytics: LyticsServer, shop: Install, operator: Client) -> None:
    fault(lytics, "/v2/job", {"status": 400, "body": {"errors": [{"message": "too many active exports"}]}})
    press(operator, "connect", shop, segment_ids=[VIP.segment_id])
    assert "too many active exports" in messages_of(operator, shop)
    assert made_jobs(lytics) == []


def test_starting_without_a_job_says_what_to_do_first(lytics: LyticsServer, shop: Install, operator: Client) -> None:
    press(operator, "start-job", shop)
    assert "Choose audiences first" in messages_of(operator, shop)
