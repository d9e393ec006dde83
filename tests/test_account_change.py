"""Guided changes to another ODP account: while events come in, and each membership ends right in the new account."""

import io
import itertools
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest.mock import Mock, call

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.delivery import account_switch, backoff, claims, drafts, holds, provision, shared_ids
from audiences.delivery.account_switch import Connection
from audiences.delivery.leases import LeaseLostError
from audiences.models import (
    Audience,
    AudienceMove,
    Event,
    Forgotten,
    GuidedChange,
    Install,
    Membership,
    Pace,
    Resend,
    Retirement,
    Twin,
)
from audiences.operations import (
    account_changes,
    account_requests,
    account_steps,
    change_steps,
    changes,
    forgetting,
    guards,
    other_id,
    resends,
    retiring,
    skips,
    verification,
)
from audiences.receiving import backlog
from odp.outcomes import Answer, Outcome
from sandbox.odp.testing import ThreadedSandbox
from sandbox.odp.world import Options
from tests import guided
from tests.delivering import (
    UNLIMITED,
    assert_all_is_well,
    drain_all,
    enter,
    happen,
    lane_of,
    lease_runs_out,
    make_audience,
    make_install,
)
from tests.guided import (
    DELIVERED,
    MOST,
    UNDER_WAY,
    WAITING,
    audience_with_members,
    segments,
    send_events,
    step,
    steps_with_deaths,
    work,
)
from tests.test_admin import hidden, press
from tests.threads import PATIENCE
from workers import drain, pace

pytestmark = pytest.mark.django_db

Phase = GuidedChange.Phase
KEY = "another.account"


@pytest.fixture
def new() -> Iterator[ThreadedSandbox]:
    """The other account: at another host, with another key."""
    with ThreadedSandbox(Options(private_key=KEY, settings=UNLIMITED)) as other:
        yield other


@pytest.fixture
def mechanism(request: pytest.FixtureRequest) -> str:
    """The mechanism that the test names; attributes without one, because most steps are the same for both."""
    return str(getattr(request, "param", "attribute"))


by_each_mechanism = pytest.mark.parametrize("mechanism", ["attribute", "list"], indirect=True)


@pytest.fixture
def shop(odp: ThreadedSandbox, mechanism: str) -> Install:
    made = make_install(odp, mechanism=mechanism)
    drafts.note_key(made.pk, problem="")
    return Install.objects.get(pk=made.pk)


@pytest.fixture
def gold(shop: Install) -> Audience:
    return audience_with_members(shop)


@pytest.fixture(autouse=True)
def short_waits(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lease is over before a test says so, requests hold two customers, and nothing is applied late."""
    settings.LEASE_SECONDS = 300
    settings.RECONCILE_AFTER_SECONDS = 0
    monkeypatch.setattr(verification, "SAMPLE", 3)


@pytest.fixture(autouse=True)
def small_requests(shop: Install) -> None:
    Install.objects.filter(pk=shop.pk).update(batch_size=2)


def target(new: ThreadedSandbox) -> Connection:
    return Connection("", new.url, KEY)


def begin(shop: Install, new: ThreadedSandbox, *, empties: bool = False) -> GuidedChange:
    install = Install.objects.get(pk=shop.pk)
    change = changes.begin_account(install, target(new), empties=empties, by="kim", reason="a test")
    assert change is not None, changes.problem_of_account(install, target(new))
    return change


def finish(shop: Install) -> GuidedChange:
    for _ in range(MOST):
        if not step(shop):
            work(shop)
            return GuidedChange.objects.filter(install=shop).latest("pk")
        work(shop)
    raise AssertionError(GuidedChange.objects.values().latest("pk"))


def until(shop: Install, phase: str) -> None:
    for _ in range(MOST):
        if GuidedChange.objects.latest("pk").phase == phase:
            return
        step(shop)
        work(shop)
    raise AssertionError(GuidedChange.objects.values().latest("pk"))


def members(odp: ThreadedSandbox, slug: str = "gold") -> list[str]:
    found = odp.members(f"lytics_{slug}")
    assert found == odp.members(f"lytics_{slug}", "web_user_id")
    return found


# --- the change itself ---------------------------------------------------------------------------------------


@by_each_mechanism
def test_all_audiences_are_copied_before_the_switch(odp: ThreadedSandbox, shop: Install, new: ThreadedSandbox) -> None:
    gold, silver = audience_with_members(shop), audience_with_members(shop, "silver")
    begin(shop, new)
    until(shop, Phase.MOVE)
    for slug in ("gold", "silver"):
        assert members(new, slug) == members(odp, slug) == ["kim", "lee", "mia"]
    assert Install.objects.get().odp_host == odp.url
    change = finish(shop)
    assert (change.problem, change.done, change.total) == ("", 2, 2)
    assert change.other_api_key == ""
    install = Install.objects.get()
    assert (install.odp_host, install.odp_api_key) == (new.url, KEY)
    happen(gold, ("kim", "exit", 9), ("new", "enter", 9))
    drain_all(shop)
    assert members(new) == ["lee", "mia", "new"]
    assert members(odp) == ["kim", "lee", "mia"], "the old account is left as it was"
    assert segments(odp) == segments(new) == ["lytics_gold", "lytics_silver"]
    assert_all_is_well(gold, silver)


def test_a_retired_audience_that_is_taken_back_in_an_earlier_account_has_nobody_who_has_left_since(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox
) -> None:
    """A change copies no retired audience, and the earlier account still has its members of then."""
    audience_with_members(shop, "silver")
    earlier = account_switch.connection_of(shop)
    begin(shop, new)
    finish(shop)
    happen(gold, ("kim", "exit", 9))
    work(shop)
    assert retiring.retire(gold, by="sam", reason="left the job")
    for _ in range(3):
        retiring.advance_all(shop.pk, seconds=PATIENCE)
        work(shop)
    assert lane_of(gold).retired_at is not None
    back = changes.begin_account(Install.objects.get(), earlier, empties=False, by="kim", reason="back")
    assert back is not None
    assert finish(shop).problem == ""
    assert retiring.take_back(gold, by="sam", reason="back in the job")
    retiring.advance_all(shop.pk, seconds=PATIENCE)
    work(shop)
    assert members(odp) == ["lee", "mia"]


# --- with live events ----------------------------------------------------------------------------------------


AFTER = ["lee", "mia", "new", "pat"]
BEFORE = ["kim", "lee", "mia"]


def steps_with_events(shop: Install, gold: Audience, *, mode: str, events_at: int = 0, stop_at: int = -1) -> int:
    """Take the remaining steps of a change. Returns the number of the last one."""
    return max(guided.steps_with_events(shop, gold, events_at=events_at, mode=mode, stop_at=stop_at))


@by_each_mechanism
def test_events_between_any_two_steps_are_in_the_new_account(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox, mechanism: str
) -> None:
    """Each mechanism takes every other place, so that each mode is tried at each place."""
    begin(shop, new, empties=True)
    for number in guided.places(shop):
        is_first = (number % 2 == 0) is (mechanism == "attribute")
        for mode in (DELIVERED, UNDER_WAY) if is_first else (WAITING,):
            with guided.undone(odp, new):
                steps_with_events(shop, gold, mode=mode)
                assert GuidedChange.objects.get().problem == ""
                assert members(new) == AFTER, (number, mode)
                assert segments(new) == ["lytics_gold"]
                assert segments(odp) == [], "the old account is emptied"
                assert is_empty(odp), (number, mode)
                assert_all_is_well(gold)
    assert number > 12


def is_empty(odp: ThreadedSandbox) -> bool:
    """Whether field or list of the audience has no member any more, read without its real-time audience."""
    people = [odp.customer(name) for name in ("kim", "lee", "mia", "new", "pat")]
    return not any(
        one["lists"].get("lytics_gold") or one["attributes"].get("lytics_gold") in (True, "true") for one in people
    )


@by_each_mechanism
def test_a_stop_at_any_step_leaves_one_account_whole(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox, mechanism: str
) -> None:
    """Before the switch everything is as if nothing had been begun; after it, the new account is completed.

    Each mechanism takes every other place.
    """
    begin(shop, new, empties=True)
    used_after_stops = set()
    for number in guided.places(shop):
        if (number % 2 == 0) is not (mechanism == "attribute"):
            continue
        for events_at, mode in itertools.product((0, 1), (DELIVERED, UNDER_WAY)):
            with guided.undone(odp, new):
                here = (number, events_at, mode)
                last = steps_with_events(shop, gold, mode=mode, events_at=events_at, stop_at=0)
                change = GuidedChange.objects.get()
                used = new if change.switched_at else odp
                used_after_stops.add(used)
                assert Install.objects.get().odp_host == used.url, here
                assert members(used) == (AFTER if events_at <= last else BEFORE), here
                assert change.other_api_key == ""
                assert_all_is_well(gold)
    assert used_after_stops == {odp, new}


# --- crashes -------------------------------------------------------------------------------------------------


@by_each_mechanism
@pytest.mark.parametrize("when", guided.DEATHS)
def test_a_worker_that_dies_at_any_step_is_replaced(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox, monkeypatch: Any, when: str
) -> None:
    """Events come in between."""
    begin(shop, new, empties=True)
    for number in steps_with_deaths(shop, monkeypatch, when):
        happen(gold, (f"person{number}", "enter", 200 + number), ("kim", "exit" if number % 2 else "enter", number))
    work(shop)
    change = GuidedChange.objects.get()
    assert (change.problem, change.done) == ("", 1)
    ledger = Membership.objects.filter(audience=gold, is_member=True).values_list("identifier", flat=True)
    assert members(new) == sorted(ledger)
    assert len(ledger) > 10
    assert segments(odp) == []
    assert_all_is_well(gold)


def test_a_worker_with_the_old_client_whose_lease_is_over_loses_nothing(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox
) -> None:
    """It sends to the old account after the switch, and its events go to the new account, too."""
    begin(shop, new)
    until(shop, Phase.MOVE)
    send_events(gold, at=100)
    late = claims.claim(shop.pk)
    assert late is not None
    step(shop)
    for _ in range(3):
        step(shop)
        assert GuidedChange.objects.get().phase == Phase.LEASES
    lease_runs_out(gold)
    step(shop)
    assert GuidedChange.objects.get().phase == Phase.CHOOSE
    with pytest.raises(LeaseLostError):
        drain.deliver(late)
    assert finish(shop).problem == ""
    assert members(new) == AFTER
    assert_all_is_well(gold)


def test_a_request_to_the_new_account_that_may_be_applied_late_delays_the_switch(
    shop: Install, gold: Audience, new: ThreadedSandbox, settings: Settings
) -> None:
    settings.RECONCILE_AFTER_SECONDS = 300
    begin(shop, new)
    until(shop, Phase.MOVE)
    for _ in range(3):
        step(shop)
    change = GuidedChange.objects.get()
    assert (change.phase, change.switched_at) == (Phase.MOVE, None)
    assert "may be applied late" in change.waits_for
    waiting = change_steps.wait_since(change, "copied_at", seconds=300, why="")
    assert waiting is not None
    assert waiting.seconds == change_steps.LATER, "the page shows how many seconds are left"
    assert change.copied_at is not None
    GuidedChange.objects.update(copied_at=change.copied_at - timedelta(seconds=301))
    assert finish(shop).problem == ""


@pytest.mark.parametrize("ahead", [timedelta(minutes=10), timedelta(minutes=-1)])
def test_the_clock_of_a_worker_does_not_change_the_wait_before_the_switch(
    shop: Install, gold: Audience, new: ThreadedSandbox, settings: Settings, monkeypatch: Any, ahead: timedelta
) -> None:
    settings.RECONCILE_AFTER_SECONDS = 300
    begin(shop, new)
    until(shop, Phase.MOVE)
    monkeypatch.setattr(account_steps, "now", lambda: now() + ahead)
    step(shop)
    assert GuidedChange.objects.get().waits_for.endswith(("waits 299 s.", "waits 300 s."))


def test_a_clock_that_was_set_back_begins_the_wait_before_the_switch_again(
    shop: Install, gold: Audience, new: ThreadedSandbox, settings: Settings
) -> None:
    settings.RECONCILE_AFTER_SECONDS = 300
    begin(shop, new)
    until(shop, Phase.MOVE)
    GuidedChange.objects.update(copied_at=now() + timedelta(hours=5))
    step(shop)
    change = GuidedChange.objects.get()
    assert change.waits_for.endswith("waits 300 s.")
    assert change.copied_at is not None
    assert change.copied_at <= now()


def test_the_last_request_to_the_old_account_may_be_applied_late_so_its_emptying_waits(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox, settings: Settings
) -> None:
    begin(shop, new, empties=True)
    until(shop, Phase.LEASES)
    settings.RECONCILE_AFTER_SECONDS = 300
    for _ in range(10):
        step(shop)
        work(shop)
    change = GuidedChange.objects.get()
    assert "The last request to the old account may be applied late" in change.waits_for
    assert (members(odp), members(new)) == (BEFORE, BEFORE)
    assert change.switched_at is not None
    GuidedChange.objects.update(switched_at=change.switched_at - timedelta(seconds=301))
    assert finish(shop).problem == ""
    assert segments(odp) == []


def test_accounts_that_are_down_delay_each_step_that_sends_requests(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox
) -> None:
    """Without a response, a step neither continues nor ends the change."""
    Twin.objects.create(audience=gold, looked_at=now())
    begin(shop, new, empties=True)
    waited = []
    for _ in guided.places(shop):
        phase = GuidedChange.objects.get().phase
        if phase in account_steps.ASKING and phase not in waited:
            for account in (odp, new):
                account.fault({}, {"status": 503, "body": {"message": "down"}})
            step(shop)
            for account in (odp, new):
                account.clear_faults()
            change = GuidedChange.objects.get()
            assert (change.phase, change.ended_at, bool(change.waits_for)) == (phase, None, True)
            waited.append(phase)
    assert set(waited) == set(account_steps.ASKING)
    assert GuidedChange.objects.get().problem == ""
    assert (segments(odp), members(new)) == ([], BEFORE)
    assert not Twin.objects.exists(), "what a look found in the old account is out of date"


def test_a_sample_that_odp_does_not_show_yet_is_compared_again(
    shop: Install, gold: Audience, new: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(shop, new)
    new.fault({"path": "/v3/profiles", "method": "POST"}, {"status": 202, "body": {"status": 202}})
    until(shop, Phase.VERIFY)
    new.clear_faults()
    monkeypatch.setattr(account_steps, "now", lambda: now() + timedelta(days=1))  # the clock of another worker
    step(shop)
    change = GuidedChange.objects.get()
    assert (change.phase, change.ended_at) == (Phase.VERIFY, None)
    assert "people in a sample differ between the new account and the ledger" in change.waits_for


def test_a_copying_request_without_a_response_may_be_applied_late_and_is_sent_when_the_account_says(
    shop: Install, gold: Audience, new: ThreadedSandbox
) -> None:
    begin(shop, new)
    until(shop, Phase.COPY)
    new.fault({}, {"status": 503, "headers": {"Retry-After": "30"}, "body": {"message": "down"}})
    GuidedChange.objects.update(next_at=None)
    token = changes.lease(shop.pk)
    assert token is not None
    assert changes.step(token) == 30
    assert GuidedChange.objects.get().copied_at is not None


def test_a_stop_during_a_request_does_not_wait_as_long_as_the_account_says(
    shop: Install, gold: Audience, new: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(shop, new)
    until(shop, Phase.COPY)
    new.fault({}, {"status": 503, "headers": {"Retry-After": "3600"}, "body": {"message": "down"}})
    send = account_requests.send

    def stopped_meanwhile(*args: Any) -> Any:
        assert changes.stop(GuidedChange.objects.get(), by="lee")
        return send(*args)

    monkeypatch.setattr(account_requests, "send", stopped_meanwhile)
    GuidedChange.objects.update(next_at=None)
    changes.advance(shop.pk, seconds=PATIENCE)
    assert GuidedChange.objects.get().problem == "Stopped by lee. The install still sends to the old account."


def test_nothing_that_was_known_of_the_old_account_delays_the_new_one(odp: ThreadedSandbox, shop: Install) -> None:
    copied, other = make_audience(shop), make_audience(shop, "other")
    Audience.objects.update(hold_failures=3, hold_reason="503", hold_since_at=now(), hold_until_at=now())
    Install.objects.update(twins_looked_at=now())
    backoff.apply(shop, Answer(Outcome.UNAUTHORISED, "403", fixed_backoff=True))
    account_switch.switch(account_switch.lock(shop.pk), Connection("us", odp.url, KEY), copied={copied.pk})
    install = Install.objects.get()
    assert (install.twins_looked_at, install.backoff_until_at, install.odp_api_key) == (None, None, KEY)
    copied.refresh_from_db()
    other.refresh_from_db()
    assert (copied.hold_until_at, copied.hold_failures) == (None, 0)
    assert (copied.provisioned_at is None, other.provisioned_at is None) == (False, True)


def test_an_install_moves_away_from_an_account_that_is_gone(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox
) -> None:
    """Its install is on hold, and events wait. The copy doesn't wait for the end of the backoff."""
    odp.fault({}, {"status": 503, "body": {"message": "gone"}})
    send_events(gold, at=100)
    drain_all(shop)
    Install.objects.filter(pk=shop.pk).update(requests_per_second=1000)
    assert Install.objects.get().backoff_until_at is not None
    begin(shop, new)
    token = None
    while GuidedChange.objects.get().phase != Phase.MOVE:
        GuidedChange.objects.update(next_at=None)
        token = changes.lease(shop.pk)
        assert token is not None
        changes.step(token, gate=pace.pass_gate)
        changes.give_back(token)
    assert members(new) == BEFORE
    assert finish(shop).problem == ""
    assert members(new) == AFTER
    assert_all_is_well(gold)


def test_the_other_account_gets_no_more_requests_than_the_install_may_send(
    shop: Install, gold: Audience, new: ThreadedSandbox
) -> None:
    begin(shop, new)
    until(shop, Phase.COPY)
    Install.objects.update(requests_per_second=10)
    token = changes.lease(shop.pk)
    assert token is not None
    assert changes.step(token) == 0.1
    assert not Pace.objects.exists(), "the deliveries to the old account are as fast as before"


# --- audiences that aren't as usual --------------------------------------------------------------------------


@by_each_mechanism
@pytest.mark.parametrize("held", ["paused", "blocked"])
def test_a_held_audience_is_copied_and_stays_held(
    shop: Install, gold: Audience, new: ThreadedSandbox, held: str
) -> None:
    lane = lane_of(gold)
    if held == "paused":
        holds.pause(lane, by="kim", reason="a test")
    else:
        holds.block_audience(gold.pk, "a test")
    send_events(gold, at=100)
    begin(shop, new)
    assert finish(shop).problem == ""
    assert members(new) == BEFORE
    holds.resume(lane)
    holds.unblock(lane)
    work(shop)
    assert members(new) == AFTER
    assert_all_is_well(gold)


def test_a_held_audience_with_a_large_backlog_holds_up_no_other_audience(
    shop: Install, gold: Audience, new: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of its ledger is appended before its backlog is smaller."""
    monkeypatch.setattr(backlog, "AHEAD", 2)
    silver = audience_with_members(shop, "silver")
    begin(shop, new)
    until(shop, Phase.MOVE)
    lane = lane_of(gold)
    holds.pause(lane, by="kim", reason="a test")
    for audience in (gold, silver):
        send_events(audience, at=100)
    drain_all(shop)
    assert finish(shop).problem == ""
    assert (members(new), members(new, "silver")) == (BEFORE, AFTER)
    holds.resume(lane)
    for _ in range(3):
        work(shop)
    assert members(new) == AFTER
    assert_all_is_well(gold, silver)


@pytest.mark.parametrize("phase", [Phase.COPY, Phase.MOVE, Phase.CATCH_UP])
def test_an_audience_that_is_new_during_the_change_is_in_the_new_account(
    shop: Install, gold: Audience, new: ThreadedSandbox, phase: str
) -> None:
    begin(shop, new)
    until(shop, phase)
    silver = audience_with_members(shop, "silver")
    assert finish(shop).problem == ""
    assert members(new) == members(new, "silver") == BEFORE
    assert_all_is_well(gold, silver)


@by_each_mechanism
def test_an_audience_that_is_being_made_at_the_switch_is_made_in_the_new_account(
    shop: Install, gold: Audience, new: ThreadedSandbox
) -> None:
    """The worker that makes it in the old account comes back after the switch."""
    begin(shop, new)
    until(shop, Phase.MOVE)
    silver = make_audience(shop, "silver", provisioned=False)
    enter(silver, "kim")
    making = provision.claim(shop.pk)
    assert making is not None
    step(shop)
    assert GuidedChange.objects.get().switched_at is not None
    provision._make(making, None)
    assert finish(shop).problem == ""
    assert members(new, "silver") == ["kim"]


@by_each_mechanism
def test_an_audience_that_the_old_account_never_had_is_not_emptied_there(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wasn't made in the old account before the switch, so ODP would reject each of its exits."""
    monkeypatch.setattr(account_requests, "MOST_REJECTED", 0)
    begin(shop, new, empties=True)
    until(shop, Phase.MOVE)
    silver = make_audience(shop, "silver", provisioned=False)
    enter(silver, "kim", "zoe")
    step(shop)
    assert GuidedChange.objects.get().switched_at is not None
    change = finish(shop)
    assert (change.problem, change.left_out, change.done) == ("", {}, 2)
    assert members(new, "silver") == ["kim", "zoe"]
    assert segments(odp) == []


@pytest.mark.parametrize("phase", [Phase.CHOOSE, Phase.EMPTY, Phase.REMOVE])
def test_an_audience_in_the_old_account_that_another_install_uses_now_is_not_emptied(
    odp: ThreadedSandbox,
    shop: Install,
    gold: Audience,
    new: ThreadedSandbox,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
) -> None:
    """An older version let another install make its audience there after the switch."""
    monkeypatch.setattr(shared_ids, "_left_behind", lambda install, odp_id: None)
    begin(shop, new, empties=True)
    until(shop, Phase.LEASES)
    GuidedChange.objects.update(left_out={"lytics_earlier": "a reason"})
    until(shop, phase)
    other = make_install(odp, name="Other", mechanism=shop.mechanism)
    drafts.note_key(other.pk, problem="")
    theirs = audience_with_members(other)
    change = finish(shop)
    assert change.problem == ""
    assert "The install Other uses" in change.left_out["lytics_gold"]
    assert change.left_out["lytics_earlier"] == "a reason"
    assert (members(odp), segments(odp)) == (BEFORE, ["lytics_gold"])
    assert members(new) == BEFORE
    assert_all_is_well(gold, theirs)


def blocked_audience_of_another_install(odp: ThreadedSandbox, shop: Install) -> Audience:
    """It has the id under which ``shop`` has left members in its old account."""
    other = make_install(odp, name="Other", mechanism=shop.mechanism)
    drafts.note_key(other.pk, problem="")
    theirs = make_audience(other, provisioned=False)
    enter(theirs, "zoe")
    drain_all(other)
    assert "ODP still has its members there" in lane_of(theirs).block_reason
    return theirs


@by_each_mechanism
@pytest.mark.parametrize("has_another_id", [False, True])
def test_another_install_gets_no_id_under_which_the_old_account_has_members(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox, *, has_another_id: bool
) -> None:
    """Its audience would show the members whom the install has left in the old account."""
    if has_another_id:
        provision.use_id(gold.pk, "lytics_gold_two")
        assert resends.resync(gold, by="kim", reason="a test")
        work(shop)
    begin(shop, new)
    assert finish(shop).problem == ""
    theirs = blocked_audience_of_another_install(odp, shop)
    assert members(odp) == BEFORE
    assert other_id.use(theirs, "lytics_theirs", by="kim", reason="a test")
    theirs.refresh_from_db()
    assert "ODP still has members of" in other_id.problem_of(theirs, "lytics_gold")


def test_another_install_gets_an_id_that_was_emptied_in_the_old_account(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox
) -> None:
    begin(shop, new, empties=True)
    until(shop, Phase.EMPTY)
    theirs = blocked_audience_of_another_install(odp, shop)
    change = finish(shop)
    assert (change.problem, change.left_out) == ("", {})
    assert holds.unblock(lane_of(theirs))
    drain_all(theirs.install)
    assert members(odp) == ["zoe"]
    assert members(new) == BEFORE


def test_an_audience_with_another_odp_id_since_its_copy_is_copied_again(
    shop: Install, gold: Audience, new: ThreadedSandbox
) -> None:
    begin(shop, new)
    until(shop, Phase.MOVE)
    provision.use_id(gold.pk, "lytics_gold_two")
    assert resends.resync(gold, by="kim", reason="a test")
    work(shop)
    assert finish(shop).problem == ""
    assert new.members("lytics_gold_two") == BEFORE


@by_each_mechanism
def test_members_of_an_earlier_time_in_the_other_account_leave(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox
) -> None:
    """The install moves away and back. Kim left in the meantime, and the old account was left as it was."""
    begin(shop, new)
    assert finish(shop).problem == ""
    happen(gold, ("kim", "exit", 9))
    drain_all(shop)
    assert members(odp) == BEFORE
    back = Connection("", odp.url, odp.private_key)
    assert changes.begin_account(Install.objects.get(), back, empties=True, by="kim", reason="back")
    assert finish(shop).problem == ""
    assert members(odp) == ["lee", "mia"]
    assert segments(new) == []


@by_each_mechanism
def test_customers_that_the_new_account_rejects_are_counted(
    shop: Install, gold: Audience, new: ThreadedSandbox, mechanism: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/v3/profiles" if mechanism == "attribute" else "/v3/lists/subscriptions"
    answer = {"status": 400, "body": {"title": "Bad Request", "detail": {"message": "no"}}}
    new.fault({"path": path, "body_contains": "lee"}, answer)
    begin(shop, new)
    until(shop, Phase.VERIFY)
    assert AudienceMove.objects.get().rejected == 1
    assert members(new) == ["kim", "mia"]
    new.clear_faults()
    new.fault({"path": path}, answer)
    monkeypatch.setattr(account_requests, "MOST_REJECTED", 1)
    changes.stop(GuidedChange.objects.get(), by="kim")
    finish(shop)
    begin(shop, new)
    assert "rejects too many customers" in finish(shop).problem
    assert Install.objects.get().odp_host == shop.odp_host


@by_each_mechanism
@pytest.mark.parametrize("rejected", ["lee", "e"], ids=["one", "all"])
def test_an_account_that_rejects_some_members_is_switched_to_and_one_that_rejects_all_is_not(
    odp: ThreadedSandbox,
    shop: Install,
    gold: Audience,
    new: ThreadedSandbox,
    mechanism: str,
    settings: Settings,
    rejected: str,
) -> None:
    """The sample has all members, and the old account shows them."""
    settings.CHANGE_VERIFY_SECONDS = 0
    path = "/v3/profiles" if mechanism == "attribute" else "/v3/lists/subscriptions"
    answer = {"status": 400, "body": {"title": "Bad Request", "detail": {"message": "no"}}}
    new.fault({"path": path, "body_contains": rejected}, answer)
    begin(shop, new)
    change = finish(shop)
    if rejected == "lee":
        assert change.problem == ""
        assert AudienceMove.objects.get().rejected == 1
        assert members(new) == ["kim", "mia"]
    else:
        assert "people in a sample differ" in change.problem
        assert Install.objects.get().odp_host == odp.url


@pytest.mark.parametrize(
    ("rejected", "of", "most"),
    [(0, 10**6, 0), (1, 10**6, 1), (100, 10**6, 1), (100, 1_000, 34), (100, 200, 100), (0, 0, 0)],
)
def test_rejections_explain_as_many_differences_as_a_sample_may_have(rejected: int, of: int, most: int) -> None:
    """A hundred rejections in a million customers explained a hundred differences among the 200 of the sample."""
    assert verification.explained(rejected, people=200, of=of) == most


def test_more_differences_than_the_rejections_explain_prevent_the_switch(
    odp: ThreadedSandbox,
    shop: Install,
    gold: Audience,
    new: ThreadedSandbox,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings.CHANGE_VERIFY_SECONDS = 0
    explained = Mock(return_value=0)
    monkeypatch.setattr(verification, "explained", explained)
    monkeypatch.setattr(verification, "SAMPLE", 5)  # Lee is in it, whatever the number of the change
    answer = {"status": 400, "body": {"title": "Bad Request", "detail": {"message": "no"}}}
    new.fault({"path": "/v3/profiles", "body_contains": "lee"}, answer)
    begin(shop, new)
    assert "people in a sample differ" in finish(shop).problem
    assert explained.call_args == call(1, people=4, of=4)


def test_members_whom_neither_account_shows_do_not_prevent_the_switch(
    odp: ThreadedSandbox, shop: Install, new: ThreadedSandbox, settings: Settings
) -> None:
    """ODP accepts Lee's state and shows nothing of it, as without consent. Each request holds one customer."""
    settings.CHANGE_VERIFY_SECONDS = 0
    Install.objects.update(batch_size=1)
    for account in (odp, new):
        account.fault({"path": "/v3/profiles", "body_contains": "lee"}, {"status": 202, "body": {"status": 202}})
    audience_with_members(Install.objects.get())
    assert members(odp) == ["kim", "mia"]
    begin(shop, new)
    assert finish(shop).problem == ""
    assert members(new) == ["kim", "mia"]


def leave_before_the_resync(shop: Install, gold: Audience, new: ThreadedSandbox) -> None:
    """Kim's exit goes to the old account after the copy, and the resync that sends it again has begun."""
    begin(shop, new)
    until(shop, Phase.MOVE)
    happen(gold, ("kim", "exit", 9))
    work(shop)
    until(shop, Phase.CATCH_UP)
    step(shop)


def test_skipped_events_after_the_switch_are_sent_again(shop: Install, gold: Audience, new: ThreadedSandbox) -> None:
    """A skip ends the resync."""
    leave_before_the_resync(shop, gold, new)
    resends.advance_all(shop.pk, seconds=PATIENCE)
    Install.objects.update(enabled=False)
    skips.skip(shop.pk, by="kim", reason="a test")
    Install.objects.update(enabled=True)
    assert finish(shop).problem == ""
    assert members(new) == ["lee", "mia"]


def test_a_resync_that_a_person_stops_is_begun_again(shop: Install, gold: Audience, new: ThreadedSandbox) -> None:
    leave_before_the_resync(shop, gold, new)
    assert resends.stop(Resend.objects.get(), by="sam")
    assert finish(shop).problem == ""
    assert members(new) == ["lee", "mia"]


# --- what waits for the end of a change ----------------------------------------------------------------------


def test_a_retirement_and_a_forgetting_wait_for_the_end(shop: Install, gold: Audience, new: ThreadedSandbox) -> None:
    audience_with_members(shop, "silver")
    begin(shop, new)
    until(shop, Phase.MOVE)
    assert retiring.retire(gold, by="sam", reason="left the job")
    assert not retiring.advance(Retirement.objects.get().pk)
    assert forgetting.ask(shop, "kim", tell_odp=True, by="dpo")
    for _ in range(3):
        forgetting.advance_all()
        work(shop)
    assert Membership.objects.filter(audience=gold, identifier="kim", is_member=True).exists()
    assert finish(shop).problem == ""
    for _ in range(4):
        forgetting.advance_all()
        retiring.advance(Retirement.objects.get().pk)
        work(shop)
    assert Forgotten.objects.get().ended_at is not None
    assert Retirement.objects.get().ended_at is not None
    assert segments(new) == ["lytics_silver"]
    assert members(new, "silver") == ["lee", "mia"]


def test_the_form_refuses_another_key_during_a_change(shop: Install, gold: Audience, new: ThreadedSandbox) -> None:
    begin(shop, new)
    after = Install.objects.get()
    after.odp_api_key = "third.key"
    assert "under way" in guards.refusals(shop, after)["odp_api_key"]


# --- what begins a change, and what doesn't ------------------------------------------------------------------


def test_another_key_of_the_same_account_is_found_out(odp: ThreadedSandbox, shop: Install, gold: Audience) -> None:
    """Emptying the old account would empty the new one. Here the host has another name, and not the key."""
    same = Connection("", odp.url.replace("127.0.0.1", "localhost"), odp.private_key)
    assert changes.begin_account(Install.objects.get(), same, empties=True, by="kim", reason="a test")
    change = finish(shop)
    assert "the same ODP account" in change.problem
    assert members(odp) == BEFORE
    assert segments(odp) == ["lytics_gold"]
    assert Install.objects.get().odp_host == odp.url


def test_accounts_that_can_not_be_told_apart_end_the_change(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox
) -> None:
    odp.fault({"method": "PUT"}, {"status": 400, "body": {"title": "no more audiences"}})
    begin(shop, new, empties=True)
    change = finish(shop)
    assert "no more audiences" in change.problem
    assert "still sends to the old account" in change.problem
    assert segments(new) == []


def test_a_change_is_refused_with_its_reason(odp: ThreadedSandbox, shop: Install, new: ThreadedSandbox) -> None:
    def why(to: Connection) -> str:
        return changes.problem_of_account(Install.objects.get(pk=shop.pk), to)

    assert "can be entered in its form" in why(target(new))
    audience_with_members(shop)
    assert why(target(new)) == ""
    assert "has already" in why(Connection("", odp.url, odp.private_key.partition(".")[0] + ".rotated"))
    assert "could not be used" in why(Connection("", new.url, "unknown.key"))
    assert "blanks" in why(Connection("", new.url, "two words"))
    assert "ODP host" in why(Connection("", "ftp://x", KEY))
    other = make_install(new, odp_api_key=KEY, name="Other")
    make_audience(other)
    assert "The install Other uses the ODP id lytics_gold" in why(target(new))
    Audience.objects.filter(install=other).update(odp_id="lytics_other")
    assert forgetting.ask(Install.objects.get(pk=shop.pk), "kim", tell_odp=False, by="dpo")
    assert "being forgotten" in why(target(new))
    forgetting.advance_all()
    begin(shop, new)
    assert "under way" in why(target(new))


def test_no_install_changes_to_an_account_that_another_one_is_emptying(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox
) -> None:
    """Both have audiences of the same ODP ids, so the exits of one would remove the members of the other."""
    with ThreadedSandbox(Options(private_key="third.account", settings=UNLIMITED)) as third:
        other = make_install(third, name="Other", odp_api_key="third.account")
        drafts.note_key(other.pk, problem="")
        audience_with_members(Install.objects.get(pk=other.pk))
        begin(shop, new, empties=True)
        until(shop, Phase.EMPTY)
        to_old = Connection("", odp.url, odp.private_key)
        other = Install.objects.get(pk=other.pk)
        assert "is changing to or from this account" in changes.problem_of_account(other, to_old)
        assert finish(shop).problem == ""
        assert changes.problem_of_account(other, to_old) == ""


def test_of_two_changes_to_one_account_that_began_at_once_only_one_goes_on(
    shop: Install, gold: Audience, new: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was checked before the other one was stored."""
    with ThreadedSandbox(Options(private_key="third.account", settings=UNLIMITED)) as third:
        other = make_install(third, name="Other", odp_api_key="third.account")
        drafts.note_key(other.pk, problem="")
        audience_with_members(Install.objects.get(pk=other.pk))
        begin(shop, new)
        monkeypatch.setattr(account_changes, "problem_of", lambda install, to: "")
        begin(other, new)
        assert finish(other).problem.startswith(f"The install {shop} is changing to or from this account.")
        assert finish(shop).problem == ""


@pytest.mark.parametrize("has_log", [True, False], ids=["", "old events are deleted"])
def test_an_account_that_shows_no_member_is_not_switched_to(
    shop: Install, gold: Audience, new: ThreadedSandbox, settings: Settings, has_log: bool
) -> None:
    """ODP accepts all writes and shows no member, as without consent."""
    if not has_log:
        Event.objects.all().delete()
    settings.CHANGE_VERIFY_SECONDS = 0.001
    for path in ("/v3/profiles", "/v3/lists/subscriptions"):
        body = {"title": "Accepted", "status": 202, "timestamp": "2026-01-01T00:00:00Z"}
        new.fault({"path": path, "method": "POST"}, {"status": 202, "body": body})
    begin(shop, new)
    change = finish(shop)
    assert "differ between the new account and the ledger" in change.problem
    assert "still sends to the old account" in change.problem
    assert Install.objects.get().odp_host == shop.odp_host


def test_the_dry_run_counts_and_asks_odp_nothing(odp: ThreadedSandbox, shop: Install) -> None:
    Install.objects.update(requests_per_second=10)
    audience_with_members(shop)
    since = len(odp.requests())
    plan = account_changes.plan(Install.objects.get())
    assert (plan.audiences, plan.members, plan.requests, plan.seconds) == (1, 3, 2, 0.2)
    assert len(odp.requests()) == since


# --- its page ------------------------------------------------------------------------------------------------


def test_the_page_of_an_install_begins_shows_and_stops_a_change(
    odp: ThreadedSandbox, shop: Install, gold: Audience, new: ThreadedSandbox, operator: Client
) -> None:
    answers = {"odp_api_key": KEY, "odp_host": f"{new.url}/", "old": "empty", "reason": "a test"}
    page = press(operator, "change-account", shop, **answers)
    assert "1 audience with 3 members" in page
    change = GuidedChange.objects.get()
    assert (change.empties, change.by, change.reason, change.other_host) == (True, "operator", "a test", new.url)
    until(shop, Phase.MOVE)
    opened = operator.get(f"/admin/audiences/install/{shop.pk}/change/").content.decode()
    assert "Change under way" in opened
    assert "1 of 1 audience copied" in opened
    assert KEY not in opened
    press(operator, "stop-change", shop)
    assert "Stopped by operator" in finish(shop).problem
    assert Install.objects.get().odp_host == odp.url


def test_a_wrong_key_is_refused_on_the_page(
    shop: Install, gold: Audience, new: ThreadedSandbox, operator: Client
) -> None:
    address = f"/admin/audiences/install/{shop.pk}/change-account/"
    asked = hidden(operator.get(address).content.decode())
    answers = {"odp_api_key": "unknown.key", "odp_host": new.url, "old": "leave", "reason": "x"}
    assert "could not be used" in operator.post(address, {**asked, **answers}).content.decode()
    assert not GuidedChange.objects.exists()


def test_a_viewer_does_not_begin_a_change(shop: Install, gold: Audience, viewer: Client) -> None:
    assert viewer.get(f"/admin/audiences/install/{shop.pk}/change-account/").status_code == 403


def test_the_form_with_its_locked_account_leads_to_the_change(shop: Install, gold: Audience) -> None:
    other = Install.objects.get()
    other.odp_host = "http://127.0.0.1:9"
    assert "Press Change account" in guards.refusals(shop, other)["odp_host"]


def test_the_command_shows_begins_and_stops_a_change(
    shop: Install, gold: Audience, new: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(*arguments: str, key: str = KEY) -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{key}\n"))
        said = io.StringIO()
        call_command("change_account", shop.public_id, "--json", *arguments, stdout=said)
        return json.loads(said.getvalue())

    shown = command()
    assert (shown["begun"], shown["problem"], shown["audiences"], shown["members"]) == (False, "", 1, 3)
    yes = ("--odp-host", new.url, "--region", "eu", "--yes", "--reason", "a test")
    with pytest.raises(CommandError, match="could not be used"):
        command(*yes, key="unknown.key")
    with pytest.raises(CommandError, match="must say something"):
        command("--yes")
    for words in ((), ("--empty-old",)):
        GuidedChange.objects.all().delete()
        assert command(*yes, *words)["begun"]
        change = GuidedChange.objects.get()
        assert (change.empties, change.other_region, change.other_host) == (bool(words), "eu", new.url)
    with pytest.raises(CommandError, match="under way"):
        command(*yes)
    assert command("--stop")["stopped"]
    with pytest.raises(CommandError, match="No change"):
        command("--stop")
