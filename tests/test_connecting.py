"""Connecting a pair of accounts: the page that asks, the check list that fills in, the test customer on its way."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connection
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings
from pytest_django.live_server_helper import LiveServer

from audiences.admin.odp_live import check_key
from audiences.delivery import backoff, holds, provision
from audiences.insight import checklist, heartbeats, state, trials
from audiences.insight.checklist import Line
from audiences.models import (
    Audience,
    Delivery,
    Event,
    Install,
    Lane,
    Parked,
    Receipt,
    Run,
    Trial,
    Twin,
)
from audiences.operations import installs, twins
from audiences.receiving import ingest, tokens
from lytics.facts import Fact, Kind
from odp.outcomes import Answer, Outcome
from odp.regions import HOSTS
from sandbox.odp.testing import ThreadedSandbox
from sandbox.odp.world import DEFAULT_PRIVATE_KEY, Options
from tests.delivering import (
    NOWHERE,
    UNLIMITED,
    assert_all_is_well,
    backoff_runs_out,
    drain_all,
    enter,
    hold_runs_out,
    make_audience,
    make_install,
    making_runs_out,
)
from tests.messages import SECOND, body, message
from tests.people import someone
from tests.test_admin import hidden, press, url
from workers import tasks, trial

pytestmark = pytest.mark.django_db


@pytest.fixture
def shop(odp: ThreadedSandbox) -> Install:
    made = make_install(odp)
    tokens.create(made)
    return made


def end_trial(shop: Install, how: str = trials.DONE, words: str = "") -> None:
    """A completed test customer."""
    assert trials.start(shop, by="kim") is not None
    begun = trials.begin(shop.pk)
    assert begun is not None
    trials.note(begun, trials.OUT, trials.SHOWN, how, words, ms=1)
    trials.close(begun)


def page(client: Client, install: Install) -> str:
    answered = client.get(reverse("admin:audiences_install_change", args=[install.pk]))
    assert answered.status_code == 200
    return answered.content.decode()


def fragment(client: Client, install: Install, **headers: str) -> Any:
    return client.get(reverse("admin:audiences_install_connecting", args=[install.pk]), headers=headers or None)


# --- the key -------------------------------------------------------------------------------------------------


def said(install: Install) -> str:
    return check_key(Install.objects.get(pk=install.pk)).words


def test_a_valid_key_is_reported_as_valid(shop: Install) -> None:
    assert said(shop) == "ODP accepts the API key."
    assert line(shop, "key").is_done


def test_a_rejected_key_is_reported_and_stays_on_the_check_list(shop: Install) -> None:
    shop.odp_api_key = "public.dead"
    shop.save()
    assert said(shop).startswith("ODP rejects the API key (403: Forbidden)")
    assert "rejects the API key" in line(shop, "key").state.why
    assert line(shop, "key").state.alert


def test_an_unreachable_server_is_not_reported_as_a_rejected_key(shop: Install) -> None:
    shop.odp_host = NOWHERE
    shop.save()
    assert said(shop).startswith(f"ODP could not be reached at {NOWHERE}")
    assert line(shop, "key").state.alert


@pytest.fixture
def two_regions(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ThreadedSandbox]]:
    """Two accounts in two regions; the third region has no listener."""
    keys = {"us": "here.secret", "eu": "there-eu1.secret"}
    running = {name: ThreadedSandbox(Options(private_key=key, settings=UNLIMITED)) for name, key in keys.items()}
    with running["us"], running["eu"]:
        for name, one in running.items():
            monkeypatch.setitem(HOSTS, name, one.url)
        monkeypatch.setitem(HOSTS, "au", NOWHERE)
        yield running


@pytest.mark.parametrize(
    ("key", "region", "words"),
    [
        ("here.secret", "", "ODP accepts the API key."),
        ("there-eu1.secret", "", "ODP accepts the API key."),
        ("there-eu1.secret", "eu", "ODP accepts the API key."),
        ("here.secret", "eu", "belongs to United States, and Europe is chosen. Set the ODP region to United States."),
        ("there-eu1.secret", "us", "belongs to Europe, and United States is chosen. Set the ODP region to Europe."),
        ("here.other", "", "ODP rejects the API key"),
        ("here.other", "eu", "ODP rejects the API key"),
        ("here.secret", "au", "ODP could not be reached at"),
    ],
)
def test_the_region_of_a_key_is_found(
    two_regions: dict[str, ThreadedSandbox], key: str, region: str, words: str
) -> None:
    install = make_install(odp_host="", odp_api_key=key, region=region)
    assert words in said(install)
    problem = "" if words.startswith("ODP accepts") else said(install)
    assert Install.objects.get(pk=install.pk).key_problem == problem


def test_the_probe_of_other_regions_asks_none_where_a_host_was_entered(two_regions: dict[str, ThreadedSandbox]) -> None:
    install = make_install(odp_host=two_regions["us"].url, odp_api_key="here.dead")
    assert said(install).startswith("ODP rejects the API key")
    assert two_regions["eu"].requests() == []


# --- the pages -----------------------------------------------------------------------------------------------


def test_the_page_that_asks_leads_through_its_parts_and_has_one_way_to_save() -> None:
    text = someone("operator").get(reverse("admin:audiences_install_add")).content.decode()
    parts = ["Opted In", "1. A name", "2. The ODP account", "3. Customer profile identifier", "4. Mechanism"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert 'value="_id"' in text
    assert "Customer profile identifier field name" in text
    assert "_addanother" not in text


def test_saving_asks_odp_and_leads_to_the_instructions_in_the_words_of_the_article(odp: ThreadedSandbox) -> None:
    operator = someone("operator")
    form = operator.get(reverse("admin:audiences_install_add")).context["adminform"].form
    values = {name: field.initial for name, field in form.fields.items() if field.initial not in (None, False)}
    values |= {name: value for name, value in form.initial.items() if value not in (None, False)}
    values |= {"name": "Shop", "odp_api_key": DEFAULT_PRIVATE_KEY, "odp_host": odp.url, "enabled": "on"}
    answered = operator.post(reverse("admin:audiences_install_add"), values, follow=True).content.decode()
    made = Install.objects.get()
    assert "ODP accepts the API key." in answered
    assert line(made, "key").is_done
    for words in (
        "Install Instructions",
        installs.webhook_url(made),
        installs.authorization(made.tokens.get()),
        "+ Create New",
        "Webhook &gt; Audience Triggers Webhook",
        "+ New Authorization",
        "Provide authorization as request header or parameter",
        "Save and Continue",
        "HTTPMethod",
        "Existing Users",
        "Audience Trigger Events",
        "Enters and Exits",
        "Export Fields",
        "Lytics ID",
        "Fields to Trigger",
        "Batch Size",
        "Batch Send Duration",
        "Simultaneous Calls",
    ):
        assert words in answered, words


def test_the_page_of_an_install_asks_odp_nothing_itself(odp: ThreadedSandbox, shop: Install) -> None:
    enter(make_audience(shop, provisioned=False), "kim")
    drain_all(shop)
    before = len(odp.requests())
    page(someone("viewer"), shop)
    assert len(odp.requests()) == before


def test_the_fragment_needs_the_permission_to_view_the_install(shop: Install) -> None:
    assert "Check list" in fragment(someone("viewer"), shop, hx_request="true").content.decode()
    User.objects.create_user("nobody", password="long enough for anyone", is_staff=True)
    stranger = Client()
    stranger.force_login(User.objects.get(username="nobody"))
    assert fragment(stranger, shop, hx_request="true").status_code == 403
    assert fragment(Client(), shop, hx_request="true")["Location"].startswith("/admin/login/")


def test_the_fragment_opened_as_a_page_leads_to_the_page(shop: Install) -> None:
    assert fragment(someone("viewer"), shop)["Location"] == reverse("admin:audiences_install_change", args=[shop.pk])


def test_the_page_refreshes_until_all_is_done(odp: ThreadedSandbox, shop: Install) -> None:
    viewer = someone("viewer")
    assert "every 3s" in page(viewer, shop)
    check_key(shop)
    ingest.receive(shop, body(message()))
    drain_all(shop)
    assert "every 3s" in page(viewer, shop)
    end_trial(shop)
    text = page(viewer, shop)
    assert "every 3s" not in text
    assert "5 of 5 done" in text


# --- the check list ------------------------------------------------------------------------------------------


def line(install: Install, name: str) -> Line:
    (found,) = [one for one in checklist.lines(Install.objects.get(pk=install.pk)) if one.name == name]
    return found


def word(install: Install, name: str) -> str:
    return line(install, name).state.word


def words_of(install: Install, name: str) -> str:
    return f"{line(install, name).state.why} {line(install, name).todo}"


def test_a_new_install_waits_for_everything(shop: Install) -> None:
    assert [one.state.word for one in checklist.lines(shop)] == ["waiting"] * 5
    assert "Press Check the key" in words_of(shop, "key")
    assert "401" in words_of(shop, "call")
    assert "405" in words_of(shop, "call")


def test_each_line_is_done_after_its_step(odp: ThreadedSandbox, shop: Install) -> None:
    def done() -> list[str]:
        return [one.name for one in checklist.lines(Install.objects.get(pk=shop.pk)) if one.is_done]

    check_key(shop)
    assert done() == ["key"]
    ingest.receive(shop, b"[]")
    assert done() == ["key", "call"]
    ingest.receive(shop, body(message()))
    assert done() == ["key", "call", "identifier"]
    drain_all(shop)
    assert done() == ["key", "call", "identifier", "audience"]
    end_trial(shop)
    assert done() == ["key", "call", "identifier", "audience", "shown"]
    assert all(one.at for one in checklist.lines(shop))
    assert line(shop, "shown").is_done


def test_each_line_shows_the_newest_evidence_with_its_age(odp: ThreadedSandbox, shop: Install) -> None:
    check_key(shop)
    ingest.receive(shop, body(message()))
    drain_all(shop)
    long_ago = now() - timedelta(days=9)
    Receipt.objects.update(received_at=long_ago)
    Install.objects.update(key_asked_at=long_ago)
    Audience.objects.update(provisioned_at=long_ago)
    ingest.receive(shop, body(message(who="lee")))
    assert twins.look(shop.pk) == 1
    end_trial(shop)
    for name in ("key", "call", "audience", "shown"):
        at = line(shop, name).at
        assert at is not None
        assert at > now() - timedelta(minutes=1), name
    assert line(shop, "audience").state.why == "1 as this service created them"


def test_an_audience_that_differs_in_odp_is_no_done_line(odp: ThreadedSandbox, shop: Install) -> None:
    ingest.receive(shop, body(message()))
    drain_all(shop)
    assert word(shop, "audience") == "done"
    odp.odp("DELETE", f"/v3/segments/{Audience.objects.get().odp_id}")
    twins.look(shop.pk)
    assert word(shop, "audience") == "failing"
    assert "1 of 1 are not as this service created them" in words_of(shop, "audience")
    Lane.objects.update(paused_at=now(), paused_by="kim", pause_reason="deleted on purpose")
    assert "not as this service created them" not in words_of(shop, "audience"), "no look reads it, and Now is silent"


def test_an_audience_that_no_look_has_read_counts_from_its_creation(shop: Install) -> None:
    """Looks skip paused audiences, so the look at another one says nothing about them."""
    week_ago = now() - timedelta(days=7)
    for name in ("gold", "silver"):
        Audience.objects.filter(pk=make_audience(shop, name).pk).update(provisioned_at=week_ago)
    Twin.objects.create(audience=Audience.objects.latest("pk"), looked_at=now())
    assert line(shop, "audience").state.why == "2 as this service created them"
    assert line(shop, "audience").at == week_ago


def test_retired_test_customers_are_not_asked_for(shop: Install) -> None:
    end_trial(shop)
    audience = make_audience(shop, trials.SLUG)
    Audience.objects.filter(pk=audience.pk).update(segment_id=trials.SEGMENT_ID)
    Lane.objects.filter(pk=audience.pk).update(retired_sequence=0, retired_at=now())
    assert "The audience of the test customers is retired" in words_of(shop, "shown")
    assert "Press Send a test customer" not in words_of(shop, "shown")


def test_the_last_line_shows_the_last_test_customer_that_ended(shop: Install) -> None:
    end_trial(shop, trials.FAILED, "ODP accepted the exit and still shows the customer.")
    assert word(shop, "shown") == "failing"
    assert "still shows the customer" in words_of(shop, "shown")
    end_trial(shop)
    assert trials.start(shop, by="kim") is not None
    shown = line(shop, "shown")
    assert (shown.is_done, shown.at) == (True, Trial.objects.get(hops__0__how=trials.DONE).closed_at)


@pytest.mark.parametrize(
    ("identifiers", "reported"),
    [
        (["0123456789abcdef0123456789ABCDEF", "vuid_" + "a" * 27, "kim"], True),
        (["0123456789abcdef0123456789abcdef", "kim", "lee"], False),
        (["01234567-89ab-cdef-0123-456789abcdef"], False),
    ],
)
def test_identifiers_that_look_like_device_ids_of_odp_are_reported(
    shop: Install, identifiers: list[str], reported: bool
) -> None:
    ingest.receive(shop, body(*(message(who=who) for who in identifiers)))
    assert ("vuid" in {one.name for one in checklist.lines(shop)}) is reported
    if reported:
        assert "2 of the newest 3 identifiers" in words_of(shop, "vuid")
        assert identifiers[0] not in words_of(shop, "vuid")


def test_a_test_customer_that_odp_showed_outdates_an_earlier_failed_check_of_the_key(shop: Install) -> None:
    """The line failed until somebody pressed Check the key, although deliveries went on with the key."""
    Install.objects.update(key_asked_at=now() - timedelta(hours=1), key_problem="ODP could not be reached.")
    shop.refresh_from_db()
    assert "could not be reached" in words_of(shop, "key")
    end_trial(shop)
    assert line(shop, "key").is_done
    Install.objects.update(key_asked_at=now() + timedelta(hours=1))
    shop.refresh_from_db()
    assert not line(shop, "key").is_done, "the key may be another one since"


def test_device_ids_from_before_another_identifier_field_are_not_reported(shop: Install) -> None:
    """The line named that field as the cure, and stayed until as many other identifiers had come."""
    vuid = "0123456789abcdef0123456789abcdef"
    ingest.receive(shop, body(message(who=vuid)))
    shop.identifier_since_at = now()
    shop.save(update_fields=["identifier_since_at"])
    assert "vuid" not in {one.name for one in checklist.lines(shop)}
    gold = Audience.objects.get()
    ingest.append({gold.pk: [Fact("", "", vuid, Kind.EXIT, 1)]}, received_at=now(), forced=True)
    assert "vuid" not in {one.name for one in checklist.lines(shop)}, "sent again by this service"
    ingest.receive(shop, body(message(who=vuid)))
    assert "1 of the newest 1 identifiers" in words_of(shop, "vuid")


def test_a_missing_token_and_a_disabled_install_are_reported(shop: Install) -> None:
    tokens.revoke(shop.tokens.get())
    assert "no live token" in words_of(shop, "call")
    Install.objects.update(enabled=False)
    assert "off" in words_of(shop, "call")
    assert word(shop, "call") == "failing"


def test_calls_without_the_identifier_name_the_other_fields_without_values(shop: Install) -> None:
    without = message()
    without["data"] = {"email": "kim@example.com", "segment_events": without["data"]["segment_events"]}
    ingest.receive(shop, body(without))
    text = words_of(shop, "identifier")
    assert word(shop, "identifier") == "failing"
    assert "_id is looked for in data, and there came email. " in text
    assert "add Lytics ID (_id) to Export Fields" in text
    assert "kim@example.com" not in text
    assert isinstance(line(shop, "identifier").about, Parked)


def test_the_missing_identifier_is_the_field_of_the_install(shop: Install) -> None:
    Install.objects.update(identifier_field="customer_ids")
    ingest.receive(Install.objects.get(), body(message()))
    assert "customer_ids is looked for" in words_of(shop, "identifier")
    assert "add customer_ids to Export Fields" in words_of(shop, "identifier")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b'[{"data": {"_id": "kim"}}]', "add segment_events to Export Fields"),
        (b"<html>", "not JSON"),
        (b"[]", "Select Existing Users"),
    ],
)
def test_unreadable_calls_are_reported_with_the_reason(shop: Install, sent: bytes, expected: str) -> None:
    ingest.receive(shop, sent)
    assert expected in words_of(shop, "identifier")


def test_a_block_a_pause_and_a_backoff_are_shown(odp: ThreadedSandbox, shop: Install) -> None:
    audience = make_audience(shop, provisioned=False)
    lane = Lane.objects.get(pk=audience.pk)
    enter(audience, "kim")
    Lane.objects.update(blocked_at=now(), block_reason="The customer field has type string.")
    for name in ("audience",):
        assert "has type string" in words_of(shop, name)
        assert "Unblock" in words_of(shop, name)
    holds.unblock(lane)
    holds.pause(lane, by="kim", reason="not yet")
    assert "paused by kim: not yet" in words_of(shop, "audience")
    holds.resume(lane)
    backoff.apply(shop, Answer(Outcome.UNAUTHORISED, "403: Forbidden", 403, fixed_backoff=True))
    for name in ("key", "audience"):
        assert "403: Forbidden" in words_of(shop, name)
        assert word(shop, name) == "failing"


def test_an_audience_that_no_worker_can_create_says_so(shop: Install) -> None:
    enter(make_audience(shop, provisioned=False), "kim")
    assert "No worker answers." in words_of(shop, "audience")
    heartbeats.note("worker", worked_seconds_ago=None)
    assert "No worker" not in words_of(shop, "audience")


def delivered(odp: ThreadedSandbox, shop: Install, *people: str) -> Audience:
    audience = make_audience(shop, provisioned=False)
    enter(audience, *(people or ("kim",)))
    drain_all(shop)
    return audience


# --- the test customer ---------------------------------------------------------------------------------------


class Clock:
    """Replaces the wait between two checks, a third of a step's time limit; the workers run meanwhile or not."""

    def __init__(self) -> None:
        self.now = 0.0
        self.meanwhile: Callable[[], Any] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += trial.HOP_SECONDS / 3
        self.meanwhile()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(trial, "time", made)
    return made


@pytest.fixture
def reachable(live_server: LiveServer, settings: Settings) -> LiveServer:
    settings.PUBLIC_URL = live_server.url
    return live_server


Hops = list[tuple[str, str, str, str]]
Send = Callable[..., Hops]


@pytest.fixture
def send(clock: Clock) -> Callable[..., Hops]:
    """Send a test customer on its way; leg, hop, how and words of what it came past."""

    def send(shop: Install, *, meanwhile: Callable[[], Any] | None = None) -> Hops:
        clock.meanwhile = meanwhile or (lambda: drain_all(shop))
        sent = trials.start(shop, by="kim")
        assert sent is not None
        trial.walk(shop.pk, pause=clock.pause)
        return hops_of(Trial.objects.get(pk=sent.pk))

    return send


def hops_of(sent: Trial) -> Hops:
    return [(hop["leg"], hop["hop"], hop["how"], hop["words"]) for hop in sent.hops]


def hows(hops: Hops) -> list[tuple[str, str, str]]:
    return [hop[:3] for hop in hops]


def test_an_install_deleted_on_the_way_ends_its_test_customer_without_a_fault(
    shop: Install, reachable: LiveServer, clock: Clock
) -> None:
    def delete() -> None:
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE audiences_install CASCADE")

    clock.meanwhile = delete
    assert trials.start(shop, by="kim")
    trial.walk(shop.pk, pause=clock.pause)
    assert not Trial.objects.exists()


ALL_DONE = [(leg, hop, "done") for leg, names in trials.LEGS.items() for hop in names]


@pytest.mark.parametrize(
    "fields",
    [
        {"mechanism": "list"},
        {"mechanism": "passthrough"},
        {"identifier_field": "email"},
        {"identifier_field": "ids", "forget_missing_identifiers": True},
        {"allow_top_level_identifier": True},
        {"identifier_field": "customer", "allow_top_level_identifier": True, "mechanism": "list"},
        {"identifier_field": "data", "allow_top_level_identifier": True},
    ],
    ids=str,
)
def test_it_goes_through_the_whole_path_and_ends_outside(
    odp: ThreadedSandbox,
    reachable: LiveServer,
    settings: Settings,
    fields: dict[str, Any],
    send: Send,
) -> None:
    settings.ODP_PASSTHROUGH_DEFINITION = {"passthrough": {}}
    shop = make_install(odp, **fields)
    tokens.create(shop)
    assert hows(send(shop)) == ALL_DONE
    sent = Trial.objects.get()
    assert sent.closed_at is not None
    assert state.of_trial(sent).word == "done"
    assert odp.members("lytics_sync_test") == []
    audience = Audience.objects.get()
    assert (audience.odp_id, audience.lane.member_count) == ("lytics_sync_test", 0)
    assert all(hop["ms"] >= 0 for hop in sent.hops)
    came, went = Event.objects.order_by("sequence").values_list("occurred_ns", flat=True)
    assert went - came > SECOND, "within one second they would tie where ODP orders by seconds"
    assert {receipt.job for receipt in Receipt.objects.all()} == {trials.JOB}
    assert_all_is_well(audience)


def test_a_delivery_that_ends_between_two_looks_is_shown_with_its_response(
    shop: Install, reachable: LiveServer, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, lane, run = 0, trial._Leg._lane, trial._Leg._run

    def look_at_lane(self: trial._Leg) -> Lane:
        nonlocal seen
        found = lane(self)
        seen = found.delivered_sequence
        return found

    def look_at_run(self: trial._Leg) -> Run | None:
        found = run(self)
        if found and found.delivery and found.last_sequence > seen:
            found.delivery.status = found.delivery.latency_ms = None
        return found

    monkeypatch.setattr(trial._Leg, "_lane", look_at_lane)
    monkeypatch.setattr(trial._Leg, "_run", look_at_run)
    words = [words for _, hop, _, words in send(shop) if hop == trials.TAKEN]
    assert len(words) == 2
    assert all("ODP answered 202 after" in text for text in words)


def test_it_affects_no_other_customer(odp: ThreadedSandbox, shop: Install, reachable: LiveServer, send: Send) -> None:
    audience = delivered(odp, shop, "kim", "lee")
    before = odp.members(audience.odp_id)
    deliveries = Delivery.objects.count()
    assert hows(send(shop)) == ALL_DONE
    assert odp.members(audience.odp_id) == before
    assert Delivery.objects.count() == deliveries + 2
    assert Run.objects.filter(audience=audience).count() == 1


def test_it_is_not_taken_for_a_call_or_a_customer_of_lytics(shop: Install, settings: Settings, send: Send) -> None:
    settings.PUBLIC_URL = NOWHERE
    send(shop)
    words = {one.name: one.state.word for one in checklist.lines(shop)}
    assert {words[name] for name in ("call", "identifier", "audience")} == {"waiting"}
    viewer = someone("viewer")
    assert ">first call</a>" not in page(viewer, shop)
    assert "Shop has had no call yet" in viewer.get(reverse("admin:index")).content.decode()


def test_an_unreachable_public_address_is_reported_and_the_other_steps_are_tried(
    odp: ThreadedSandbox, shop: Install, settings: Settings, send: Send
) -> None:
    settings.PUBLIC_URL = NOWHERE
    hops = send(shop)
    expected = [(leg, hop, "around" if hop == "called" else "done") for leg, hop, _ in ALL_DONE]
    assert hows(hops) == expected
    assert "can't be reached from here" in hops[0][3]
    assert odp.members("lytics_sync_test") == []


def test_an_unexpected_response_of_a_proxy_is_reported(
    odp: ThreadedSandbox, shop: Install, settings: Settings, send: Send
) -> None:
    settings.PUBLIC_URL = odp.url
    (_, _, how, words), *_ = send(shop)
    assert how == "around"
    assert "answered 404: a proxy or another server in front of this service answers" in words


def test_a_missing_live_token_is_reported(shop: Install, reachable: LiveServer, send: Send) -> None:
    tokens.revoke(shop.tokens.get())
    (_, _, how, words), *_ = send(shop)
    assert how == "around"
    assert "no live token" in words


def ends_outside(odp: ThreadedSandbox, shop: Install) -> None:
    """Once nothing holds it any more, it leaves what it has entered."""
    backoff_runs_out(shop)
    hold_runs_out(shop)
    drain_all(shop)
    assert odp.members("lytics_sync_test") == []
    assert Lane.objects.get(audience__segment_id=trials.SEGMENT_ID).member_count == 0
    assert_all_is_well(Audience.objects.get(segment_id=trials.SEGMENT_ID))


def broke_off(hops: Hops, at: str) -> str:
    """The test customer failed at that step, and its exit was sent; returns the text."""
    assert hows(hops)[-2:] == [("in", at, "failed"), ("out", "called", "around")]
    assert {how for _, _, how, _ in hops[:-2]} == {"done"}
    sent = Trial.objects.get()
    assert (state.of_trial(sent).word, state.of_trial(sent).alert) == ("failing", True)
    assert sent.closed_at is not None
    return hops[-2][3]


def test_with_odp_down_it_says_so_and_ends_outside_once_odp_is_back(
    odp: ThreadedSandbox, shop: Install, reachable: LiveServer, send: Send
) -> None:
    Install.objects.update(odp_host=NOWHERE)
    text = broke_off(send(shop), "made")
    assert text.startswith("Not within 30 s. The audience can't be created in ODP: ODP could not be reached")
    Install.objects.update(odp_host=odp.url)
    ends_outside(odp, shop)


def test_with_a_dead_key_it_says_so_at_once(
    odp: ThreadedSandbox, shop: Install, reachable: LiveServer, send: Send
) -> None:
    send(shop)
    Trial.objects.all().delete()
    Install.objects.update(odp_api_key="public.dead")
    hops = send(shop)
    assert hows(hops)[2:] == [
        ("in", "made", "done"),
        ("in", "claimed", "done"),
        ("in", "taken", "failed"),
        ("out", "called", "around"),
    ]
    assert hops[4][3].startswith("The install is on hold: 403: Forbidden. Enter an API key that ODP accepts")
    Install.objects.update(odp_api_key=odp.private_key)
    ends_outside(odp, shop)


def test_with_its_audience_paused_it_says_by_whom(
    odp: ThreadedSandbox, shop: Install, reachable: LiveServer, send: Send
) -> None:
    send(shop)
    Trial.objects.all().delete()
    lane = Lane.objects.get()
    holds.pause(lane, by="lee", reason="Release freeze")
    assert "paused by lee: Release freeze" in broke_off(send(shop), "claimed")
    holds.resume(lane)
    ends_outside(odp, shop)


def test_with_its_audience_blocked_it_says_why(
    odp: ThreadedSandbox, shop: Install, reachable: LiveServer, send: Send
) -> None:
    field = {"name": "lytics_sync_test", "display_name": "x", "type": "string"}
    assert odp.odp("POST", "/v3/schema/objects/customers/fields", field)[0] == 200
    text = broke_off(send(shop), "made")
    assert "lytics_sync_test is there with type string" in text
    assert "Unblock" in text


def test_without_a_worker_it_says_so(odp: ThreadedSandbox, shop: Install, reachable: LiveServer, send: Send) -> None:
    assert trial.NO_WORKER in broke_off(send(shop, meanwhile=lambda: None), "made")
    ends_outside(odp, shop)


def test_a_lease_that_a_dead_worker_left_behind_is_no_worker(
    odp: ThreadedSandbox, shop: Install, reachable: LiveServer, send: Send
) -> None:
    def die() -> None:
        provision.claim(shop.pk)
        making_runs_out(*Audience.objects.all())

    assert trial.NO_WORKER in broke_off(send(shop, meanwhile=die), "made")
    ends_outside(odp, shop)


def test_a_rejection_by_odp_is_quoted(odp: ThreadedSandbox, shop: Install, reachable: LiveServer, send: Send) -> None:
    send(shop)
    Trial.objects.all().delete()
    odp.fault({"path": "/v3/profiles"}, {"status": 400, "body": {"detail": {"message": "no such customer"}}})
    hops = send(shop)
    assert hows(hops)[-2:] == [("in", "taken", "failed"), ("out", "called", "around")]
    assert "no such customer" in hops[-2][3]


def test_when_odp_does_not_show_it_the_silent_causes_are_named_and_it_is_still_sent_out(
    odp: ThreadedSandbox, shop: Install, reachable: LiveServer, send: Send
) -> None:
    odp.assume(consent_effect="everything")
    odp.settings(consent="opted_out")
    hops = send(shop)
    assert hows(hops)[-2:] == [("in", "shown", "failed"), ("out", "called", "around")]
    assert "set the Api app to Opted In" in hops[-2][3]
    ends_outside(odp, shop)


@pytest.mark.parametrize("then", [{"status": 503}, {"status": 403}, {"close": "before"}])
def test_a_query_that_fails_for_the_test_customer_holds_no_install(
    odp: ThreadedSandbox, shop: Install, reachable: LiveServer, send: Send, then: dict[str, Any]
) -> None:
    odp.fault({"path": "/v3/graphql"}, then)
    assert "ODP could not be asked" in broke_off(send(shop), "shown")
    assert Install.objects.get(pk=shop.pk).backoff_failures == 0
    ends_outside(odp, shop)


def test_an_address_of_another_installation_is_detected(
    odp: ThreadedSandbox, shop: Install, reachable: LiveServer, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_post", lambda install, content: ("", "answered 200"))
    hops = send(shop)
    assert hows(hops)[1] == ("in", "stored", "failed")
    assert "another installation" in hops[1][3]


def test_a_repeated_hint_sends_no_customer_twice(
    odp: ThreadedSandbox, shop: Install, reachable: LiveServer, send: Send
) -> None:
    send(shop)
    receipts = Receipt.objects.count()
    tasks.try_out(shop.pk)
    assert Receipt.objects.count() == receipts


def test_a_silent_test_customer_is_closed_by_the_sweep_and_leaves_the_audience(
    odp: ThreadedSandbox, shop: Install
) -> None:
    sent = trials.start(shop, by="kim")
    assert sent is not None
    begun = trials.begin(shop.pk)
    assert begun is not None
    trials.send_straight_in(begun, trials.IN)
    drain_all(shop)
    assert odp.members("lytics_sync_test") == [sent.identifier]
    tasks.sweep()
    assert trials.running(shop) is not None
    Trial.objects.update(moved_at=now() - trials.SILENT_AFTER)
    assert trials.running(shop) is None
    tasks.sweep()
    sent.refresh_from_db()
    assert (state.of_trial(sent).word, sent.closed_at is not None) == ("given up", True)
    ends_outside(odp, shop)


def test_a_test_customer_that_can_not_be_sent_out_keeps_no_other_from_being_closed(
    shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_install(name="Other")
    for install in (shop, other):
        assert trials.start(install, by="kim") is not None
        assert trials.begin(install.pk) is not None
    Trial.objects.update(moved_at=now() - trials.SILENT_AFTER)
    sent: list[int] = []

    def fails_once(trial: Trial, leg: trials.Leg) -> None:
        sent.append(trial.install_id)
        if len(sent) == 1:
            raise ValueError("it can't be read")

    monkeypatch.setattr(trials, "send_straight_in", fails_once)
    trials.give_up_silent()
    assert sorted(sent) == sorted([shop.pk, other.pk])
    assert not Trial.objects.filter(closed_at=None).exists()


def test_a_test_customer_whose_exit_was_not_stored_for_the_database_is_closed_by_the_next_sweep(
    shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trials.start(shop, by="kim") is not None
    assert trials.begin(shop.pk) is not None
    Trial.objects.update(moved_at=now() - trials.SILENT_AFTER)

    def away(trial: Trial, leg: trials.Leg) -> None:
        raise OperationalError("PostgreSQL shuts down")

    with monkeypatch.context() as failing:
        failing.setattr(trials, "send_straight_in", away)
        with pytest.raises(OperationalError):
            trials.give_up_silent()
    assert not Event.objects.exists()
    trials.give_up_silent()
    assert Event.objects.get().kind == Kind.EXIT
    assert not Trial.objects.filter(closed_at=None).exists()


def test_a_test_customer_that_no_worker_takes_is_reported_and_closed(shop: Install) -> None:
    sent = trials.start(shop, by="kim")
    assert sent is not None
    Trial.objects.update(started_at=now() - timedelta(seconds=20))
    assert "No worker has taken the test customer yet" in page(someone("viewer"), shop)
    Trial.objects.update(moved_at=now() - trials.SILENT_AFTER)
    trials.give_up_silent()
    assert state.of_trial(Trial.objects.get()).why == "No worker took the test customer."
    assert not Event.objects.exists()


# --- its button ----------------------------------------------------------------------------------------------


def test_the_button_names_the_objects_created_in_odp_and_sends_a_test_customer(
    shop: Install, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Any
) -> None:
    woken: list[int] = []
    monkeypatch.setattr(trials, "try_out", woken.append)
    operator = someone("operator")
    with django_capture_on_commit_callbacks(execute=True):
        text = press(operator, "try-out", shop)
    assert "the boolean customer field and the real-time audience lytics_sync_test" in text
    assert woken == [shop.pk]
    assert Trial.objects.get().started_by == "operator"
    history = operator.get(reverse("admin:audiences_install_history", args=[shop.pk])).content.decode()
    assert "was sent as a test customer" in history


def test_while_one_is_on_its_way_there_is_no_button_and_no_second(shop: Install) -> None:
    operator = someone("operator")
    assert url("try-out", shop) in page(operator, shop)
    press(operator, "try-out", shop)
    assert url("try-out", shop) not in page(operator, shop)
    assert "every 1s" in page(operator, shop)
    assert operator.post(url("try-out", shop), {}).status_code == 302
    assert trials.start(shop, by="another") is None
    assert Trial.objects.count() == 1


def test_a_viewer_sends_none_and_sees_how_it_went(
    odp: ThreadedSandbox, shop: Install, settings: Settings, send: Send
) -> None:
    settings.PUBLIC_URL = NOWHERE
    viewer = someone("viewer")
    assert viewer.get(url("try-out", shop)).status_code == 403
    assert viewer.post(url("try-out", shop), {}).status_code == 403
    assert url("try-out", shop) not in page(viewer, shop)
    send(shop)
    assert "Shown by ODP over GraphQL" in page(viewer, shop)


def test_a_stale_page_sends_none(odp: ThreadedSandbox, shop: Install) -> None:
    operator = someone("operator")
    asked = operator.get(url("try-out", shop)).content.decode()
    first = trials.start(shop, by="somebody else")
    assert first is not None
    trials.close(first)
    operator.post(url("try-out", shop), hidden(asked))
    assert Trial.objects.get() == first


def test_an_install_that_is_off_offers_none(shop: Install) -> None:
    Install.objects.update(enabled=False)
    assert someone("operator").get(url("try-out", shop)).status_code == 302
