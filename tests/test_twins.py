"""Looks at audiences in ODP: what is missing is made again, what a person changed is shown and left alone."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.delivery import backoff, drafts, provision
from audiences.models import Audience, Audit, Install, Lane, Parked, Resend, Twin
from audiences.operations import parked_items, resends, twins
from odp.outcomes import Answer, Outcome
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import (
    drain_all,
    enter,
    hold_runs_out,
    make_audience,
    make_checked_install,
    make_delivered,
    make_install,
    waiting,
)
from tests.test_admin import press
from tests.threads import PATIENCE
from workers import drain

pytestmark = pytest.mark.django_db

NEWSLETTER = {"root_condition": {"customer_condition": {"customer_filter": {"is_list_member": {"list": "newsletter"}}}}}
SEGMENT = "/v3/segments/lytics_gold"


@pytest.fixture
def shop(odp: ThreadedSandbox) -> Install:
    return make_checked_install(odp)


@pytest.fixture
def gold(odp: ThreadedSandbox, shop: Install) -> Audience:
    made = make_delivered(shop, "kim", "lee")
    assert odp.members("lytics_gold") == ["kim", "lee"]
    return made


def account(odp: ThreadedSandbox) -> Any:
    return odp.world.accounts.named(odp.public_key)


def look(shop: Install) -> None:
    assert twins.look(shop.pk) > 0


def finish(shop: Install) -> None:
    """Let the workers do what the look has asked for."""
    drain_all(shop)
    resends.advance_all(shop.pk, seconds=PATIENCE)
    drain_all(shop)


def found(audience: Audience) -> str:
    return str(Twin.objects.get(pk=audience.pk).finding)


def definition(odp: ThreadedSandbox) -> Any:
    return odp.odp("GET", SEGMENT)[1]["definition"]


def change_definition(odp: ThreadedSandbox) -> None:
    odp.odp("POST", "/v3/lists", {"name": "newsletter"})
    body = {"description": "x", "metadata": {}, "definition": NEWSLETTER}
    assert odp.odp("PUT", SEGMENT, body)[0] == 200


# --- what is missing -----------------------------------------------------------------------------------------


def test_an_audience_as_it_was_made_is_left_alone(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    before = len(odp.requests())
    look(shop)
    assert found(gold) == ""
    assert {request["method"] for request in odp.requests()[before:]} == {"GET"}
    assert Audience.objects.get(pk=gold.pk).look_asked_at is None


def test_a_deleted_audience_is_made_again_with_its_members(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    """The customers' fields stay in ODP, so nothing has to be sent again."""
    odp.odp("DELETE", SEGMENT)
    look(shop)
    assert found(gold) == "missing"
    finish(shop)
    assert odp.members("lytics_gold") == ["kim", "lee"]
    assert not Resend.objects.exists()
    look(shop)
    assert found(gold) == ""


def lose_field(odp: ThreadedSandbox) -> None:
    one = account(odp)
    del one.schema.fields["lytics_gold"]
    for customer in one.customers.by_number.values():
        customer.record.pop("lytics_gold", None)


def test_a_lost_field_is_made_again_and_its_members_are_sent_again(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    lose_field(odp)
    look(shop)
    twin = Twin.objects.get(pk=gold.pk)
    assert "the customer field lytics_gold" in twin.problem
    (resync,) = Resend.objects.all()
    assert (resync.kind, resync.by) == (Resend.Kind.RESYNC, "schedule")
    finish(shop)
    assert odp.members("lytics_gold") == ["kim", "lee"]


def test_while_odp_creates_nothing_the_members_are_sent_again_once(
    odp: ThreadedSandbox, shop: Install, gold: Audience, settings: Settings
) -> None:
    settings.BACKOFF_FIRST_SECONDS = settings.BACKOFF_LONGEST_SECONDS = 100_000  # no next try within the test
    odp.fault({"path": "/v3/schema", "method": "POST"}, {"status": 503})
    lose_field(odp)
    for _ in range(3):
        twins.look(shop.pk)
        finish(shop)
    assert Audience.objects.get(pk=gold.pk).hold_failures > 0
    assert Resend.objects.count() == 1


def test_a_field_that_is_lost_again_before_the_next_look_gets_its_members_again(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    """Two looks find the same, but ODP had the field in between, and lost its members with it once more."""
    for _ in range(2):
        lose_field(odp)
        look(shop)
        finish(shop)
        assert odp.members("lytics_gold") == ["kim", "lee"]


def lose_list(odp: ThreadedSandbox) -> None:
    one = account(odp)
    del one.lists["lytics_gold"]
    for customer in one.customers.by_number.values():
        customer.lists.pop("lytics_gold", None)


def test_a_lost_list_is_made_again_and_its_members_are_sent_again(odp: ThreadedSandbox) -> None:
    shop = make_install(odp, mechanism="list")
    drafts.note_key(shop.pk, problem="")
    gold = make_audience(shop, provisioned=False)
    enter(gold, "kim")
    drain_all(shop)
    lose_list(odp)
    look(shop)
    assert "the list lytics_gold" in Twin.objects.get(pk=gold.pk).problem
    finish(shop)
    assert odp.members("lytics_gold") == ["kim"]


@pytest.mark.parametrize("entering", ["ann", "ann ben cyd"])
def test_a_list_that_is_lost_before_the_next_look_gets_its_members_again(
    odp: ThreadedSandbox, operator: Client, entering: str
) -> None:
    """The remedies check the audience in ODP, and then no look would find that the list was lost."""
    gold = make_audience(make_checked_install(odp, mechanism="list"), provisioned=False)
    enter(gold, "kim")
    drain_all(gold.install)
    lose_list(odp)
    Audience.objects.update(provisioned_at=now() - timedelta(hours=1))
    enter(gold, *entering.split(), at=2)
    drain_all(gold.install)
    if Lane.objects.get(pk=gold.pk).blocked_at is not None:
        press(operator, "unblock", Audience.objects.get(pk=gold.pk))
    else:
        assert parked_items.release(Parked.objects.values_list("pk", flat=True), by="kim") == (1, 0)
    finish(gold.install)
    assert odp.members("lytics_gold") == sorted(["kim", *entering.split()])


def make_field(odp: ThreadedSandbox, kind: str) -> None:
    body = {"name": "lytics_gold", "display_name": "somebody's", "type": kind, "description": ""}
    status, answer = odp.odp("POST", "/v3/schema/objects/customers/fields", body)
    assert status == 200, answer


@pytest.mark.parametrize("remedy", ["look", "unblock", "release"])
def test_a_field_that_somebody_replaced_by_one_of_another_type_has_lost_its_members(
    odp: ThreadedSandbox, shop: Install, gold: Audience, operator: Client, remedy: str
) -> None:
    """Then somebody replaces it again by a right one, in which nothing says that it had members."""
    lose_field(odp)
    make_field(odp, "string")
    Audience.objects.update(provisioned_at=now() - timedelta(hours=1))
    if remedy == "look":
        look(shop)
    else:
        enter(gold, *(["ann"] if remedy == "release" else ["ann", "ben"]), at=2)
        drain_all(shop)
    if remedy == "release":
        assert parked_items.release(Parked.objects.values_list("pk", flat=True), by="kim") == (1, 0)
    for _ in range(2):
        finish(shop)
        assert Lane.objects.get(pk=gold.pk).blocked_at is not None
        press(operator, "unblock", Audience.objects.get(pk=gold.pk))
    finish(shop)
    assert Resend.objects.count() == 1, "a resync that waits is enough"
    lose_field(odp)
    make_field(odp, "boolean")
    press(operator, "unblock", Audience.objects.get(pk=gold.pk))
    finish(shop)
    assert {"kim", "lee"} <= set(odp.members("lytics_gold"))


def test_a_resync_that_is_under_way_when_members_are_lost_begins_again(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    assert resends.resync(gold, by="kim", reason="edited")
    drain_all(shop)
    Resend.objects.update(asked_at=now() - timedelta(hours=1), after_identifier="lee")
    lose_field(odp)
    look(shop)
    finish(shop)
    assert odp.members("lytics_gold") == ["kim", "lee"]


def test_a_resync_that_was_delivered_before_members_are_lost_is_not_enough(
    odp: ThreadedSandbox, shop: Install, gold: Audience, settings: Settings
) -> None:
    """The check that was asked for with it fails at first, so its events don't wait for the check."""
    settings.BACKOFF_FIRST_SECONDS = settings.BACKOFF_LONGEST_SECONDS = 100_000
    assert resends.resync(gold, by="kim", reason="edited")
    resends.advance_all(shop.pk, seconds=PATIENCE)
    odp.fault({"path": "/v3/schema", "times": 1}, {"status": 503})
    assert provision.provision_one(shop.pk)
    drain_all(shop)
    assert waiting(shop) == (False, False)
    lose_field(odp)
    hold_runs_out(shop)
    finish(shop)
    assert odp.members("lytics_gold") == ["kim", "lee"]


def test_a_resync_is_not_enough_for_members_who_were_delivered_since_it_read_the_ledger(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    """The events of the resync all wait, and the entry before them was sent to the field that is lost."""
    Install.objects.update(batch_size=1)
    enter(gold, "zoe")
    assert resends.resync(gold, by="kim", reason="edited")
    resends.advance_all(shop.pk, seconds=PATIENCE)
    odp.fault({"path": "/v3/schema", "times": 1}, {"status": 503})
    assert provision.provision_one(shop.pk)
    assert drain.turn(shop.pk)
    assert odp.members("lytics_gold") == ["kim", "lee", "zoe"]
    lose_field(odp)
    hold_runs_out(shop)
    assert provision.provision_one(shop.pk, on_lost=resends.send_lost)
    finish(shop)
    assert odp.members("lytics_gold") == ["kim", "lee", "zoe"]


def test_the_list_of_the_account_brings_a_deleted_audience_to_the_front(
    odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many audiences few are read in one look, and it is found all the same."""
    others = [make_audience(shop, f"other_{n}", provisioned=False) for n in range(4)]
    for other in others:
        enter(other, "kim")
    drain_all(shop)
    monkeypatch.setattr(twins, "READ", 1)
    Twin.objects.bulk_create(Twin(audience=gold, looked_at=now()) for gold in [gold])
    odp.odp("DELETE", SEGMENT)
    look(shop)
    assert found(gold) == "missing"


def test_an_audience_that_odp_does_not_show_keeps_no_other_from_being_looked_at(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    """It is the one that was looked at least recently, so each look begins with it."""
    silver = make_audience(shop, "silver", provisioned=False)
    enter(silver, "kim")
    drain_all(shop)
    odp.fault({"path": SEGMENT, "method": "GET"}, {"status": 500})
    look(shop)
    assert (Twin.objects.get().audience, found(silver)) == (silver, "")


@pytest.mark.parametrize("answer", [{"status": 503}, {"status": 403}, {"close": "before"}])
def test_looks_that_fail_for_an_hour_are_a_trouble(
    odp: ThreadedSandbox, shop: Install, gold: Audience, boss: Client, settings: Settings, answer: dict[str, Any]
) -> None:
    def told() -> list[str]:
        return [one.what for one in boss.get("/admin/").context["alerts"] if "looked at" in one.what]

    def since() -> Any:
        return Install.objects.get().looks_fail_since_at

    look(shop)
    odp.fault({"path": "/v3/", "method": "GET"}, answer)
    twins.look(shop.pk)
    began = since()
    assert began is not None
    twins.look(shop.pk)
    assert since() == began
    assert told() == []
    Install.objects.update(looks_fail_since_at=now() - timedelta(minutes=61))
    assert told() == ["Audiences can't be looked at in ODP (Shop)"]
    usual = {"enabled": True, "key_accepted_at": now(), "backoff_since_at": None, "backoff_until_at": None}
    for quiet in (
        {"enabled": False},
        {"key_accepted_at": None},
        {"backoff_since_at": now(), "backoff_until_at": now(), "backoff_failures": 1, "backoff_reason": "429"},
    ):
        Install.objects.update(**quiet)
        assert told() == [], "an install that asks ODP nothing has an alert of its own"
        Install.objects.update(**usual, backoff_failures=0, backoff_reason="")
    for minutes in (0, 30):
        settings.LOOK_MINUTES = minutes
        assert told() == []
    settings.LOOK_MINUTES = 15
    assert told() != []
    odp.clear_faults()
    look(shop)
    assert since() is None
    assert told() == []


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 503},
        {"status": 404, "html": "<html>not here</html>"},
        {"status": 200, "body": {}},
        {"close": "before"},
    ],
)
def test_an_answer_that_says_nothing_makes_nothing_missing(
    odp: ThreadedSandbox, shop: Install, gold: Audience, answer: dict[str, Any]
) -> None:
    odp.fault({"path": "/v3/", "method": "GET"}, answer)
    assert twins.look(shop.pk) == 0
    assert not Twin.objects.exists()
    assert Audience.objects.get(pk=gold.pk).look_asked_at is None


def test_a_list_that_leaves_an_audience_out_is_no_evidence(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    odp.fault({"path": "/v3/segments", "method": "GET", "times": 1}, {"status": 200, "body": {"segment_ids": []}})
    look(shop)
    assert found(gold) == ""


# --- what a person changed -----------------------------------------------------------------------------------


def test_a_changed_definition_is_shown_and_deliveries_continue(
    odp: ThreadedSandbox, shop: Install, gold: Audience, boss: Client
) -> None:
    change_definition(odp)
    look(shop)
    assert found(gold) == "changed"
    since = Twin.objects.get().since_at
    look(shop)
    assert Twin.objects.get().since_at == since
    page = boss.get(reverse("admin:audiences_audience_change", args=[gold.pk])).content.decode()
    assert "member of the list newsletter" in page
    assert "customer.lytics_gold = true" in page
    front = boss.get(reverse("admin:index")).content.decode()
    assert "lytics_gold was changed in ODP" in front
    assert "Take ours" in front
    enter(gold, "ann")
    drain_all(shop)
    assert Lane.objects.get(pk=gold.pk).blocked_at is None
    assert Lane.objects.get(pk=gold.pk).member_count == 3
    assert definition(odp) == NEWSLETTER


def test_take_ours_writes_our_definition_again(
    odp: ThreadedSandbox, shop: Install, gold: Audience, operator: Client
) -> None:
    ours = definition(odp)
    change_definition(odp)
    look(shop)
    press(operator, "take-ours", gold)
    finish(shop)
    assert definition(odp) == ours
    assert odp.members("lytics_gold") == ["kim", "lee"]
    look(shop)
    assert found(gold) == ""


def test_take_ours_replaces_only_the_definition_that_was_shown(
    odp: ThreadedSandbox, shop: Install, gold: Audience, operator: Client
) -> None:
    change_definition(odp)
    look(shop)
    press(operator, "take-ours", gold)
    odp.odp("POST", "/v3/lists", {"name": "buyers"})
    other = {"root_condition": {"customer_condition": {"customer_filter": {"is_list_member": {"list": "buyers"}}}}}
    odp.odp("PUT", SEGMENT, {"description": "x", "metadata": {}, "definition": other})
    finish(shop)
    assert definition(odp) == other
    assert "member of the list buyers" in Lane.objects.get(pk=gold.pk).block_reason


def test_accepting_the_changed_definition_ends_the_alert(
    odp: ThreadedSandbox, shop: Install, gold: Audience, operator: Client
) -> None:
    change_definition(odp)
    look(shop)
    press(operator, "accept", gold)
    finish(shop)
    look(shop)
    assert found(gold) == ""
    assert definition(odp) == NEWSLETTER
    assert "was changed in ODP" not in operator.get(reverse("admin:index")).content.decode()


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (Lane, {"paused_at": now(), "paused_by": "kim", "pause_reason": "deleted on purpose"}),
        (Lane, {"retired_sequence": 2}),
        (Install, {"enabled": False}),
    ],
    ids=["paused", "retired", "switched off"],
)
def test_an_audience_that_is_no_longer_looked_at_is_not_said_to_be_made_again(
    odp: ThreadedSandbox, shop: Install, gold: Audience, model: type[Lane | Install], values: dict[str, Any]
) -> None:
    odp.odp("DELETE", SEGMENT)
    look(shop)
    (twin,) = twins.differing()
    assert twins.alike(twin) == [gold]
    model._default_manager.update(**values)
    assert (list(twins.differing()), twins.alike(twin)) == ([], [])


def test_take_ours_also_lifts_a_block_for_a_foreign_definition(
    odp: ThreadedSandbox, shop: Install, operator: Client
) -> None:
    odp.odp("POST", "/v3/lists", {"name": "newsletter"})
    odp.odp("PUT", SEGMENT, {"description": "x", "metadata": {}, "definition": NEWSLETTER})
    gold = make_audience(shop, provisioned=False)
    enter(gold, "kim")
    drain_all(shop)
    assert "press Take ours" in Lane.objects.get(pk=gold.pk).block_reason
    press(operator, "take-ours", Audience.objects.get(pk=gold.pk))
    drain_all(shop)
    assert odp.members("lytics_gold") == ["kim"]


# --- when ----------------------------------------------------------------------------------------------------


def test_installs_are_looked_at_once_per_interval(shop: Install, gold: Audience, settings: Settings) -> None:
    assert twins.start_due() == 1
    assert twins.start_due() == 0
    Install.objects.update(twins_looked_at=now() - timedelta(minutes=settings.LOOK_MINUTES))
    assert twins.start_due() == 1
    Install.objects.update(twins_looked_at=None)
    settings.LOOK_MINUTES = 0
    assert twins.start_due() == 0


@pytest.mark.parametrize(
    "stop",
    [
        lambda shop, gold: Install.objects.update(enabled=False),
        lambda shop, gold: Install.objects.update(key_accepted_at=None),
        lambda shop, gold: backoff.apply(shop, Answer(Outcome.RETRY_LATER, "503: busy", 503)),
        lambda shop, gold: Audience.objects.update(provisioned_at=None),
    ],
    ids=["switched off", "draft", "on hold", "nothing made"],
)
def test_installs_that_may_not_ask_are_not_looked_at(
    shop: Install, gold: Audience, stop: Callable[[Install, Audience], Any]
) -> None:
    stop(shop, gold)
    assert twins.start_due() == 0


HOLD = {"hold_since_at": now(), "hold_until_at": now(), "hold_failures": 1, "hold_reason": "503: busy"}


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (Lane, {"paused_at": now(), "paused_by": "kim", "pause_reason": "deleted on purpose"}),
        (Lane, {"blocked_at": now(), "block_reason": "It is another system's."}),
        (Lane, {"retired_sequence": 2}),
        (Audience, {"look_asked_at": now()}),
        (Audience, HOLD),
    ],
    ids=["paused", "blocked", "retired", "checked already", "on hold"],
)
def test_an_audience_that_is_stopped_or_being_made_is_not_looked_at(
    odp: ThreadedSandbox, shop: Install, gold: Audience, model: type[Lane | Audience], values: dict[str, Any]
) -> None:
    model._default_manager.filter(pk=gold.pk).update(**values)
    odp.odp("DELETE", SEGMENT)
    assert twins.look(shop.pk) == 0
    assert not Twin.objects.exists()


def test_an_audience_whose_newest_audit_found_nothing_is_read_in_its_turn(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twins, "READ", 1)
    silver = make_audience(shop, "silver")
    Twin.objects.create(audience=gold, looked_at=now())
    usual = {"install": shop, "audience": gold, "mode": "full", "by": "kim", "ended_at": now()}
    Audit.objects.create(**usual, differing=1)
    Audit.objects.create(**usual, is_newest=True)
    assert list(twins._chosen(shop, frozenset({"lytics_gold", "lytics_silver"}))) == [silver]
    Audit.objects.filter(is_newest=True).update(differing=1)
    assert list(twins._chosen(shop, frozenset({"lytics_gold", "lytics_silver"}))) == [gold, silver]


def test_a_look_asks_little(odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: Any) -> None:
    for n in range(6):
        enter(make_audience(shop, f"other_{n}", provisioned=False), "kim")
    drain_all(shop)
    monkeypatch.setattr(twins, "READ", 2)
    before = len(odp.requests())
    look(shop)
    # One list, and a field and a definition of each audience that is read.
    assert len(odp.requests()) - before == 1 + 2 * 2
    for _ in range(3):
        look(shop)
    assert Twin.objects.count() == 7
