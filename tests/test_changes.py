"""Guided changes: an install gets another mechanism while events come in, and each membership ends right."""

import itertools
import json
import uuid
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.admin import change_verbs
from audiences.delivery import claims, holds
from audiences.front import guided_changes
from audiences.front.alerts import EVERYWHERE, Extent
from audiences.insight import heartbeats
from audiences.models import (
    Audience,
    Delivery,
    GuidedChange,
    Install,
    Lane,
    Membership,
    Resend,
    Retirement,
    Twin,
    Worker,
)
from audiences.operations import change_steps, changes, forgetting, guards, resends, retiring, skips, verification
from audiences.receiving import backlog
from sandbox.odp.testing import ThreadedSandbox
from tests import guided
from tests.delivering import (
    assert_all_is_well,
    drain_all,
    enter,
    happen,
    lane_of,
    lease_runs_out,
    make_audience,
    make_checked_install,
)
from tests.guided import (
    DELIVERED,
    MOST,
    UNDER_WAY,
    WAITING,
    audience_with_members,
    segments,
    step,
    steps_with_deaths,
    work,
)
from tests.test_admin import press
from tests.threads import PATIENCE, eventually, start, waiting_for_a_lock

pytestmark = pytest.mark.django_db

Phase = GuidedChange.Phase
SEGMENT = "/v3/segments/lytics_gold"
NEWSLETTER = {"root_condition": {"customer_condition": {"customer_filter": {"is_list_member": {"list": "newsletter"}}}}}
LISTS, PROFILES = "/v3/lists/subscriptions", "/v3/profiles"
OTHER = {"attribute": "list", "list": "attribute"}


@pytest.fixture(params=["attribute", "list"])
def before(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shop(odp: ThreadedSandbox, before: str) -> Install:
    return make_checked_install(odp, mechanism=before)


@pytest.fixture
def gold(shop: Install) -> Audience:
    return audience_with_members(shop)


def begin(shop: Install, to: str = "") -> GuidedChange:
    install = Install.objects.get(pk=shop.pk)
    change = changes.begin(install, to=to or OTHER[install.mechanism], by="kim", reason="a test")
    assert change is not None
    return change


def retire(audience: Audience) -> Retirement:
    assert retiring.retire(audience, by="sam", reason="left the job")
    return Retirement.objects.get(audience=audience, restored_at=None)


def finish(shop: Install) -> GuidedChange:
    for _ in range(MOST):
        if not step(shop):
            return GuidedChange.objects.filter(install=shop).latest("pk")
        work(shop)
    raise AssertionError(GuidedChange.objects.values().latest("pk"))


def mechanism_in(audience: Audience) -> str:
    """The mechanism whose definition ODP's audience has, by the name that is stored with it."""
    audience = Audience.objects.select_related("install").get(pk=audience.pk)
    return audience.mechanism or audience.install.mechanism


def definition(odp: ThreadedSandbox, slug: str = "gold") -> str:
    """Which mechanism's definition the audience has in ODP."""
    found = str(odp.odp("GET", f"/v3/segments/lytics_{slug}")[1]["definition"])
    return "list" if "is_list_member" in found else "attribute"


# --- the change itself ---------------------------------------------------------------------------------------


def test_all_audiences_are_changed_one_after_another(odp: ThreadedSandbox, shop: Install, before: str) -> None:
    gold, silver = audience_with_members(shop), audience_with_members(shop, "silver")
    begin(shop)
    since = len(odp.requests())
    change = finish(shop)
    assert (change.problem, change.done, change.total, change.left_out) == ("", 2, 2, {})
    after = OTHER[before]
    assert Install.objects.get().mechanism == after
    for audience in (gold, silver):
        assert definition(odp, audience.slug) == after == mechanism_in(audience)
        assert odp.members(audience.odp_id) == odp.members(audience.odp_id, "web_user_id") == ["kim", "lee", "mia"]
        changed = Audience.objects.get(pk=audience.pk)
        assert (changed.mechanism, changed.accepted_definition, changed.foreign_definition) == ("", "", "")
    assert segments(odp) == ["lytics_gold", "lytics_silver"]
    written = {request["path"] for request in odp.requests(since) if request["path"] in (LISTS, PROFILES)}
    assert written == {LISTS if after == "list" else PROFILES}
    assert_all_is_well(gold, silver)


def test_events_after_the_change_arrive_by_the_new_mechanism(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    begin(shop)
    finish(shop)
    happen(gold, ("kim", "exit", 9), ("new", "enter", 9))
    drain_all(shop)
    assert odp.members("lytics_gold") == ["lee", "mia", "new"]


def test_a_change_and_the_change_back_end_where_they_began(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    begin(shop)
    finish(shop)
    happen(gold, ("kim", "exit", 9), ("new", "enter", 9))
    drain_all(shop)
    begin(shop)
    assert finish(shop).problem == ""
    assert odp.members("lytics_gold") == ["lee", "mia", "new"]


def test_an_audience_that_is_new_during_the_change_is_made_with_the_new_mechanism(
    odp: ThreadedSandbox, shop: Install, gold: Audience, before: str
) -> None:
    begin(shop)
    step(shop)
    silver = audience_with_members(shop, "silver")
    assert definition(odp, "silver") == OTHER[before]
    assert finish(shop).done == 1
    assert odp.members("lytics_gold") == odp.members("lytics_silver") == ["kim", "lee", "mia"]
    assert_all_is_well(gold, silver)


def test_an_audience_that_is_not_in_odp_yet_is_made_with_the_new_mechanism(
    odp: ThreadedSandbox, shop: Install, before: str
) -> None:
    waiting = make_audience(shop, provisioned=False)
    enter(waiting, "kim")
    begin(shop)
    assert finish(shop).problem == ""
    assert definition(odp) == OTHER[before]
    assert odp.members("lytics_gold") == ["kim"]


# --- with live events ----------------------------------------------------------------------------------------

MOVING = {"kim", "new", "pat"}


@pytest.fixture(autouse=True)
def long_leases(settings: Settings) -> None:
    """No lease is over before a test says so."""
    settings.LEASE_SECONDS = 300


def steps_with_events(
    odp: ThreadedSandbox, shop: Install, gold: Audience, *, mode: str, events_at: int = 0, stop_at: int = -1
) -> int:
    """Take the remaining steps of a change. Returns the number of the last one.

    Customers without events have to be as they were in ODP's audience at each moment.
    """
    for number in guided.steps_with_events(shop, gold, events_at=events_at, mode=mode, stop_at=stop_at):
        assert set(odp.members("lytics_gold")) - MOVING == {"lee", "mia"}
        last = number
    return last


def test_events_between_any_two_steps_end_right(
    odp: ThreadedSandbox, shop: Install, gold: Audience, before: str
) -> None:
    """Each mechanism takes every other place, so that each mode is tried at each place."""
    begin(shop)
    for number in guided.places(shop):
        is_first = (number % 2 == 0) is (before == "attribute")
        for mode in (DELIVERED, UNDER_WAY) if is_first else (WAITING,):
            with guided.undone(odp):
                steps_with_events(odp, shop, gold, mode=mode)
                assert odp.members("lytics_gold") == ["lee", "mia", "new", "pat"], (number, mode)
                assert odp.members("lytics_gold", "web_user_id") == ["lee", "mia", "new", "pat"], (number, mode)
                assert definition(odp) == OTHER[before] == mechanism_in(gold)
                assert GuidedChange.objects.get().problem == ""
                assert segments(odp) == ["lytics_gold"]
                assert_all_is_well(gold)
    assert number > 8


@pytest.mark.parametrize("before", ["attribute"], indirect=True)
def an_audience_that_odp_does_not_have(shop: Install) -> Audience:
    made = make_audience(shop, provisioned=False)
    enter(made, "kim", "lee")
    return made


def until(shop: Install, phase: str) -> None:
    while GuidedChange.objects.get().phase != phase:
        assert step(shop)


def test_an_audience_that_is_made_by_the_old_mechanism_meanwhile_is_changed(
    odp: ThreadedSandbox, shop: Install, before: str
) -> None:
    """ODP didn't have it when the change looked for it."""
    gold = an_audience_that_odp_does_not_have(shop)
    begin(shop)
    until(shop, Phase.SWITCH)
    drain_all(shop)
    assert definition(odp) == before
    change = finish(shop)
    assert (change.problem, change.left_out, change.done) == ("", {}, 1)
    assert definition(odp) == OTHER[before] == mechanism_in(gold)
    assert Audience.objects.get().accepted_definition == ""
    assert odp.members("lytics_gold") == ["kim", "lee"]


def test_a_stop_after_an_audience_was_made_by_the_new_mechanism_brings_it_back(
    odp: ThreadedSandbox, shop: Install, before: str
) -> None:
    gold = an_audience_that_odp_does_not_have(shop)
    begin(shop)
    until(shop, Phase.RESEND)
    work(shop)
    assert definition(odp) == OTHER[before]
    changes.stop(GuidedChange.objects.get(), by="sam")
    assert finish(shop).problem == "Stopped by sam."
    work(shop)
    assert definition(odp) == before == mechanism_in(gold)
    assert (lane_of(gold).block_reason, Audience.objects.get().accepted_definition) == ("", "")
    assert odp.members("lytics_gold") == ["kim", "lee"]


def test_a_stop_at_any_step_leaves_the_audience_whole(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    """With events at the stop and two steps later, when the audience is being brought back."""
    begin(shop)
    for number in guided.places(shop):
        for events_at, mode in itertools.product((0, 2), (DELIVERED, WAITING, UNDER_WAY)):
            with guided.undone(odp):
                here = (number, events_at, mode)
                last = steps_with_events(odp, shop, gold, mode=mode, events_at=events_at, stop_at=0)
                expected = ["lee", "mia", "new", "pat"] if events_at <= last else ["kim", "lee", "mia"]
                assert odp.members("lytics_gold") == expected, here
                assert definition(odp) == mechanism_in(gold), here
                change = GuidedChange.objects.get()
                assert change.problem == ("" if change.done else "Stopped by lee."), here
                assert Audience.objects.get().accepted_definition == "", here
                assert segments(odp) == ["lytics_gold"], here
                assert_all_is_well(gold)
    assert number > 8


# --- crashes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", guided.DEATHS)
def test_a_worker_that_dies_at_any_step_is_replaced(
    odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    begin(shop)
    for _ in steps_with_deaths(shop, monkeypatch, when):
        pass
    assert GuidedChange.objects.get().problem == ""
    assert GuidedChange.objects.get().done == 1
    assert odp.members("lytics_gold") == ["kim", "lee", "mia"]
    assert segments(odp) == ["lytics_gold"]
    assert_all_is_well(gold)


@pytest.mark.parametrize("before", ["list"], indirect=True)
def test_a_worker_whose_lease_is_over_stores_nothing(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    begin(shop)
    late = changes.lease(shop.pk)
    assert late is not None
    GuidedChange.objects.update(lease_until_at=now())
    assert step(shop)
    then = GuidedChange.objects.values().get()
    assert changes.step(late) is None
    assert GuidedChange.objects.values().get() == then


@pytest.mark.parametrize("before", ["list"], indirect=True)
def test_a_request_under_way_whose_worker_is_gone_holds_the_change_for_its_lease_only(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    begin(shop)
    enter(gold, "new", at=9)
    while GuidedChange.objects.get().phase != Phase.SWITCH:
        step(shop)
    assert claims.claim(shop.pk) is not None
    step(shop)
    for _ in range(3):
        step(shop)
        assert (GuidedChange.objects.get().phase, Resend.objects.count()) == (Phase.AWAIT, 0)
    lease_runs_out(gold)
    assert finish(shop).problem == ""
    assert odp.members("lytics_gold") == ["kim", "lee", "mia", "new"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("before", ["list"], indirect=True)
def test_a_change_locks_the_lane_before_the_audience(shop: Install, gold: Audience) -> None:
    """Otherwise it could deadlock with a retirement, which locks the lane first."""
    begin(shop)
    while GuidedChange.objects.get().phase != Phase.AWAIT:
        step(shop)
    Audience.objects.update(making_token=uuid.uuid4(), making_until_at=now())  # the lease of a dead worker
    with transaction.atomic():
        Lane.objects.select_for_update().get()
        (stepping,) = start(lambda: step(shop))
        eventually(waiting_for_a_lock)
        assert Audience.objects.select_for_update(nowait=True).get().making_token is not None
    assert stepping.result(PATIENCE)
    assert Audience.objects.get().making_token is None


@pytest.mark.parametrize("stopped", [True, False], ids=["brought back", "done, and changed back"])
def test_a_customer_who_is_forgotten_during_a_change_is_no_member_afterwards(
    odp: ThreadedSandbox, shop: Install, gold: Audience, stopped: bool
) -> None:
    """The previous field or list has the customer as a member, and the ledger no longer knows the customer."""
    change = begin(shop)
    while GuidedChange.objects.get().phase != Phase.VERIFY:
        step(shop)
        work(shop)
    forget_customer(shop, "kim")
    if stopped:
        changes.stop(change, by="lee")
    finish(shop)
    if not stopped:
        begin(shop)
        assert finish(shop).problem == ""
    work(shop)
    assert odp.members("lytics_gold") == ["lee", "mia"]


def test_a_customer_who_is_forgotten_before_a_change_back_reaches_the_audience_is_no_member_afterwards(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    for _ in range(2):
        begin(shop)
        assert finish(shop).problem == ""
    begin(shop)
    forget_customer(shop, "kim")
    assert finish(shop).problem == ""
    assert odp.members("lytics_gold") == ["lee", "mia"]


@pytest.mark.parametrize("has_left", [False, True], ids=["a member", "no longer a member"])
def test_a_customer_who_is_forgotten_after_a_change_is_no_member_after_the_change_back(
    odp: ThreadedSandbox, shop: Install, gold: Audience, has_left: bool
) -> None:
    begin(shop)
    assert finish(shop).problem == ""
    silver = audience_with_members(shop, "silver")
    if has_left:
        happen(gold, ("kim", "exit", 9))
        drain_all(shop)
    forget_customer(shop, "kim")
    begin(shop)
    assert finish(shop).problem == ""
    work(shop)
    assert odp.members("lytics_gold") == odp.members("lytics_silver") == ["lee", "mia"]
    assert_all_is_well(gold, silver)


def test_a_customer_who_is_being_forgotten_gets_exits_again_when_the_audience_is_changed_back(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    """The change is stopped between the delivery of the exits and the removal."""
    change = begin(shop)
    while GuidedChange.objects.get().phase != Phase.RESEND:
        step(shop)
    asked = forgetting.ask(shop, "kim", tell_odp=True, by="dpo")
    assert asked is not None
    assert not forgetting.advance(asked)
    work(shop)
    changes.stop(change, by="lee")
    while not GuidedChange.objects.get().is_returning or GuidedChange.objects.get().phase == Phase.BACK:
        step(shop)
    for _ in range(3):
        forgetting.advance(asked)
        work(shop)
    assert finish(shop).problem == "Stopped by lee."
    assert not Membership.objects.filter(identifier="kim").exists()
    assert odp.members("lytics_gold") == ["lee", "mia"]


def test_a_customer_stays_until_the_previous_field_or_list_has_the_exits(
    odp: ThreadedSandbox, shop: Install, gold: Audience, before: str
) -> None:
    """ODP doesn't answer, or the install is off."""
    begin(shop)
    assert finish(shop).problem == ""
    odp.fault({"path": LISTS if before == "list" else PROFILES}, {"status": 503, "body": {"message": "down"}})
    asked = forgetting.ask(shop, "kim", tell_odp=True, by="dpo")
    assert asked is not None
    assert not forgetting.advance(asked)
    drain_all(shop)
    assert odp.members("lytics_gold") == ["lee", "mia"]
    assert not forgetting.advance(asked)
    odp.clear_faults()
    Install.objects.update(enabled=False)
    assert not forgetting.advance(asked)
    assert Membership.objects.filter(identifier="kim").exists()
    Install.objects.update(enabled=True)
    assert forgetting.advance(asked)
    assert not Membership.objects.filter(identifier="kim").exists()


def forget_customer(shop: Install, identifier: str) -> None:
    asked = forgetting.ask(shop, identifier, tell_odp=True, by="dpo")
    assert asked is not None
    forgetting.advance(asked)
    work(shop)
    assert forgetting.advance(asked)


# --- audiences that are not changed -------------------------------------------------------------------------


def test_a_definition_that_a_person_wrote_is_left_as_it_is(odp: ThreadedSandbox, shop: Install, before: str) -> None:
    gold, silver = audience_with_members(shop), audience_with_members(shop, "silver")
    odp.odp("POST", "/v3/lists", {"name": "newsletter"})
    odp.odp("PUT", SEGMENT, {"description": "x", "metadata": {}, "definition": NEWSLETTER})
    begin(shop)
    change = finish(shop)
    assert (change.done, list(change.left_out)) == (1, ["lytics_gold"])
    assert "newsletter" in change.left_out["lytics_gold"]
    assert (mechanism_in(gold), mechanism_in(silver)) == (before, OTHER[before])
    assert odp.odp("GET", SEGMENT)[1]["definition"] == NEWSLETTER
    enter(gold, "new", at=9)
    drain_all(shop)
    assert "new" in str(odp.requests(bodies=True)[-1]["body"])


def test_a_definition_that_a_person_writes_during_the_change_brings_the_audience_back(
    odp: ThreadedSandbox, shop: Install, gold: Audience, before: str
) -> None:
    begin(shop)
    while GuidedChange.objects.get().phase != Phase.VERIFY:
        work(shop)
        step(shop)
    odp.odp("POST", "/v3/lists", {"name": "newsletter"})
    odp.odp("PUT", SEGMENT, {"description": "x", "metadata": {}, "definition": NEWSLETTER})
    change = finish(shop)
    assert "another definition" in change.problem
    assert mechanism_in(gold) == before
    assert odp.odp("GET", SEGMENT)[1]["definition"] == NEWSLETTER


@pytest.mark.parametrize("before", ["list"], indirect=True)
@pytest.mark.parametrize("held", ["paused", "blocked"])
def test_a_held_audience_is_left_out_and_changed_by_a_later_change(
    odp: ThreadedSandbox, shop: Install, before: str, held: str
) -> None:
    gold, silver = audience_with_members(shop), audience_with_members(shop, "silver")
    lane = lane_of(gold)
    if held == "paused":
        holds.pause(lane, by="kim", reason="a test")
    else:
        holds.block_audience(gold.pk, "a test")
    begin(shop)
    change = finish(shop)
    assert (change.done, list(change.left_out)) == (1, ["lytics_gold"])
    assert held in change.left_out["lytics_gold"]
    holds.resume(lane)
    holds.unblock(lane)
    happen(gold, ("kim", "exit", 9))
    happen(silver, ("kim", "exit", 9))
    drain_all(shop)
    assert odp.members("lytics_gold") == odp.members("lytics_silver") == ["lee", "mia"]
    begin(shop, OTHER[before])
    assert finish(shop).left_out == {}
    assert definition(odp) == OTHER[before]
    assert odp.members("lytics_gold") == ["lee", "mia"]


@pytest.mark.parametrize("before", ["attribute"], indirect=True)
@pytest.mark.parametrize("state", ["its retirement has begun", "its log has an end", "it is being taken back"])
def test_an_audience_with_a_retirement_is_left_out(
    odp: ThreadedSandbox, shop: Install, before: str, state: str
) -> None:
    gold = audience_with_members(shop)
    audience_with_members(shop, "silver")
    retirement = retire(gold)
    if state == "its log has an end":
        while Lane.objects.get(pk=gold.pk).retired_sequence is None:
            assert retiring.advance(retirement.pk)
    elif state == "it is being taken back":
        assert retiring.advance(retirement.pk)
        assert retiring.take_back(gold, by="sam", reason="a test")
    plan = changes.plan(Install.objects.get(), to=OTHER[before])
    assert (plan.audiences, plan.left_out) == (1, 1)
    begin(shop)
    change = finish(shop)
    assert (change.done, list(change.left_out)) == (1, ["lytics_gold"])
    assert "retired" in change.left_out["lytics_gold"]
    assert mechanism_in(gold) == before


@pytest.mark.parametrize("before", ["attribute"], indirect=True)
def test_a_retirement_goes_on_while_a_change_is_at_another_audience(odp: ThreadedSandbox, shop: Install) -> None:
    gold = audience_with_members(shop)
    audience_with_members(shop, "silver")
    begin(shop)
    assert step(shop)
    assert GuidedChange.objects.get().audience == gold
    silver = Audience.objects.exclude(pk=gold.pk).get()
    retirement = retire(silver)
    for _ in range(MOST):
        retiring.advance(retirement.pk)
        drain_all(shop)
    assert GuidedChange.objects.get().ended_at is None
    assert Retirement.objects.get().ended_at is not None
    assert segments(odp) == ["lytics_gold"]
    change = finish(shop)
    assert (change.done, list(change.left_out)) == (1, ["lytics_silver"])


def test_a_retirement_that_begins_at_any_step_of_a_change_ends_after_it(
    odp: ThreadedSandbox, shop: Install, gold: Audience, before: str
) -> None:
    """With a stop of the change and without. Each mechanism takes every other place."""
    begin(shop)
    for number in itertools.islice(guided.places(shop), 8):
        work(shop)
        stopped = (number % 2 == 0) is (before == "attribute")
        with guided.undone(odp):
            retirement = retire(gold)
            if stopped:
                changes.stop(GuidedChange.objects.get(), by="kim")
            finish_with(shop, retirement)
            assert not Membership.objects.filter(is_member=True).exists(), (number, stopped)
            assert segments(odp) == [], (number, stopped)


def finish_with(shop: Install, retirement: Retirement) -> None:
    for _ in range(MOST):
        retiring.advance(retirement.pk)
        goes_on = step(shop)
        work(shop)
        if not goes_on and Retirement.objects.get().ended_at is not None:
            return
    pytest.fail("the change or the retirement goes on")


@pytest.mark.parametrize("before", ["attribute"], indirect=True)
def test_a_retirement_that_began_with_the_choice_of_its_audience_is_seen_before_the_switch(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    """Neither saw the other, because both were committed at the same time, and the retirement ended the log."""
    begin(shop)
    retirement = retire(gold)
    retiring.advance(retirement.pk)
    assert retiring.advance(retirement.pk)
    assert Lane.objects.get(pk=gold.pk).retired_sequence is not None
    GuidedChange.objects.update(phase=Phase.CHECK, audience=gold, was=gold.mechanism or gold.install.mechanism)
    change = finish(shop)
    assert list(change.left_out) == ["lytics_gold"]
    assert retiring.advance(retirement.pk)
    assert segments(odp) == []


@pytest.mark.parametrize("before", ["attribute"], indirect=True)
def test_the_front_page_says_that_a_retirement_waits_for_a_change(
    odp: ThreadedSandbox, shop: Install, gold: Audience, operator: Client
) -> None:
    begin(shop)
    step(shop)
    retire(gold)
    assert (
        "It waits: a change to another mechanism is working on this audience."
        in operator.get(reverse("admin:index")).content.decode()
    )


def test_an_audience_that_odp_does_not_show_is_brought_back(
    odp: ThreadedSandbox, shop: Install, gold: Audience, before: str, settings: Settings
) -> None:
    """ODP accepts all writes of the new mechanism and applies none."""
    settings.CHANGE_VERIFY_SECONDS = 0
    path = LISTS if before == "attribute" else PROFILES
    body = {"title": "Accepted", "status": 202, "timestamp": "2026-01-01T00:00:00Z"}
    odp.fault({"path": path, "method": "POST"}, {"status": 202, "body": body})
    begin(shop)
    while not GuidedChange.objects.get().is_returning:
        work(shop)
        step(shop)
        assert definition(odp) == before
        assert odp.members("lytics_gold") == ["kim", "lee", "mia"]
    odp.clear_faults()
    change = finish(shop)
    assert "differ between ODP and the ledger" in change.problem
    assert (mechanism_in(gold), definition(odp)) == (before, before)
    assert odp.members("lytics_gold") == ["kim", "lee", "mia"]
    assert segments(odp) == ["lytics_gold"]


@pytest.mark.parametrize("before", ["list"], indirect=True)
def test_odp_that_is_down_delays_each_step_that_sends_requests(
    odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    """Without a response, a step neither continues nor returns to the previous mechanism."""
    Twin.objects.create(audience=gold, looked_at=now())
    begin(shop)
    waited = []
    for _ in guided.places(shop):
        phase = GuidedChange.objects.get().phase
        if phase in change_steps.ASKING and phase not in waited:
            odp.fault({}, {"status": 503, "body": {"message": "down"}})
            step(shop)
            odp.clear_faults()
            change = GuidedChange.objects.get()
            assert (change.phase, change.is_returning, bool(change.waits_for)) == (phase, False, True)
            waited.append(phase)
    assert set(waited) == set(change_steps.ASKING)
    assert GuidedChange.objects.get().problem == ""
    assert segments(odp) == ["lytics_gold"], "the audience of the verification is deleted"
    assert not Twin.objects.exists(), "what a look found before the change is out of date"


@pytest.mark.parametrize("before", ["list"], indirect=True)
def test_a_sample_that_odp_does_not_show_yet_is_compared_again(
    odp: ThreadedSandbox, shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(shop)
    odp.fault({"path": PROFILES, "method": "POST"}, {"status": 202, "body": {"status": 202}})
    while GuidedChange.objects.get().phase != Phase.VERIFY:
        step(shop)
        work(shop)
    odp.clear_faults()
    monkeypatch.setattr(change_steps, "now", lambda: now() + timedelta(days=1))  # the clock of another worker
    step(shop)
    change = GuidedChange.objects.get()
    assert (change.phase, change.is_returning) == (Phase.VERIFY, False)
    assert "people in a sample differ between ODP and the ledger" in change.waits_for


def test_skipped_events_of_the_ledger_are_sent_again(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    """A skip ends the resync and moves the cursor past what was to be sent."""
    begin(shop)
    while GuidedChange.objects.get().phase != Phase.RESEND:
        step(shop)
    resends.advance_all(shop.pk, seconds=PATIENCE)
    step(shop)
    Install.objects.update(enabled=False)
    skips.skip(shop.pk, by="kim", reason="a test")
    Install.objects.update(enabled=True)
    assert finish(shop).problem == ""
    assert odp.members("lytics_gold") == ["kim", "lee", "mia"]


@pytest.mark.parametrize("before", ["list"], indirect=True)
def test_a_resync_that_a_person_stops_is_begun_again(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    begin(shop)
    while GuidedChange.objects.get().phase != Phase.RESEND:
        step(shop)
    assert resends.stop(Resend.objects.get(), by="sam")
    assert finish(shop).problem == ""
    assert odp.members("lytics_gold") == ["kim", "lee", "mia"]


def test_a_request_holds_lanes_of_one_mechanism_only(odp: ThreadedSandbox, shop: Install, before: str) -> None:
    gold, silver = audience_with_members(shop), audience_with_members(shop, "silver")
    Audience.objects.filter(pk=silver.pk).update(mechanism=OTHER[before])
    enter(gold, "new", at=9)
    enter(silver, "new", at=9)
    first = claims.claim(shop.pk)
    second = claims.claim(shop.pk)
    assert first is not None
    assert second is not None
    assert [len(lease.spans) for lease in (first, second)] == [1, 1]
    assert first.more
    assert {lease.spans[0].audience_id: lease.mechanism for lease in (first, second)} == {
        gold.pk: before,
        silver.pk: OTHER[before],
    }


# --- the dry run, and what begins a change -------------------------------------------------------------------


def test_the_dry_run_counts_and_asks_odp_nothing(odp: ThreadedSandbox) -> None:
    shop = make_checked_install(odp)
    Install.objects.update(requests_per_second=10, batch_size=2)
    shop = Install.objects.get()
    audience_with_members(shop)
    audience_with_members(shop, "bronze")
    held = audience_with_members(shop, "silver")
    holds.pause(lane_of(held), by="kim", reason="a test")
    since, then = len(odp.requests()), everything_but_changes()
    plan = changes.plan(Install.objects.get(), to="list")
    assert (plan.problem, plan.audiences, plan.left_out, plan.members, plan.largest) == ("", 2, 1, 6, 3)
    assert (plan.requests, plan.seconds, plan.largest_seconds) == (4, 0.4, 0.2)
    assert plan.stays == "the customer field"
    assert len(odp.requests()) == since
    assert everything_but_changes() == then


def everything_but_changes() -> Any:
    return [list(model.objects.values()) for model in (Audience, Install, Delivery, Resend)]


def test_a_change_is_refused_with_its_reason(odp: ThreadedSandbox) -> None:
    shop = make_checked_install(odp)
    assert "already" in changes.problem_of(shop, to="list")
    audience_with_members(shop)
    assert changes.problem_of(shop, to="list") == ""
    assert "already" in changes.problem_of(shop, to="attribute")
    assert "passthrough" in changes.problem_of(shop, to="passthrough")
    heartbeats.note("one", worked_seconds_ago=None)
    Worker.objects.create(name="two", version="0.0.9", beat_at=now())
    assert "0.0.9" in changes.problem_of(shop, to="list")
    heartbeats.forget("two")
    begin(shop)
    assert "under way" in changes.problem_of(shop, to="list")
    assert changes.begin(Install.objects.get(), to="attribute", by="kim", reason="a test") is None


@pytest.mark.parametrize("before", ["list"], indirect=True)
def test_a_worker_takes_steps_until_the_change_has_to_wait(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    begin(shop)
    changes.advance(shop.pk, seconds=PATIENCE)
    change = GuidedChange.objects.get()
    assert (change.phase, change.lease_token) == (Phase.RESEND, None)
    assert changes.due() == [], "it waits for the resend"
    GuidedChange.objects.update(next_at=now())
    assert changes.due() == [shop.pk]


@pytest.mark.parametrize("before", ["attribute"], indirect=True)
def test_a_clock_that_was_set_back_delays_no_change(shop: Install, gold: Audience) -> None:
    begin(shop)
    assert changes.lease(shop.pk)
    assert changes.lease(shop.pk) is None
    tomorrow = now() + timedelta(days=1)
    GuidedChange.objects.update(lease_until_at=tomorrow, next_at=tomorrow)
    assert changes.due() == [shop.pk]
    assert changes.lease(shop.pk)


@pytest.mark.parametrize("before", ["list"], indirect=True)
def test_a_change_waits_as_long_as_odp_may_ask_for(shop: Install, gold: Audience, settings: Settings) -> None:
    settings.ODP_LONGEST_RETRY_AFTER_SECONDS = 100_000
    begin(shop)
    GuidedChange.objects.update(next_at=now() + timedelta(days=1))
    assert changes.due() == []


@pytest.mark.parametrize("before", ["attribute"], indirect=True)
def test_a_change_waits_while_the_install_is_switched_off(shop: Install, gold: Audience) -> None:
    change = begin(shop)
    token = changes.lease(shop.pk)
    assert token is not None
    Install.objects.update(enabled=False)
    assert changes.step(token) is None, "it was switched off between two steps"
    changes.give_back(token)
    changes.stop(change, by="sam")
    changes.advance(shop.pk, seconds=PATIENCE)
    change.refresh_from_db()
    assert (change.phase, change.ended_at) == (Phase.CHOOSE, None)
    card = change_verbs.card(shop)
    assert card is not None
    assert card["words"].endswith("sam stops it. The install is switched off.")
    Install.objects.update(enabled=True)
    assert finish(shop).problem == "Stopped by sam."


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller than the audience, so that it is a sample."""
    monkeypatch.setattr(verification, "SAMPLE", 3)


# --- its page and its command --------------------------------------------------------------------------------


def test_the_page_of_an_install_begins_shows_and_stops_a_change(odp: ThreadedSandbox, operator: Client) -> None:
    shop = make_checked_install(odp)
    gold = audience_with_members(shop)
    page = press(operator, "change-mechanism", shop, mechanism="list", reason="a test")
    assert "1 audience with 3 members" in page
    assert "The customer field of each audience stays in ODP" in page
    change = GuidedChange.objects.get()
    assert (change.before, change.after, change.by, change.reason) == ("attribute", "list", "operator", "a test")
    while change.phase != Phase.RESEND:
        step(shop)
        change.refresh_from_db()
    opened = operator.get(f"/admin/audiences/install/{shop.pk}/change/").content.decode()
    assert "Change under way" in opened
    assert "sending the ledger again" in opened
    press(operator, "stop-change", shop)
    finish(shop)
    work(shop)
    opened = operator.get(f"/admin/audiences/install/{shop.pk}/change/").content.decode()
    assert "Last change" in opened
    assert "Stopped by operator." in opened
    assert mechanism_in(gold) == "attribute"
    assert odp.members("lytics_gold") == ["kim", "lee", "mia"]


def test_a_viewer_neither_begins_nor_stops_a_change(odp: ThreadedSandbox, viewer: Client) -> None:
    shop = make_checked_install(odp)
    audience_with_members(shop)
    assert viewer.get(f"/admin/audiences/install/{shop.pk}/change-mechanism/").status_code == 403
    begin(shop)
    assert viewer.get(f"/admin/audiences/install/{shop.pk}/stop-change/").status_code == 403


def test_the_form_with_its_locked_mechanism_leads_to_the_change(odp: ThreadedSandbox) -> None:
    shop = make_checked_install(odp)
    audience_with_members(shop)
    for name, words in (("list", "Press Change mechanism"), ("passthrough", "Connect a new install")):
        other = Install.objects.get()
        other.mechanism = name
        assert words in guards.refusals(shop, other)["mechanism"]


def test_the_command_shows_begins_and_stops_a_change(odp: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = make_checked_install(odp)
    audience_with_members(shop)

    def command(*arguments: str) -> Any:
        printed = StringIO()
        call_command("change_mechanism", shop.public_id, "--json", *arguments, stdout=printed)
        return json.loads(printed.getvalue())[0]

    shown = command("--to", "list")
    assert (shown["begun"], shown["audiences"], shown["members"]) == (False, 1, 3)
    assert not GuidedChange.objects.exists()
    with pytest.raises(CommandError, match="or give --stop"):
        command("--to", "list", "--stop")
    with monkeypatch.context() as patch:
        patch.setattr(changes, "begin", lambda *_, **__: None)  # another person was quicker
        with pytest.raises(CommandError, match="Another change"):
            command("--to", "list", "--yes", "--reason", "a test")
    assert command("--to", "list", "--yes", "--reason", "a test")["begun"]
    assert GuidedChange.objects.get().reason == "a test"
    with pytest.raises(CommandError, match="under way"):
        command("--to", "list", "--yes", "--reason", "a test")
    make_checked_install(odp, name="Unchanged")
    printed = StringIO()
    with pytest.raises(CommandError, match=r"^Unchanged: No change is under way"):
        call_command("change_mechanism", "--all", "--stop", "--json", stdout=printed)
    (stopped,) = json.loads(printed.getvalue())
    assert (stopped["install_id"], stopped["stopped"]) == (shop.public_id, True)
    with pytest.raises(CommandError, match="No change"):
        command("--stop")


# --- on Now --------------------------------------------------------------------------------------------------


def _change(shop: Install, **values: Any) -> GuidedChange:
    shared = {"install": shop, "kind": GuidedChange.Kind.MECHANISM, "before": "field", "after": "list"}
    return GuidedChange.objects.create(**shared, by="kim", reason="Asked for.", **values)


def test_a_change_that_waits_for_two_hours_is_on_now_with_what_it_waits_for(shop: Install, operator: Client) -> None:
    change = _change(shop, waits_for="1 request is under way.")
    GuidedChange.objects.update(phase_since_at=now() - timedelta(hours=1))
    assert guided_changes.alerts(EVERYWHERE) == []
    GuidedChange.objects.update(phase_since_at=now() - timedelta(hours=2, seconds=1))
    (alert,) = guided_changes.alerts(Extent(install_id=shop.pk))
    assert (alert.what, alert.cause) == ("The change of Shop from field to list waits", "waits")
    assert alert.why == f"It is {change.get_phase_display()}. 1 request is under way."
    assert alert.what in operator.get(reverse("admin:index")).content.decode()
    assert guided_changes.alerts(Extent(install_id=shop.pk + 1)) == []
    GuidedChange.objects.update(waits_for="")
    assert guided_changes.alerts(EVERYWHERE) == [], "it works"


@pytest.mark.parametrize(
    ("ended", "why"),
    [
        ({"problem": "ODP rejects the list."}, "ODP rejects the list."),
        ({"left_out": {"lytics_gold": "It is blocked."}}, "1 audience is left as before."),
        ({"problem": "Stopped by kim.", "stopped_by": "kim"}, None),
        ({}, None),
    ],
)
def test_a_change_that_ended_incomplete_is_on_now_until_the_install_has_another_one(
    shop: Install, operator: Client, ended: dict[str, Any], why: str | None
) -> None:
    """It was on the install's page alone, while audiences kept their former members."""
    _change(shop, ended_at=now(), **ended)
    found = [(alert.why, alert.cause) for alert in guided_changes.alerts(EVERYWHERE)]
    assert found == ([(why, "incomplete")] if why else []), "another trouble than the wait before it"
    shown = (
        "The change of Shop from field to list is incomplete" in operator.get(reverse("admin:index")).content.decode()
    )
    assert shown == (why is not None)
    GuidedChange.objects.update(ended_at=now() - timedelta(days=31))
    assert guided_changes.alerts(EVERYWHERE) == []
    GuidedChange.objects.update(ended_at=now())
    _change(shop)
    assert guided_changes.alerts(EVERYWHERE) == []


def test_a_stop_ends_the_change_of_a_blocked_audience_whose_ledger_has_no_room_in_the_log(
    odp: ThreadedSandbox, shop: Install, gold: Audience, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resync waits until the audience delivers, with the reason. It goes on after the change, which it outlives."""
    monkeypatch.setattr(backlog, "AHEAD", 1)
    monkeypatch.setattr(resends, "CHUNK", 1)
    change = changes.begin(shop, to=OTHER[before], by="kim", reason="a test")
    assert change is not None
    while GuidedChange.objects.get().phase != Phase.RESEND:
        assert step(shop)
        drain_all(shop)
    holds.block_audience(gold.pk, "The field has another type.")
    happen(gold, ("lee", "exit", 100), ("new", "enter", 100))
    for _ in range(3):
        assert step(shop)
        work(shop)
    assert "The audience is blocked: The field has another type." in GuidedChange.objects.get().waits_for
    assert changes.stop(change, by="lee")
    for _ in range(MOST):
        if not step(shop):
            break
        work(shop)
    assert "Stopped by lee" in GuidedChange.objects.get(ended_at__isnull=False).problem
    assert holds.unblock(lane_of(gold))
    for _ in range(MOST):
        work(shop)
    assert odp.members("lytics_gold") == ["kim", "mia", "new"]
