"""Retiring an audience: its members leave it in ODP, it is deleted there, and only a person brings it back.

Each step runs as a worker would run it, so that other things can happen between two steps.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.admin.pages import OperatorAdmin
from audiences.delivery import holds, provision, unmaking
from audiences.front.alerts import page as admin_page
from audiences.insight import failures, probes, stalled_work, state, trials
from audiences.models import Audience, Event, Install, Lane, Membership, Retirement, Run, Twin
from audiences.operations import other_id, prefixes, reconcile, resends, retiring, take_over, twins
from audiences.receiving import backlog, ingest
from odp.mechanisms import MECHANISMS
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import (
    assert_all_is_well,
    drain_all,
    enter,
    give_up,
    happen,
    hold_runs_out,
    lane_of,
    ledger_of,
    make_audience,
    make_checked_install,
    make_install,
    making_runs_out,
    numbered,
    time_passes,
)
from tests.messages import body, message
from tests.test_twins import change_definition
from tests.threads import PATIENCE, Gate, eventually, start, waiting_for_a_lock

pytestmark = pytest.mark.django_db(transaction=True)

SEGMENT = "/v3/segments/lytics_gold"
DAY = 86_400_000_000_000
MECHANISM_NAMES = [name for name in MECHANISMS if name != "passthrough"]


@pytest.fixture
def shop(odp: ThreadedSandbox) -> Install:
    return make_checked_install(odp)


@pytest.fixture
def gold(shop: Install) -> Audience:
    """An audience with the members kim and lee, and with max, who left."""
    made = make_audience(shop, provisioned=False)
    enter(made, "kim", "lee", "max", at=DAY)
    happen(made, ("max", "exit", 2 * DAY))
    drain_all(shop)
    return made


def steps(audience: Audience) -> None:
    """Deliveries, steps of retirements and resends, in turn, until nothing moves any more."""
    for _ in range(200):
        moved = drain_all(audience.install)
        retirements = Retirement.objects.filter(retiring.UNFINISHED, audience__install=audience.install)
        advanced = [retiring.advance(pk) for pk in retirements.values_list("pk", flat=True)]
        resends.advance_all(audience.install_id, seconds=PATIENCE)
        if not moved and not any(advanced) and not drain_all(audience.install):
            return
    raise AssertionError("it never comes to an end")


def retire(audience: Audience) -> Retirement:
    assert retiring.retire(audience, by="sam", reason="left the job")
    return Retirement.objects.get(audience=audience, restored_at=None)


def retired(audience: Audience) -> Retirement:
    retire(audience)
    steps(audience)
    found = Retirement.objects.get(audience=audience, restored_at=None)
    assert found.ended_at is not None
    return found


def is_in_odp(odp: ThreadedSandbox) -> bool:
    return bool(odp.odp("GET", SEGMENT)[0] == 200)


def members(odp: ThreadedSandbox) -> list[str]:
    return odp.members("lytics_gold")


def word(audience: Audience) -> str:
    return state.of_lane(Lane.objects.select_related("audience__install").get(pk=audience.pk)).word


def read(audience: Audience) -> Audience:
    return Audience.objects.select_related("install", "lane").get(pk=audience.pk)


def press(client: Client, verb: str, thing: Any, **answers: str) -> Any:
    kind = "audience" if isinstance(thing, Audience) else "install"
    address = reverse(f"admin:audiences_{kind}_{verb}", args=[thing.pk])
    asked = client.get(address)
    if asked.status_code != 200:
        return asked
    seen = asked.context["hidden"]["seen"]
    return client.post(address, {"seen": seen, "reason": "known since May", **answers}, follow=True)


def alerts(client: Client, text: str) -> list[Any]:
    return [one for one in client.get(reverse("admin:index")).context["alerts"] if text in one.what]


# --- what it does in ODP --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", MECHANISM_NAMES)
def test_all_members_leave_and_the_audience_is_deleted_and_its_field_stays(
    odp: ThreadedSandbox, mechanism: str
) -> None:
    shop = make_install(odp, mechanism=mechanism)
    gold = make_audience(shop, provisioned=False)
    enter(gold, *numbered(30), at=DAY)
    drain_all(shop)
    retirement = retire(gold)
    while Retirement.objects.get(pk=retirement.pk).emptied_at is None:
        retiring.advance(retirement.pk)
    drain_all(shop)
    assert members(odp) == []
    assert is_in_odp(odp)
    steps(gold)
    assert not is_in_odp(odp)
    kept = "/v3/schema/objects/customers/fields/lytics_gold" if mechanism == "attribute" else "/v3/lists"
    assert "lytics_gold" in str(odp.odp("GET", kept))
    assert word(gold) == "retired"
    assert (read(gold).provisioned_at, lane_of(gold).member_count) == (None, 0)
    assert_all_is_well(gold)


def test_the_press_of_retire_counts_no_rows(gold: Audience) -> None:
    """Counting ten million members takes longer than DATABASE_WEB_SECONDS."""
    Lane.objects.filter(pk=gold.pk).update(member_count=7)
    assert retire(gold).total == 7


def test_history_stays(gold: Audience) -> None:
    retirement = retired(gold)
    assert (retirement.total, retirement.done, retirement.by, retirement.reason) == (2, 2, "sam", "left the job")
    assert Membership.objects.filter(audience=gold).count() == 3
    assert read(gold).last_sequence == 6
    assert retirement.left_in_odp == ""


def test_a_definition_that_a_person_changed_is_left_in_odp_and_said(
    odp: ThreadedSandbox, gold: Audience, boss: Client
) -> None:
    change_definition(odp)
    retirement = retired(gold)
    assert "was left in ODP, because somebody gave it a definition that isn't ours" in retirement.left_in_odp
    assert is_in_odp(odp)
    page = boss.get(reverse("admin:audiences_audience_change", args=[gold.pk])).content.decode()
    assert "was left in ODP" in page


def test_an_audience_with_a_definition_that_a_person_accepted_is_deleted(odp: ThreadedSandbox, gold: Audience) -> None:
    change_definition(odp)
    twins.look(gold.install_id)
    assert provision.accept(gold.pk, read(gold).foreign_definition)
    assert retired(gold).left_in_odp == ""
    assert not is_in_odp(odp)


def test_an_audience_that_another_install_uses_too_stays_in_odp(odp: ThreadedSandbox, gold: Audience) -> None:
    make_audience(make_install(odp, name="Twin"))
    assert "The install Twin uses the real-time audience lytics_gold too" in retired(gold).left_in_odp
    assert is_in_odp(odp)


def test_an_audience_that_was_never_in_odp_is_retired_without_a_request(odp: ThreadedSandbox, shop: Install) -> None:
    new = make_audience(shop, provisioned=False)
    enter(new, "kim")
    holds.block_audience(new.pk, "its field is a string there")
    holds.unblock(lane_of(new))
    holds.block_audience(new.pk, "its field is a string there")
    before = len(odp.requests())
    retired(new)
    assert len(odp.requests()) == before
    assert word(new) == "retired"
    assert (lane_of(new).blocked_at, lane_of(new).lifted_since_at) == (None, None)
    assert backlog.of(shop.pk) == 0


def test_a_creation_that_failed_is_no_trouble_once_its_audience_is_retired(
    odp: ThreadedSandbox, shop: Install, boss: Client
) -> None:
    odp.fault({"path": SEGMENT}, {"status": 503})
    new = make_audience(shop, provisioned=False)
    enter(new, "kim")
    drain_all(shop)
    assert alerts(boss, "can't be created")
    retired(new)
    assert not alerts(boss, "can't be created")
    hour, reason = timedelta(hours=1), f"{provision.UNEXPECTED}KeyError"
    held = {"hold_failures": 2, "hold_reason": reason, "hold_since_at": now() - hour, "hold_until_at": now() + hour}
    Audience.objects.filter(pk=new.pk).update(**held)  # as an audience that a version before has retired
    assert not alerts(boss, "can't be created")
    assert stalled_work.stuck() is None


def test_an_audience_deleted_in_odp_already_is_retired(odp: ThreadedSandbox, gold: Audience) -> None:
    odp.odp("DELETE", SEGMENT)
    assert retired(gold).left_in_odp == ""


@pytest.mark.parametrize("answer", [{"status": 503}, {"status": 400}, {"status": 404, "html": "<html></html>"}])
def test_a_deletion_that_fails_is_tried_again_and_shown(
    odp: ThreadedSandbox, gold: Audience, boss: Client, answer: dict[str, Any]
) -> None:
    odp.fault({"path": SEGMENT, "method": "DELETE"}, answer)
    retirement = retire(gold)
    steps(gold)
    assert Retirement.objects.get(pk=retirement.pk).ended_at is None
    assert read(gold).hold_failures == 1
    (alert,) = alerts(boss, "is being retired")
    assert "It waits:" in alert.why
    assert word(gold) == "retiring"
    odp.clear_faults()
    Audience.objects.update(hold_until_at=now() + timedelta(minutes=1))
    steps(gold)
    assert Retirement.objects.get(pk=retirement.pk).ended_at is None, "its next try is not due"
    hold_runs_out(gold.install)
    steps(gold)
    assert Retirement.objects.get(pk=retirement.pk).ended_at is not None
    assert read(gold).hold_failures == 0
    assert not is_in_odp(odp)


# --- beside live traffic --------------------------------------------------------------------------------------


def test_customers_who_enter_while_it_is_retired_leave_with_the_last_exits(
    odp: ThreadedSandbox, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retiring, "CHUNK", 1)
    retirement = retire(gold)
    assert retiring.advance(retirement.pk)
    enter(gold, "ann", at=3 * DAY)  # before all who were passed, in the order of the walk
    drain_all(gold.install)
    assert retiring.advance(retirement.pk)
    enter(gold, "kim", "zoe", at=4 * DAY)  # kim once more; neither is delivered yet
    happen(gold, ("zoe", "change", 5 * DAY))
    while Retirement.objects.get(pk=retirement.pk).emptied_at is None:
        retiring.advance(retirement.pk)
    drain_all(gold.install)
    assert members(odp) == []
    assert lane_of(gold).member_count == 0
    assert {row[0] for row in ledger_of(gold).values()} == {False}
    steps(gold)
    assert word(gold) == "retired"


def test_an_exit_of_lytics_that_arrives_late_is_still_newer_than_the_entry(
    odp: ThreadedSandbox, gold: Audience
) -> None:
    """Lee left before the retirement, and the call with it arrives after. Taken back, lee stays out."""
    retired(gold)
    happen(gold, ("lee", "exit", 2 * DAY))
    assert retiring.take_back(gold, by="sam", reason="back in the job")
    steps(gold)
    assert members(odp) == ["kim"]


def test_a_call_during_the_last_step_comes_after_the_end_of_the_log(
    gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    retirement = retire(gold)
    retiring.advance(retirement.pk)
    enter(gold, "zoe", at=3 * DAY)
    still_members = retiring._still_members
    calls: list[Any] = []

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        calls.extend(start(lambda: enter(gold, "ann", at=4 * DAY)))
        eventually(lambda: waiting_for_a_lock() or calls[0].done())
        return still_members(*args, **kwargs)

    monkeypatch.setattr(retiring, "_still_members", meanwhile)
    assert retiring.advance(retirement.pk)
    calls[0].result(PATIENCE)
    steps(gold)
    assert {row[0] for row in ledger_of(gold).values()} == {False}
    assert "ann" not in ledger_of(gold)


def test_events_after_its_end_are_held(odp: ThreadedSandbox, gold: Audience) -> None:
    retirement = retire(gold)
    while Retirement.objects.get(pk=retirement.pk).emptied_at is None:
        retiring.advance(retirement.pk)
    assert not resends.resync(gold, by="sam", reason="x"), "its events would be held"
    enter(gold, "ann", at=4 * DAY)  # before its exits are delivered
    steps(gold)
    enter(gold, "zoe", at=5 * DAY)
    drain_all(gold.install)
    assert "ann" not in ledger_of(gold)
    assert not is_in_odp(odp)
    assert lane_of(gold).delivered_sequence == lane_of(gold).retired_sequence
    assert backlog.of(gold.install_id) == 0


def test_held_events_are_not_stuck_work(gold: Audience) -> None:
    retired(gold)
    enter(gold, "ann", at=4 * DAY)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE audiences_event SET received_at = received_at - interval '1 hour'")
        cursor.execute("UPDATE audiences_delivery SET closed_at = closed_at - interval '1 hour'")
    assert stalled_work.stuck() is None


def test_too_many_waiting_events_let_the_end_wait(gold: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retiring, "LAST", 3)
    retirement = retire(gold)
    enter(gold, *numbered(4), at=3 * DAY)
    retiring.advance(retirement.pk)
    assert not retiring.advance(retirement.pk)
    assert Retirement.objects.get(pk=retirement.pk).emptied_at is None
    drain_all(gold.install)  # four members are more than three: they are passed once more
    steps(gold)
    assert word(gold) == "retired"
    assert lane_of(gold).member_count == 0


def test_those_who_left_by_it_enter_again_chunk_by_chunk(
    odp: ThreadedSandbox, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    retired(gold)
    monkeypatch.setattr(retiring, "CHUNK", 1)
    assert retiring.take_back(gold, by="sam", reason="x")
    steps(gold)
    assert members(odp) == ["kim", "lee"]


def test_an_unexpected_error_of_a_deletion_puts_the_audience_on_hold(
    gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no such mechanism")

    monkeypatch.setattr(unmaking, "_delete", fail)
    holds.end_log(gold.pk, gold.last_sequence)
    assert unmaking.unmake(gold) is None
    held = read(gold)
    assert held.making_token is None
    assert held.hold_reason == "Unexpected error: no such mechanism"
    assert held.hold_until_at is not None
    assert held.hold_until_at > now()


def test_a_deletion_is_given_up_at_once_when_its_session_is_lost(
    gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*args: Any) -> Any:
        raise OperationalError("the server closed the connection")

    Lane.objects.filter(pk=gold.pk).update(retired_sequence=4)
    monkeypatch.setattr(unmaking, "_delete", lost)
    with pytest.raises(OperationalError):
        unmaking.unmake(gold)
    assert (read(gold).making_token, read(gold).hold_failures) == (None, 0)


def test_an_audience_that_was_taken_back_meanwhile_is_not_deleted(odp: ThreadedSandbox, gold: Audience) -> None:
    assert unmaking.unmake(gold) is None
    assert is_in_odp(odp)


def test_an_audience_that_a_worker_makes_now_is_not_retired_before_that_ends(shop: Install) -> None:
    new = make_audience(shop, provisioned=False)
    enter(new, "kim")
    assert provision.claim(shop.pk)
    retirement = retire(new)
    ended = []
    for _ in range(2):
        retiring.advance(retirement.pk)
        ended.append(Retirement.objects.get(pk=retirement.pk).ended_at is not None)
        making_runs_out(new)
    assert ended == [False, True]


def test_an_audience_that_is_retired_while_a_worker_claims_its_creation_is_not_made(shop: Install) -> None:
    new = make_audience(shop, provisioned=False)
    enter(new, "kim")
    retirement = retire(new)
    assert claim_behind(shop, lambda: retiring.advance(retirement.pk)) is None
    assert word(new) == "retired"
    assert read(new).making_token is None


def test_a_deletion_is_not_joined_by_the_creation_that_somebody_asked_for(gold: Audience) -> None:
    Lane.objects.filter(pk=gold.pk).update(retired_sequence=99)
    provision.look_again(gold.pk)
    assert claim_behind(gold.install, lambda: unmaking._lease(gold.pk)) is None


def claim_behind(install: Install, change: Callable[[], object]) -> provision.Making | None:
    """Claim the creation of an audience, in a statement that began before ``change`` was committed."""
    changed = Gate(2)

    def commit_late() -> None:
        with transaction.atomic():
            changed.after(change)()
            eventually(waiting_for_a_lock)

    def claim() -> provision.Making | None:
        changed.after(lambda: None)()
        return provision.claim(install.pk)

    committed, claimed = start(commit_late, claim)
    committed.result(PATIENCE)
    found: provision.Making | None = claimed.result(PATIENCE)
    return found


def test_a_resend_of_the_audience_ends_before_its_log_does(gold: Audience) -> None:
    retirement = retire(gold)
    retiring.advance(retirement.pk)
    assert resends.resync(gold, by="sam", reason="x")
    drain_all(gold.install)
    assert not retiring.advance(retirement.pk)
    resends.advance_all(gold.install_id, seconds=PATIENCE)
    steps(gold)
    assert word(gold) == "retired"
    assert lane_of(gold).member_count == 0


def test_a_full_backlog_lets_it_wait(gold: Audience, settings: Any) -> None:
    settings.BACKLOG_HIGH_WATER = 0
    retirement = retire(gold)
    assert not retiring.advance(retirement.pk)
    assert Retirement.objects.get(pk=retirement.pk).done == 0


# --- processes die --------------------------------------------------------------------------------------------


def test_a_chunk_is_complete_or_absent(gold: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object, **__: object) -> None:
        raise RuntimeError("killed")

    retirement = retire(gold)
    with monkeypatch.context() as patched:
        patched.setattr(retiring, "_move", dies)
        with pytest.raises(RuntimeError):
            retiring.advance(retirement.pk)
    assert read(gold).last_sequence == 4
    steps(gold)
    assert word(gold) == "retired"
    assert Retirement.objects.get(pk=retirement.pk).done == 2


def test_a_worker_that_died_before_or_after_the_deletion_is_followed_by_another(
    odp: ThreadedSandbox, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    retirement = retire(gold)
    while Retirement.objects.get(pk=retirement.pk).emptied_at is None:
        retiring.advance(retirement.pk)
    drain_all(gold.install)
    with monkeypatch.context() as patched:  # its lease outlives it, as after kill -9
        patched.setattr(unmaking, "end", lambda making: False)
        retiring.advance(retirement.pk)
    assert not is_in_odp(odp)
    assert not retiring.advance(retirement.pk)
    assert Retirement.objects.get(pk=retirement.pk).ended_at is None
    making_runs_out(gold)
    steps(gold)
    assert Retirement.objects.get(pk=retirement.pk).ended_at is not None


def test_a_worker_that_died_after_the_deletion_loses_no_word_about_what_is_left(
    odp: ThreadedSandbox, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(audience: Audience) -> None:
        raise RuntimeError("killed")

    make_audience(make_install(odp, name="Twin"))
    retirement = retire(gold)
    with monkeypatch.context() as patched:
        patched.setattr(twins, "forget", dies)
        with pytest.raises(RuntimeError):
            steps(gold)
    assert Retirement.objects.get(pk=retirement.pk).ended_at is None
    assert lane_of(gold).retired_at is None
    making_runs_out(gold)
    steps(gold)
    assert word(gold) == "retired"
    assert "uses the real-time audience lytics_gold too" in Retirement.objects.get(pk=retirement.pk).left_in_odp


def test_another_worker_s_turn_is_left_to_it(gold: Audience) -> None:
    retirement = retire(gold)
    while Retirement.objects.get(pk=retirement.pk).emptied_at is None:
        retiring.advance(retirement.pk)
    drain_all(gold.install)
    Audience.objects.filter(pk=gold.pk).update(
        making_token="9d3f1f60-0000-4000-8000-000000000000", making_until_at=now() + timedelta(seconds=60)
    )
    assert not retiring.advance(retirement.pk)
    assert Retirement.objects.get(pk=retirement.pk).ended_at is None


# --- nothing brings it back -----------------------------------------------------------------------------------


def test_no_look_resync_or_reconciling_makes_it_again(odp: ThreadedSandbox, gold: Audience) -> None:
    Twin.objects.create(audience=gold, looked_at=now(), finding="missing", problem="gone", since_at=now())
    retired(gold)
    assert not Twin.objects.exists()
    twins.look(gold.install_id)
    provision.look_again(gold.pk)
    assert not resends.resync(gold, by="sam", reason="x")
    reconcile.reconcile()
    time_passes(3_600)
    drain_all(gold.install)
    assert provision.claim(gold.install_id) is None
    assert not is_in_odp(odp)
    assert not Twin.objects.exists()


def test_a_look_between_deletion_and_its_end_makes_nothing_again(odp: ThreadedSandbox, gold: Audience) -> None:
    retirement = retire(gold)
    while Retirement.objects.get(pk=retirement.pk).emptied_at is None:
        retiring.advance(retirement.pk)
    odp.odp("DELETE", SEGMENT)
    twins.look(gold.install_id)
    assert read(gold).look_asked_at is None


def test_a_request_without_a_final_answer_asks_no_question_of_a_retired_audience(
    odp: ThreadedSandbox, gold: Audience, settings: Any
) -> None:
    settings.RECONCILE_AFTER_SECONDS = 0
    odp.fault({"path": "/v3/profiles", "times": 1}, {"close": "after"})
    enter(gold, "ann", at=3 * DAY)
    drain_all(gold.install)
    Install.objects.exclude(backoff_until_at=None).update(backoff_until_at=now())
    retired(gold)
    reconcile.reconcile()
    assert read(gold).last_sequence == lane_of(gold).retired_sequence


def test_the_test_customer_does_not_bring_its_audience_back(odp: ThreadedSandbox, shop: Install) -> None:
    trial = trials.start(shop, by="sam")
    assert trial is not None
    trials.begin(shop.pk)
    for leg in trials.LEGS:
        trials.send_straight_in(trial, leg)
        drain_all(shop)
    trials.close(trial)
    audience = trials.audience_of(shop)
    assert audience is not None
    retired(audience)
    assert trials.start(shop, by="sam") is None
    assert probes.start_due() == 0
    assert probes.proof_of(shop).word == "none"
    assert odp.odp("GET", "/v3/segments/lytics_sync_test")[0] == 404


# --- taken back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", MECHANISM_NAMES)
def test_taken_back_it_has_its_members_and_what_came_since(odp: ThreadedSandbox, mechanism: str) -> None:
    shop = make_install(odp, mechanism=mechanism)
    gold = make_audience(shop, provisioned=False)
    enter(gold, "kim", "lee", "max", at=DAY)
    drain_all(shop)
    retired(gold)
    happen(gold, ("lee", "exit", 3 * DAY), ("zoe", "enter", 3 * DAY))
    assert retiring.take_back(gold, by="sam", reason="back in the job")
    steps(gold)
    assert members(odp) == ["kim", "max", "zoe"]
    assert word(gold) == "up to date"
    assert_all_is_well(gold)
    assert retiring.current(gold) is None


@pytest.mark.parametrize("taken", range(6))
def test_it_can_be_stopped_at_each_step_and_ends_as_if_it_had_not_begun(
    odp: ThreadedSandbox, gold: Audience, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    monkeypatch.setattr(retiring, "CHUNK", 1)
    retirement = retire(gold)
    for step in range(taken):
        retiring.advance(retirement.pk)
        if step % 2:
            drain_all(gold.install)
    assert retiring.take_back(gold, by="sam", reason="a mistake")
    steps(gold)
    assert members(odp) == ["kim", "lee"]
    assert word(gold) == "up to date"
    assert_all_is_well(gold)
    assert Retirement.objects.get(pk=retirement.pk).restored_at is not None


def test_taken_back_while_odp_deletes_it_it_is_made_again(
    odp: ThreadedSandbox, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = unmaking._delete

    def meanwhile(*args: Any) -> Any:
        result = delete(*args)
        assert retiring.take_back(gold, by="sam", reason="a mistake")
        assert read(gold).look_asked_at is not None
        assert provision.claim(gold.install_id) is None  # the lease keeps the maker away
        return result

    monkeypatch.setattr(unmaking, "_delete", meanwhile)
    retirement = retire(gold)
    steps(gold)
    assert Retirement.objects.get(pk=retirement.pk).ended_at is None
    assert members(odp) == ["kim", "lee"]
    assert word(gold) == "up to date"


def test_it_can_be_retired_and_taken_back_again(odp: ThreadedSandbox, gold: Audience) -> None:
    for _ in range(3):
        retired(gold)
        assert not is_in_odp(odp)
        assert retiring.take_back(gold, by="sam", reason="back")
        steps(gold)
        assert members(odp) == ["kim", "lee"]
    assert Retirement.objects.filter(restored_at__isnull=False).count() == 3


@pytest.mark.parametrize("mechanism", MECHANISM_NAMES)
@pytest.mark.parametrize("when", ["waiting before", "before the end", "after the end", "when taken back"])
def test_an_exit_at_the_time_of_the_entry_stays_the_last_word(odp: ThreadedSandbox, mechanism: str, when: str) -> None:
    """Lytics' exit wins the tie with its entry, although the times of retiring and taking back are just after both."""
    shop = make_install(odp, mechanism=mechanism)
    gold = make_audience(shop, provisioned=False)
    enter(gold, "kim", "lee", at=DAY)
    drain_all(shop)
    if when == "waiting before":
        happen(gold, ("kim", "exit", DAY))
    retirement = retire(gold)
    retiring.advance(retirement.pk)
    if when == "before the end":
        happen(gold, ("kim", "exit", DAY))
        drain_all(shop)
    steps(gold)
    if when == "after the end":
        happen(gold, ("kim", "exit", DAY))
    assert retiring.take_back(gold, by="sam", reason="back in the job")
    if when == "when taken back":
        happen(gold, ("kim", "exit", DAY))
    steps(gold)
    assert members(odp) == ["lee"]
    assert_all_is_well(gold)


@pytest.mark.parametrize("last", ["exit", "enter"])
@pytest.mark.parametrize("when", ["after the end", "when taken back"])
def test_a_late_event_within_the_second_of_the_entry_is_the_last_word(
    odp: ThreadedSandbox, settings: Any, when: str, last: str
) -> None:
    """A passthrough audience is retired with times of whole seconds, so what Lytics sends late may lie between them."""
    settings.ODP_PASSTHROUGH_DEFINITION = {"passthrough": {}}
    gold = make_audience(make_install(odp, mechanism="passthrough"), provisioned=False)
    enter(gold, "kim", "lee", at=DAY)
    drain_all(gold.install)
    retired(gold)
    late = [("kim", "exit", DAY + 300_000_000)]
    if last == "enter":
        late.append(("kim", "enter", DAY + 600_000_000))
    if when == "after the end":
        happen(gold, *late)
    assert retiring.take_back(gold, by="sam", reason="back in the job")
    if when == "when taken back":
        happen(gold, *late)
    steps(gold)
    assert {who: row[0] for who, row in ledger_of(gold).items()} == {"kim": last == "enter", "lee": True}
    assert_all_is_well(gold)


def test_taken_back_it_has_nobody_of_a_request_that_odp_applied_late(
    odp: ThreadedSandbox, gold: Audience, settings: Any
) -> None:
    """Nothing is reconciled while the audience is retired, and its field still has the late entry."""
    settings.RECONCILE_AFTER_SECONDS = 0
    enter(gold, "ann", at=3 * DAY)
    give_up(odp, gold.install, applied_after=0.6)
    happen(gold, ("ann", "exit", 4 * DAY))
    drain_all(gold.install)
    retired(gold)
    eventually(lambda: odp.customer("ann")["attributes"].get("lytics_gold"))
    reconcile.reconcile()
    assert retiring.take_back(gold, by="sam", reason="back in the job")
    steps(gold)
    assert members(odp) == ["kim", "lee"]
    assert_all_is_well(gold)


def test_it_is_retired_once(gold: Audience) -> None:
    retire(gold)
    assert not retiring.retire(gold, by="kim", reason="x")
    with pytest.raises(IntegrityError), transaction.atomic():
        Retirement.objects.create(audience=gold, by="kim", reason="x", began_sequence=0, total=0)
    assert retiring.take_back(gold, by="sam", reason="x")
    assert not retiring.take_back(gold, by="sam", reason="x")
    # Its members have to be entered again first.
    assert retiring.current(gold) is not None
    assert retiring.to_retire(gold.install) == []
    assert not retiring.retire(gold, by="kim", reason="x")


# --- its ODP id -----------------------------------------------------------------------------------------------


def test_a_new_segment_of_the_slug_gets_another_id_and_a_question(gold: Audience, boss: Client) -> None:
    """Within the install: the old id is taken over only when a person says so."""
    retired(gold)
    Audience.objects.filter(pk=gold.pk).update(slug="gold_club", latest_slug="gold_club", odp_id="lytics_gold_club")
    ingest.receive(gold.install, body(message()))
    new = Audience.objects.exclude(pk=gold.pk).select_related("install", "lane").get()
    assert new.odp_id != "lytics_gold_club"
    assert alerts(boss, "gold_club was recreated in Lytics")


def test_the_id_of_a_retired_audience_can_be_taken_over(odp: ThreadedSandbox, gold: Audience) -> None:
    retired(gold)
    happen(gold, ("late", "enter", 5 * DAY))
    new = make_audience(gold.install, "gold_2", provisioned=False)
    Audience.objects.filter(pk=new.pk).update(latest_slug="gold", slug="gold")
    time_passes(3_600)
    Run.objects.update(opened_at=now() - timedelta(days=1))
    enter(new, "ann", at=5 * DAY)
    assert take_over.problem_of(read(gold)) == ""
    assert take_over.take_over(read(new), read(gold), by="sam", reason="made anew")
    steps(new)
    assert read(new).odp_id == "lytics_gold"
    assert members(odp) == ["ann"]
    assert word(gold) == "retired"


def test_an_audience_that_is_being_retired_keeps_its_id_until_it_is_done(gold: Audience) -> None:
    retirement = retire(gold)
    assert "is being retired" in take_over.problem_of(read(gold))
    while Retirement.objects.get(pk=retirement.pk).emptied_at is None:
        retiring.advance(retirement.pk)
    assert "is being retired" in take_over.problem_of(read(gold))
    assert retiring.take_back(gold, by="sam", reason="x")
    drain_all(gold.install)
    assert "is being retired or taken back" in take_over.problem_of(read(gold))


def test_another_install_of_the_account_is_asked_before_it_reuses_a_retired_id(
    odp: ThreadedSandbox, gold: Audience, operator: Client
) -> None:
    retired(gold)
    twin = make_audience(make_install(odp, name="Twin"), provisioned=False)
    enter(twin, "ann")
    drain_all(twin.install)
    assert "which was retired" in lane_of(twin).block_reason
    assert not is_in_odp(odp)
    (alert,) = alerts(operator, "lytics_gold is blocked")
    assert "Reuse the retired id" in {button.label for button in alert.buttons}
    press(operator, "reuse-id", twin)
    drain_all(twin.install)
    assert members(odp) == ["ann"]
    assert retiring.take_back(gold, by="sam", reason="x")
    steps(gold)
    assert "uses the ODP id lytics_gold already" in lane_of(gold).block_reason
    assert members(odp) == ["ann"]


def test_a_member_whose_exit_odp_rejected_leaves_the_retired_id_that_another_install_reuses(
    odp: ThreadedSandbox, gold: Audience, operator: Client
) -> None:
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["kim"]}})
    retired(gold)
    odp.clear_faults()
    twin = make_audience(make_install(odp, name="Twin"), provisioned=False)
    enter(twin, "ann")
    drain_all(twin.install)
    press(operator, "reuse-id", twin)
    steps(twin)
    assert members(odp) == ["ann"]
    assert_all_is_well(twin)


def test_members_of_all_retired_audiences_with_the_id_leave_when_it_is_reused(
    odp: ThreadedSandbox, gold: Audience, operator: Client
) -> None:
    """ODP rejected the exit of one member of each. The second one's exits went out, except for its own member."""
    newest, refused = gold, ["kim"]
    for name, who in (("Second", "ann"), ("Third", "bob")):
        odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": refused}})
        retired(newest)
        odp.clear_faults()
        newest, refused = make_audience(make_install(odp, name=name), provisioned=False), [who]
        enter(newest, who)
        drain_all(newest.install)
        press(operator, "reuse-id", newest)
        steps(newest)
    assert members(odp) == ["bob"]
    assert_all_is_well(newest)


def test_a_retired_id_of_passthrough_audiences_is_not_reused(
    odp: ThreadedSandbox, operator: Client, settings: Settings
) -> None:
    """ODP would ignore each entry that is older than the exit of the same customer by the retirement."""
    settings.ODP_PASSTHROUGH_DEFINITION = {"passthrough": {}}
    shop, other = (make_checked_install(odp, name=name, mechanism="passthrough") for name in ("Shop", "Twin"))
    gold = make_audience(shop, provisioned=False)
    enter(gold, "kim", at=DAY)
    drain_all(shop)
    retired(gold)
    twin = make_audience(other, provisioned=False)
    enter(twin, "kim", at=DAY)
    drain_all(other)
    assert "Press Use another ODP id, because" in lane_of(twin).block_reason
    (alert,) = alerts(operator, "lytics_gold is blocked")
    assert "Reuse the retired id" not in {button.label for button in alert.buttons}
    assert not other_id.reuse(read(twin), by="sam")
    assert other_id.use(read(twin), "lytics_gold_2", by="sam", reason="x")
    steps(twin)
    assert odp.members("lytics_gold_2") == ["kim"]


def test_another_prefix_leaves_a_retired_id_as_it_was(gold: Audience) -> None:
    retired(gold)
    Install.objects.update(odp_prefix="lytics_eu_")
    assert prefixes.apply(gold.install, before="lytics_") == 0
    assert read(gold).odp_id == "lytics_gold"


# --- what people see and press --------------------------------------------------------------------------------


def test_the_button_says_beforehand_what_it_will_do_in_odp(boss: Client, gold: Audience) -> None:
    page = boss.get(reverse("admin:audiences_audience_retire", args=[gold.pk])).content.decode()
    for words in (
        "2 members of lytics_gold leave it in ODP",
        "Then the real-time audience is deleted in ODP",
        "The customer field stays",
        "stored and held",
    ):
        assert words in page


def test_retire_needs_the_role_admin_and_taking_back_an_operator(
    viewer: Client, operator: Client, boss: Client, gold: Audience
) -> None:
    for person in (viewer, operator):
        assert person.get(reverse("admin:audiences_audience_retire", args=[gold.pk])).status_code == 403
    press(boss, "retire", gold)
    assert Retirement.objects.get().reason == "known since May"
    assert viewer.get(reverse("admin:audiences_audience_take-back", args=[gold.pk])).status_code == 403
    press(operator, "take-back", gold)
    assert Retirement.objects.get().undone_reason == "known since May"


def test_a_retired_audience_is_shown_as_retired_and_offers_only_to_be_taken_back(boss: Client, gold: Audience) -> None:
    retired(gold)
    page = boss.get(reverse("admin:audiences_audience_change", args=[gold.pk])).content.decode()
    assert "left the job" in page
    admin: OperatorAdmin[Any] = admin_page(Audience)
    offered = {verb.name for verb in admin.verbs if verb.offered(admin.get_queryset(boss.get("/").wsgi_request).get())}
    assert offered == {"take-back"}
    listed = boss.get(reverse("admin:audiences_audience_changelist"), {"state": "retired"}).content.decode()
    assert "lytics_gold" in listed
    assert not alerts(boss, "lytics_gold")


def test_a_new_event_of_a_retired_audience_asks_on_the_front_page(boss: Client, gold: Audience) -> None:
    retired(gold)
    enter(gold, "zoe", at=5 * DAY)
    (alert,) = alerts(boss, "lytics_gold is retired and gets events")
    came_at = Event.objects.get(audience=gold, sequence=read(gold).last_sequence).received_at
    assert f"1 event came since it was retired, the last one at {came_at:%Y-%m-%d %H:%M} UTC" in alert.why
    assert [button.label for button in alert.buttons] == ["Take back"]
    assert word(gold) == "retired"


def test_the_front_page_shows_how_far_a_retirement_is_and_what_it_waits_for(
    boss: Client, shop: Install, gold: Audience
) -> None:
    retire(gold)
    holds.pause(read(gold).lane, by="sam", reason="x")
    (alert,) = alerts(boss, "lytics_gold is being retired")
    assert "0 of 2 exits are queued" in alert.why
    assert "the audience is paused" in alert.why
    Install.objects.update(
        backoff_until_at=now(), backoff_since_at=now(), backoff_failures=1, backoff_reason="503: busy"
    )
    (alert,) = alerts(boss, "lytics_gold is being retired")
    assert alert.why.endswith("It waits: the install is on hold. 503: busy.")


def test_all_audiences_of_an_install_are_retired_with_one_button(
    boss: Client, odp: ThreadedSandbox, shop: Install, gold: Audience
) -> None:
    silver = make_audience(shop, "silver", provisioned=False)
    enter(silver, "kim", "ann")
    drain_all(shop)
    page = boss.get(reverse("admin:audiences_install_retire-all", args=[shop.pk])).content.decode()
    assert "2 audiences of Shop: lytics_gold, lytics_silver" in page
    assert "4 members" in page
    press(boss, "retire-all", shop)
    steps(gold)
    assert [word(audience) for audience in (gold, silver)] == ["retired", "retired"]
    assert odp.odp("GET", "/v3/segments")[1]["segment_ids"] == []
    assert retiring.due() == []
    assert retiring.to_retire(shop) == []


def test_no_resend_begins_while_a_retirement_ends_the_log(gold: Audience) -> None:
    with transaction.atomic():
        holds.end_log(gold.pk, 9)
        (asked,) = start(lambda: resends.resync(gold, by="sam", reason="x"))
        eventually(lambda: waiting_for_a_lock() or asked.done())
    assert not asked.result(PATIENCE)


def test_an_install_that_is_off_lets_it_wait(gold: Audience) -> None:
    retire(gold)
    assert retiring.due() == [gold.install_id]
    Install.objects.update(enabled=False)
    assert retiring.due() == []
    retiring.advance_all(gold.install_id, seconds=PATIENCE)
    assert Retirement.objects.get().done == 0, "a resend may wake the worker"


def test_an_audience_that_somebody_has_locked_lets_it_wait(gold: Audience) -> None:
    retirement = retire(gold)
    with transaction.atomic():
        Audience.objects.select_for_update().get(pk=gold.pk)
        (step,) = start(lambda: retiring.advance(retirement.pk))
        assert not step.result(PATIENCE)
    assert Retirement.objects.get().done == 0


def test_retirements_take_turns_and_leave_the_slot_to_others_who_wait(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    hints: list[int] = []
    monkeypatch.setattr(retiring, "CHUNK", 1)
    silver = make_audience(shop, "silver", provisioned=False)
    enter(silver, "kim", "lee")
    drain_all(shop)
    retire(gold)
    retire(silver)
    monkeypatch.setattr(retiring, "wake_resend", hints.append)
    retiring.advance_all(shop.pk, seconds=5, gives_way=lambda: True)
    assert list(Retirement.objects.values_list("done", flat=True)) == [1, 1]
    assert hints == [shop.pk], "the rest has a hint of its own"
    retiring.advance_all(shop.pk, seconds=0)
    assert list(Retirement.objects.values_list("done", flat=True)) == [2, 2]
    assert hints == [shop.pk] * 2


def test_a_retirement_that_fails_does_not_delay_the_others(
    shop: Install, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    silver = make_audience(shop, "silver", provisioned=False)
    retire(gold)
    retire(silver)
    append = retiring._append

    def fails(audience: Audience, *args: Any) -> None:
        if audience.pk == gold.pk:
            raise RuntimeError("a bug")
        append(audience, *args)

    monkeypatch.setattr(retiring, "_append", fails)
    retiring.advance_all(shop.pk, seconds=PATIENCE)
    assert word(silver) == "retired"
    assert Retirement.objects.get(audience=gold).done == 0
    assert [failure.words for failure in failures.recent() if failure.task == "resend"] == ["RuntimeError: a bug"]
