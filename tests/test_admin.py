"""The operator's pages: each opens, and each button does what it says only for people with its permission."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from audiences.admin.tokens import Rotate
from audiences.delivery import backoff, claims, holds, provision, request_records
from audiences.insight import heartbeats
from audiences.models import Audience, Audit, Delivery, Event, Install, Lane, Parked, Receipt, Resend, Run, Token
from audiences.operations import installs, parked_items, resends
from audiences.receiving import ingest, tokens
from odp.outcomes import Answer, Outcome
from tests.delivering import make_install
from tests.people import someone

pytestmark = pytest.mark.django_db

KEY = "public.very-private-key"


def message(identifier: str | None = "p-1") -> dict[str, Any]:
    transition = {"id": "a1", "slug": "vip_buyers", "event": "enter", "enter": "2026-02-01T00:00:00Z"}
    data = {"segment_events": [transition], **({"_id": identifier} if identifier else {"email": "kim@example.com"})}
    return {"data": data, "meta": {"object": "user"}}


@pytest.fixture
def install() -> Install:
    """An install with one queued and one parked message. No server listens at its host."""
    made = Install(name="Shop", odp_api_key=KEY, odp_host="http://127.0.0.1:1")
    installs.create(made)
    ingest.receive(made, json.dumps([message(), message(None)]).encode())
    return made


@pytest.fixture
def audience(install: Install) -> Audience:
    return Audience.objects.get(install=install)


@pytest.fixture
def lane(audience: Audience) -> Lane:
    return Lane.objects.get(audience=audience)


def url(verb: str, thing: Any) -> str:
    return reverse(f"admin:{thing._meta.app_label}_{thing._meta.model_name}_{verb}", args=[thing.pk])


def hidden(page: str) -> dict[str, str]:
    """The hidden fields of a confirmation, as a browser would send them back."""
    tags = re.findall(r'<input[^>]*type="hidden"[^>]*>', page)
    pairs = [(re.search(r'name="([^"]+)"', tag), re.search(r'value="([^"]*)"', tag)) for tag in tags]
    return {name[1]: value[1] for name, value in pairs if name and value}


def press(client: Client, verb: str, thing: Any, **answers: str | list[str]) -> str:
    """Open a button's confirmation page and press it. Returns the text of the page."""
    asked = client.get(url(verb, thing))
    assert asked.status_code == 200, asked.status_code
    client.post(url(verb, thing), {**hidden(asked.content.decode()), **answers})
    return asked.content.decode()


# --- every page opens -----------------------------------------------------------------------------------------


def test_an_anonymous_visitor_is_redirected_to_the_login(client: Client, install: Install) -> None:
    for name in ("index", "audiences_install_changelist", "audiences_parked_changelist"):
        assert client.get(reverse(f"admin:{name}"))["Location"].startswith("/admin/login/")


def test_logging_in_leads_to_the_front_page(client: Client) -> None:
    User.objects.create_user("kim", password="long enough for anyone", is_staff=True)
    told = client.post("/admin/login/", {"username": "kim", "password": "long enough for anyone"})
    assert told["Location"] == reverse("admin:index")


@pytest.mark.parametrize("model", ["install", "audience", "parked", "receipt", "run", "delivery", "token", "resend"])
def test_lists_and_things_open_for_a_viewer(viewer: Client, install: Install, lane: Lane, model: str) -> None:
    Audience.objects.update(provisioned_at=now())
    lease = claims.claim(install.pk)
    assert lease is not None
    request_records.open_delivery(lease, endpoint="/v3/profiles", items=1, size=9, sent={lane.pk: 1}, of={lane.pk: 1})
    kinds: dict[str, Any] = {
        "install": Install,
        "audience": Audience,
        "parked": Parked,
        "receipt": Receipt,
        "run": Run,
        "delivery": Delivery,
        "token": Token,
        "resend": Resend,
    }
    resends.resync(Audience.objects.get(), by="kim", reason="a test")
    listed = viewer.get(reverse(f"admin:audiences_{model}_changelist"))
    assert listed.status_code == 200
    thing = kinds[model].objects.first()
    opened = viewer.get(reverse(f"admin:audiences_{model}_change", args=[thing.pk]))
    assert opened.status_code == 200
    for page in (listed, opened):
        assert KEY not in page.content.decode()
        assert "http://fonts" not in page.content.decode()


def test_the_front_page_is_calm_when_all_is_well(viewer: Client, broker: Any) -> None:
    page = viewer.get(reverse("admin:index"))
    assert page.status_code == 200
    assert page.context["alerts"] == []
    assert all(number.well is not False for number in page.context["numbers"])


def test_a_button_of_a_page_that_renews_itself_opens_its_dialog(operator: Client, install: Install) -> None:
    """htmx hands its attributes down: the dialog would take the place of the frame that it opens in."""
    page = operator.get(reverse("admin:index")).content.decode()
    buttons = re.findall(r'<a class="ls-button[^>]*hx-get[^>]*>', page)
    assert buttons
    assert all('hx-swap="innerHTML"' in button for button in buttons)


def test_the_front_page_shows_each_alert(viewer: Client, install: Install, lane: Lane) -> None:
    Lane.objects.update(blocked_at=now(), block_reason="The customer field has type string")
    backoff.apply(install, Answer(Outcome.UNAUTHORISED, "403: Forbidden", 403, fixed_backoff=True))
    page = viewer.get(reverse("admin:index")).content.decode()
    assert "The customer field has type string" in page
    assert "403: Forbidden" in page
    assert "no_identifier" in page or "no usable customer identifier" in page


def test_stuck_work_is_an_alert_that_says_whether_a_worker_answers(
    viewer: Client, install: Install, lane: Lane
) -> None:
    def told() -> list[str]:
        return [
            alert.todo for alert in viewer.get(reverse("admin:index")).context["alerts"] if "not sent" in alert.what
        ]

    assert told() == []
    Event.objects.update(received_at=now() - timedelta(minutes=5))
    Audience.objects.update(provisioned_at=now() - timedelta(minutes=5))
    assert told() == ["No worker answers. Start the worker and beat processes, or look at their logs."]
    heartbeats.note("worker", worked_seconds_ago=None)
    assert told() == ["Check that beat runs, and read a worker's log."]
    holds.pause(lane, by="kim", reason="on purpose")
    assert told() == []


def test_work_resumed_a_moment_ago_is_not_stuck(operator: Client, audience: Audience, lane: Lane) -> None:
    Event.objects.update(received_at=now() - timedelta(minutes=5))
    holds.pause(lane, by="kim", reason="on purpose")
    press(operator, "resume", audience)
    assert not [told for told in operator.get(reverse("admin:index")).context["alerts"] if "not sent" in told.what]


def test_a_rejected_key_is_distinguished_from_a_server_that_is_down(viewer: Client, install: Install) -> None:
    """Also when no delivery was ever made, because already the audience could not be made in ODP."""
    backoff.apply(install, Answer(Outcome.UNAUTHORISED, "403: Forbidden", 403, fixed_backoff=True))
    assert "Enter an API key that ODP accepts" in viewer.get(reverse("admin:index")).content.decode()
    backoff.release(install)
    backoff.apply(install, Answer(Outcome.RETRY_LATER, "ODP could not be reached: refused"))
    assert "continues automatically" in viewer.get(reverse("admin:index")).content.decode()


def test_a_page_of_events_is_never_counted(
    viewer: Client, install: Install, django_assert_max_num_queries: Callable[[int], Any]
) -> None:
    ingest.receive(install, json.dumps([message(f"q-{n}") for n in range(500)]).encode())
    for name in ("audience", "receipt", "run", "delivery", "parked"):
        with django_assert_max_num_queries(16) as seen:
            viewer.get(reverse(f"admin:audiences_{name}_changelist"))
        assert not [
            query["sql"]
            for query in seen.captured_queries
            if re.search(r"count\(.*audiences_event", query["sql"], re.I)
        ]


# --- connecting -----------------------------------------------------------------------------------------------


def test_a_new_install_gets_its_token_and_shows_the_values_to_paste(operator: Client) -> None:
    added = operator.post(
        reverse("admin:audiences_install_add"),
        {
            "name": "New",
            "enabled": "on",
            "odp_api_key": KEY,
            "odp_host": "http://127.0.0.1:1",
            "identifier_field": "_id",
            "mechanism": "attribute",
            "batch_size": "500",
            "requests_per_second": "10",
            "max_in_flight": "20",
            "delay_limit_minutes": "15",
            "parked_limit_per_hour": "100",
            "region": "",
        },
        follow=True,
    )
    made = Install.objects.get(name="New")
    token = made.tokens.get()
    page = added.content.decode()
    assert installs.webhook_url(made) in page
    assert token.secret in page
    assert made.odp_api_key == KEY
    again = operator.get(reverse("admin:audiences_install_change", args=[made.pk])).content.decode()
    assert token.secret not in again


def test_saving_without_a_key_keeps_the_stored_one(operator: Client, install: Install) -> None:
    address = reverse("admin:audiences_install_change", args=[install.pk])
    form = operator.get(address).context["adminform"].form
    told = {name: value for name, value in form.initial.items() if value not in (None, False)}
    operator.post(address, {**told, "name": "Renamed", "odp_api_key": "", "enabled": "on"})
    install.refresh_from_db()
    assert (install.name, install.odp_api_key) == ("Renamed", KEY)


def test_a_viewer_can_not_change_an_install(viewer: Client, install: Install) -> None:
    answered = viewer.post(reverse("admin:audiences_install_change", args=[install.pk]), {"name": "Mine"})
    assert answered.status_code == 403
    assert viewer.get(reverse("admin:audiences_install_add")).status_code == 403


# --- every button, by the right person ------------------------------------------------------------------------


def test_pause_asks_for_a_reason_and_resume_ends_it(operator: Client, audience: Audience, lane: Lane) -> None:
    press(operator, "pause", audience)
    lane.refresh_from_db()
    assert lane.paused_at is None
    press(operator, "pause", audience, reason="Campaign moved")
    lane.refresh_from_db()
    assert (lane.paused_by, lane.pause_reason) == ("operator", "Campaign moved")
    press(operator, "resume", audience)
    lane.refresh_from_db()
    assert lane.paused_at is None


def test_unblock_lets_a_lane_try_again(operator: Client, audience: Audience, lane: Lane) -> None:
    Lane.objects.update(blocked_at=now(), block_reason="wrong type")
    press(operator, "unblock", audience)
    lane.refresh_from_db()
    assert lane.blocked_at is None


def test_retry_now_ends_the_backoff(operator: Client, install: Install, audience: Audience) -> None:
    for thing in (install, audience):
        backoff.apply(install, Answer(Outcome.RETRY_LATER, "500: boom", 500, retry_after=600))
        press(operator, "retry", thing)
        install.refresh_from_db()
        assert install.backoff_until_at is None


@pytest.mark.parametrize("kind", ["audience", "install"])
def test_retry_now_makes_work_on_hold_due_at_once(
    operator: Client, install: Install, audience: Audience, kind: str
) -> None:
    until = now() + timedelta(hours=1)
    Audience.objects.update(
        provisioned_at=None, hold_failures=2, hold_reason="503: down", hold_since_at=now(), hold_until_at=until
    )
    page = operator.get(reverse("admin:audiences_audience_change", args=[audience.pk])).content.decode()
    assert "it can&#x27;t be created in ODP: 503: down" in page
    listed = operator.get(reverse("admin:audiences_audience_changelist"), {"state": "hold"}).content.decode()
    assert "on hold" in listed
    if kind == "install":
        backoff.apply(install, Answer(Outcome.RETRY_LATER, "500: boom", 500, retry_after=600))
    assert provision.claim(install.pk) is None
    press(operator, "retry", audience if kind == "audience" else install)
    assert provision.claim(install.pk) is not None


def test_accept_definition_unblocks_and_stays_said(operator: Client, audience: Audience, lane: Lane) -> None:
    Lane.objects.update(blocked_at=now(), block_reason="it has another definition")
    Audience.objects.update(provisioned_at=now(), foreign_definition="a" * 64)
    press(operator, "accept", audience)
    lane.refresh_from_db()
    audience.refresh_from_db()
    assert (lane.blocked_at, audience.accepted_definition, audience.foreign_definition) == (None, "a" * 64, "")
    assert audience.look_asked_at is not None
    page = operator.get(reverse("admin:audiences_audience_change", args=[audience.pk])).content.decode()
    assert "a person has accepted it" in page


def test_a_definition_that_changed_since_the_page_was_opened_is_not_accepted(
    operator: Client, audience: Audience, lane: Lane
) -> None:
    Lane.objects.update(blocked_at=now(), block_reason="it has another definition")
    Audience.objects.update(provisioned_at=now(), foreign_definition="a" * 64)
    asked = operator.get(url("accept", audience)).content.decode()
    Audience.objects.update(foreign_definition="b" * 64)
    operator.post(url("accept", audience), hidden(asked))
    lane.refresh_from_db()
    audience.refresh_from_db()
    assert (lane.blocked_at is not None, audience.accepted_definition) == (True, "")


def test_release_reads_a_parked_item_again(operator: Client, install: Install) -> None:
    parked = Parked.objects.get()
    press(operator, "release", parked)
    parked.refresh_from_db()
    assert parked.closed_at is None  # the identifier is still missing
    Install.objects.filter(pk=install.pk).update(identifier_field="email")
    press(operator, "release", parked)
    parked.refresh_from_db()
    assert (parked.resolution, parked.closed_by) == ("released", "operator")


def test_discard_needs_the_admin_and_a_reason(operator: Client, boss: Client, install: Install) -> None:
    parked = Parked.objects.get()
    assert operator.get(url("discard", parked)).status_code == 403
    press(boss, "discard", parked, reason="A test of ours")
    parked.refresh_from_db()
    assert (parked.resolution, parked.closed_by) == ("discarded", "admin")


def test_a_raw_item_is_masked_until_revealed(operator: Client, boss: Client, install: Install) -> None:
    parked = Parked.objects.get()
    page = reverse("admin:audiences_parked_change", args=[parked.pk])
    assert "kim@example.com" not in boss.get(page).content.decode()
    assert operator.get(url("reveal", parked)).status_code == 403
    boss.get(url("reveal", parked))
    assert "kim@example.com" not in boss.get(page).content.decode(), "the question alone isn't logged"
    press(boss, "reveal", parked)
    assert "kim@example.com" in boss.get(page).content.decode()
    assert "kim@example.com" not in boss.get(page).content.decode()
    other = Parked.objects.create(install=install, reason=parked.reason, raw=parked.raw)
    press(boss, "reveal", other)
    assert "kim@example.com" not in boss.get(page).content.decode()


def test_tokens_are_made_revealed_rotated_and_revoked(operator: Client, install: Install) -> None:
    first = install.tokens.get()
    press(operator, "new-token", install)
    second = install.tokens.get(revoked_at=None, slot=2)
    assert operator.get(url("new-token", install)).status_code == 302  # there can't be three
    press(operator, "reveal", first)
    page = operator.get(reverse("admin:audiences_install_change", args=[install.pk])).content.decode()
    assert first.secret in page
    assert second.secret not in page
    press(operator, "revoke", first)
    first.refresh_from_db()
    assert first.revoked_at is not None


def test_a_token_has_a_name_that_its_successor_keeps(operator: Client, install: Install) -> None:
    page = reverse("admin:audiences_install_change", args=[install.pk])
    token = install.tokens.get()

    def answer(verb: str, thing: Any, **answers: str) -> None:
        asked = operator.get(url(verb, thing)).content.decode()
        operator.post(url(verb, thing), {**hidden(asked), **answers})

    answer("name", token, token_name="nightly <job>")
    assert "nightly &lt;job&gt;" in operator.get(page).content.decode()
    answer("rotate", token, hours="24")
    assert [other.name for other in install.tokens.all()] == ["nightly <job>"] * 2
    answer("revoke", token)
    answer("new-token", install, token_name="other job")
    assert "other job" in operator.get(page).content.decode()
    too_long = operator.get(url("name", token)).content.decode()
    answered = operator.post(url("name", token), {**hidden(too_long), "token_name": "x" * 61})
    assert "at most 60 characters" in answered.content.decode()


def test_rotating_lets_the_old_token_live_on_for_a_while(operator: Client, install: Install) -> None:
    old = install.tokens.get()
    asked = operator.get(url("rotate", old)).content.decode()
    operator.post(url("rotate", old), {**hidden(asked), "hours": "24"})
    old.refresh_from_db()
    assert install.tokens.filter(revoked_at=None).count() == 2
    assert old.expires_at is not None
    assert old.expires_at > now() + timedelta(hours=23)


def test_a_token_that_ends_is_not_rotated_and_is_shown_until_then(operator: Client, install: Install) -> None:
    token = install.tokens.get()
    for ends_at, status in ((now() + timedelta(hours=1), 200), (now() - timedelta(seconds=1), 302)):
        tokens.revoke(token, at=ends_at)
        assert operator.get(url("reveal", token)).status_code == status
        assert operator.get(url("rotate", token)).status_code == 302


def test_a_token_whose_successor_finds_no_place_does_not_end(install: Install) -> None:
    token = install.tokens.get()
    tokens.create(install)
    assert Rotate().do(token, by="kim", answers={"hours": 1}) is None
    assert Token.objects.get(pk=token.pk).expires_at is None


# --- every button, by the wrong person, and on a stale page ---------------------------------------------------

BUTTONS: list[tuple[str, str]] = [
    ("audience", "pause"),
    ("audience", "resume"),
    ("audience", "unblock"),
    ("audience", "retry"),
    ("audience", "accept"),
    ("audience", "resync"),
    ("audience", "replay"),
    ("install", "retry"),
    ("install", "full-batches"),
    ("install", "check"),
    ("install", "new-token"),
    ("token", "reveal"),
    ("token", "rotate"),
    ("token", "name"),
    ("token", "revoke"),
    ("parked", "release"),
    ("parked", "discard"),
    ("parked", "reveal"),
]


@pytest.mark.parametrize(("kind", "verb"), BUTTONS)
def test_a_viewer_presses_nothing(viewer: Client, install: Install, audience: Audience, kind: str, verb: str) -> None:
    things = {"audience": audience, "install": install, "token": install.tokens.get(), "parked": Parked.objects.get()}
    assert viewer.get(url(verb, things[kind])).status_code == 403
    assert viewer.post(url(verb, things[kind]), {"reason": "mine"}).status_code == 403


def test_a_viewer_is_offered_no_button(viewer: Client, operator: Client, install: Install, audience: Audience) -> None:
    assert url("pause", audience) in operator.get(url("change", audience)).content.decode()
    for thing in (audience, install, install.tokens.get(), Parked.objects.get()):
        page = viewer.get(url("change", thing)).content.decode()
        assert [verb for kind, verb in BUTTONS if kind == thing._meta.model_name and url(verb, thing) in page] == []


def test_no_button_works_without_its_csrf_token(install: Install, audience: Audience) -> None:
    person = someone("operator")
    person.handler.enforce_csrf_checks = True
    assert person.post(url("pause", audience), {"reason": "x"}).status_code == 403


def test_a_stale_page_does_nothing(operator: Client, audience: Audience, lane: Lane) -> None:
    asked = operator.get(url("pause", audience)).content.decode()
    holds.pause(lane, by="somebody else", reason="quicker")
    operator.post(url("pause", audience), {**hidden(asked), "reason": "too late"})
    lane.refresh_from_db()
    assert lane.paused_by == "somebody else"
    asked = operator.get(url("resume", audience)).content.decode()
    holds.resume(lane)
    holds.pause(lane, by="a third", reason="again")
    operator.post(url("resume", audience), hidden(asked))
    lane.refresh_from_db()
    assert lane.paused_by == "a third"


@pytest.mark.parametrize(
    ("kind", "verb", "answers"),
    [
        ("audience", "resync", {"reason": "x"}),
        ("audience", "replay", {"start": "2026-01-01T00:00", "end": "2999-01-01T00:00", "reason": "x"}),
        ("audience", "audit", {"mode": "full", "sample": "9"}),
        ("audience", "pause", {"reason": "x"}),
        ("install", "new-token", {"token_name": "x"}),
        ("token", "name", {"token_name": "x"}),
    ],
)
def test_the_same_page_pressed_twice_acts_once(
    operator: Client, install: Install, audience: Audience, kind: str, verb: str, answers: dict[str, str]
) -> None:
    """Also when the first press has ended, or was undone, before the second one."""
    thing = {"audience": audience, "install": install, "token": install.tokens.get()}[kind]
    Audience.objects.update(provisioned_at=now())
    if verb == "new-token":
        install.tokens.update(revoked_at=now())
    asked = operator.post(url(verb, thing), answers) if verb == "replay" else operator.get(url(verb, thing))
    for _ in range(2):
        operator.post(url(verb, thing), {**answers, **hidden(asked.content.decode())})
        Resend.objects.update(ended_at=now())
        Audit.objects.update(ended_at=now())
        Lane.objects.update(paused_at=None, paused_by="", pause_reason="")
    assert LogEntry.objects.count() == 1


def test_a_button_for_several_that_finds_nothing_left_to_do_says_so(
    operator: Client, audience: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds.block_audience(audience.pk, "gone")
    monkeypatch.setattr(holds, "unblock", lambda *_: False)
    address = reverse("admin:audiences_audience_unblock_cause", args=[audience.pk])
    done = operator.post(address, hidden(operator.get(address).content.decode()), follow=True).content.decode()
    assert "so nothing was done" in done
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize("model", ["parked", "audience"])
def test_a_selection_that_has_no_numbers_selects_nothing(boss: Client, install: Install, model: str) -> None:
    action = {"parked": "discard_selected", "audience": "unblock_selected"}[model]
    page = reverse(f"admin:audiences_{model}_changelist")
    for odd in ("x", "9" * 5_000):
        assert boss.post(page, {"action": action, "_selected_action": odd}).status_code == 302


def test_a_dialog_returns_to_any_address_of_this_site(operator: Client, install: Install) -> None:
    asked = {"next": "/admin/\n\u0436", "seen": "x"}
    answer = operator.post(url("check", install), asked, HTTP_HX_REQUEST="true")
    assert answer["HX-Redirect"] == "/admin/%0A%D0%B6"


def test_names_have_no_line_breaks_or_control_characters(operator: Client, install: Install) -> None:
    for name in ("a\nb", "a\x1b[31m", "a\u202eb", "a\u2028b"):
        token = install.tokens.get()
        asked = hidden(operator.get(url("name", token)).content.decode())
        said = operator.post(url("name", token), {**asked, "token_name": name}).content.decode()
        assert "control characters" in said
        with pytest.raises(ValidationError, match="control characters"):
            installs.create(Install(name=name, odp_api_key=KEY))


def test_a_parked_item_that_went_meanwhile_is_left_alone(boss: Client, install: Install) -> None:
    parked = Parked.objects.get()
    asked = boss.get(url("discard", parked)).content.decode()
    parked_items.discard([parked.pk], by="somebody else")
    boss.post(url("discard", parked), {**hidden(asked), "reason": "x"})
    parked.refresh_from_db()
    assert parked.closed_by == "somebody else"


def test_a_button_that_finds_nothing_left_to_do_is_not_recorded(
    boss: Client, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parked_items, "discard", lambda *_, **__: 0)
    press(boss, "discard", Parked.objects.get(), reason="x")
    assert not LogEntry.objects.exists()


def test_actions_are_recorded_in_the_history(operator: Client, audience: Audience) -> None:
    press(operator, "pause", audience, reason="Campaign moved")
    history = operator.get(reverse("admin:audiences_audience_history", args=[audience.pk]))
    assert "Campaign moved" in history.content.decode()


@pytest.mark.parametrize("model", ["audience", "parked", "receipt", "run", "delivery", "token", "resend"])
def test_history_is_neither_added_nor_deleted(boss: Client, install: Install, model: str) -> None:
    assert boss.get(f"/admin/audiences/{model}/add/").status_code in (403, 404)
    assert boss.post(f"/admin/audiences/{model}/1/delete/", {"post": "yes"}).status_code in (302, 403, 404)


# --- parked by reason -----------------------------------------------------------------------------------------


def group_url(verb: str, install: Install, reason: str) -> str:
    return reverse(f"admin:audiences_parked_{verb}_group", args=[install.pk, reason])


def test_items_that_parsing_again_can_not_help_are_not_offered_for_release(operator: Client, install: Install) -> None:
    ingest.receive(install, b"not json")
    parked = Parked.objects.get(reason="not_json")
    assert url("release", parked) not in operator.get(url("change", parked)).content.decode()
    groups = operator.get(reverse("admin:audiences_parked_changelist")).content.decode()
    assert group_url("release", install, "not_json") not in groups
    assert group_url("release", install, "no_identifier") in groups
    operator.post(url("release", parked), {})
    for _ in range(2):
        told = operator.post(group_url("release", install, "not_json"), {"seen": f"1-{parked.pk}", "upto": parked.pk})
        assert told.status_code == 302
    ticked = {"action": "release_selected", "_selected_action": [parked.pk]}
    said = operator.post(reverse("admin:audiences_parked_changelist"), ticked, follow=True).content.decode()
    assert "reading these again can&#x27;t help (not json)" in said
    assert Parked.objects.filter(closed_at=None, reason="not_json").exists()


def test_all_of_a_reason_are_discarded_at_once_with_a_reason(boss: Client, install: Install) -> None:
    other = make_install(name="Other")
    for shop in (other, install, install, install):
        ingest.receive(shop, b"not json")
    address = group_url("discard", install, "not_json")
    asked = boss.get(address).content.decode()
    assert "3 items will be discarded: they never reach ODP" in asked
    boss.post(address, {**hidden(asked), "reason": ""})
    assert install.parked.filter(closed_at=None, reason="not_json").count() == 3
    ingest.receive(install, b"not json either")  # one more since the person was asked
    boss.post(address, {**hidden(asked), "reason": "a test"})
    assert Parked.objects.filter(reason="not_json", resolution="discarded", closed_by="admin").count() == 3
    assert install.parked.filter(closed_at=None).count() == 2
    boss.post(address, {**hidden(asked), "reason": "pressed twice"})
    assert install.parked.filter(closed_at=None).count() == 2
    assert other.parked.filter(closed_at=None).count() == 1
    assert LogEntry.objects.get().change_message == "Discarded 3 items parked for not json. Reason: a test"


@pytest.mark.parametrize(("seconds", "left"), [(20.0, 0), (0.0, 3)])
def test_a_large_group_is_discarded_in_pieces_while_there_is_time(
    boss: Client, install: Install, monkeypatch: pytest.MonkeyPatch, seconds: float, left: int
) -> None:
    """A million items in one statement would take longer than DATABASE_WEB_SECONDS."""
    monkeypatch.setattr(parked_items, "DISCARDED_AT_ONCE", 2)
    monkeypatch.setattr(parked_items, "DISCARD_SECONDS", seconds)
    for _ in range(5):
        ingest.receive(install, b"not json")
    address = group_url("discard", install, "not_json")
    asked = boss.get(address).content.decode()
    with CaptureQueriesContext(connection) as queries:
        said = boss.post(address, {**hidden(asked), "reason": "a test"}, follow=True).content.decode()
    assert install.parked.filter(reason="not_json", closed_at=None).count() == left
    assert f"Discarded {5 - left} items parked for not json." in said
    assert ("More are left: press Discard all again." in said) == bool(left)
    assert len([one for one in queries if one["sql"].startswith('UPDATE "audiences_parked"')]) == (1 if left else 3)
    read = [one["sql"] for one in queries if one["sql"].endswith("LIMIT 2")]
    assert len(set(read)) == (1 if left else 3), "each piece is read from where the one before ended"


def test_a_group_that_changed_since_the_question_is_not_discarded(boss: Client, install: Install) -> None:
    for _ in range(2):
        ingest.receive(install, b"not json")
    address = group_url("discard", install, "not_json")
    asked = boss.get(address).content.decode()
    items = Parked.objects.filter(reason="not_json").order_by("pk")
    parked_items.discard([items[0].pk], by="somebody else")
    boss.post(address, {**hidden(asked), "reason": "a test"})
    assert [item.closed_by for item in items.all()] == ["somebody else", ""]
    boss.post(address, {**hidden(boss.get(address).content.decode()), "reason": "a test"})
    assert [item.closed_by for item in items.all()] == ["somebody else", "admin"]


def test_discarding_all_of_a_reason_needs_the_permission(operator: Client, install: Install) -> None:
    ingest.receive(install, b"not json")
    address = group_url("discard", install, "not_json")
    assert operator.get(address).status_code == operator.post(address, {}).status_code == 403
    assert "role admin can discard" in operator.get(reverse("admin:audiences_parked_changelist")).content.decode()
