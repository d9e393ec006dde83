"""Guided changes to another identifier field: all members leave under the old one and enter under the new one."""

import io
import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import lytics_account
from audiences.agreement import audits
from audiences.delivery import drafts, holds
from audiences.insight import trials
from audiences.models import Audience, Audit, GuidedChange, Install, Membership, Retirement
from audiences.operations import changes, guards, identifier_changes, identifier_steps, resends, retiring, twins
from audiences.receiving import ingest
from sandbox.odp.testing import ThreadedSandbox
from tests import guided
from tests.delivering import drain_all, hold_runs_out, lane_of, make_audience, make_install
from tests.guided import MOST, step, steps_with_deaths
from tests.lytics_api import Lytics
from tests.messages import body, message, transition
from tests.test_admin import hidden, press
from tests.threads import PATIENCE

pytestmark = pytest.mark.django_db

Phase = GuidedChange.Phase
AUDIENCE = "lytics_gold_club"


def mail(who: str) -> str:
    return f"{who}@example.com"


class People:
    """The audience in Lytics: each member has a Lytics ID and an address; calls and scans come from here."""

    def __init__(self, lytics: Lytics) -> None:
        self.members: dict[str, dict[str, Any]] = {}
        lytics.answer = self.answer

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any] | None:
        if not path.endswith("/scan"):
            return None
        data = list(self.members.values())
        return 200, {"data": data, "total": len(data), "_next": ""}

    def moves(self, shop: Install, who: str, event: str, *, ahead: timedelta = timedelta(0)) -> None:
        """The person enters or leaves in Lytics, and Lytics calls."""
        profile = {"_id": who, "email": mail(who)}
        if event == "enter":
            self.members[who] = profile
        else:
            self.members.pop(who, None)
        sent = message(transition(event, at=(now() + ahead).isoformat()), who=who)
        sent["data"]["email"] = mail(who)
        ingest.receive(Install.objects.get(pk=shop.pk), body(sent))


@pytest.fixture
def people(lytics: Lytics) -> People:
    return People(lytics)


@pytest.fixture
def shop(odp: ThreadedSandbox, people: People, settings: Settings) -> Install:
    """Kim, Lee and Mia are members, known by the Lytics ID."""
    settings.AUDIT_SETTLE_SECONDS = 0
    settings.AUDIT_LYTICS_REQUESTS_PER_SECOND = settings.AUDIT_ODP_REQUESTS_PER_SECOND = 1_000
    settings.WEBHOOK_READ_SECONDS = -identifier_steps.STORED_SECONDS
    made = make_install(odp)
    drafts.note_key(made.pk, problem="")
    lytics_account.set_token(made, "api-token")
    for who in ("kim", "lee", "mia", "pat"):
        people.moves(made, who, "enter")
    people.moves(made, "pat", "exit")
    drain_all(made)
    assert odp.members(AUDIENCE) == ["kim", "lee", "mia"]
    return Install.objects.get()


def begin(shop: Install, to: str = "email") -> GuidedChange:
    change = changes.begin_identifier(Install.objects.get(pk=shop.pk), to=to, by="kim", reason="a test")
    assert change is not None, changes.problem_of_identifier(shop)
    return change


def work(shop: Install) -> None:
    """Run the other tasks of the workers."""
    for _ in range(2):
        drain_all(shop)
        resends.advance_all(shop.pk, seconds=PATIENCE)
        Audit.objects.update(next_at=None)  # as if its waits were over
        audits.advance_all(shop.pk, seconds=PATIENCE)
    drain_all(shop)


def finish(shop: Install) -> GuidedChange:
    for _ in range(MOST):
        goes_on = step(shop)
        work(shop)
        if not goes_on:
            return GuidedChange.objects.filter(install=shop).latest("pk")
    raise AssertionError(GuidedChange.objects.values().latest("pk"))


def until(shop: Install, phase: str) -> None:
    for _ in range(MOST):
        if GuidedChange.objects.latest("pk").phase == phase:
            return
        step(shop)
    raise AssertionError(GuidedChange.objects.values().latest("pk"))


def until_worked(shop: Install, phase: str) -> None:
    """The same, with the other tasks of the workers between two steps."""
    while GuidedChange.objects.latest("pk").phase != phase:
        assert step(shop)
        work(shop)


# --- the change itself ---------------------------------------------------------------------------------------


def test_all_members_leave_under_the_old_field_and_enter_under_the_new_one(odp: ThreadedSandbox, shop: Install) -> None:
    begin(shop)
    change = finish(shop)
    assert (change.problem, change.done, change.total, change.left_out) == ("", 1, 1, {})
    assert Install.objects.get().identifier_field == "email"
    assert odp.members(AUDIENCE) == odp.members(AUDIENCE, "web_user_id") == [mail("kim"), mail("lee"), mail("mia")]
    newest = Audit.objects.first()
    assert newest is not None
    assert newest.differing == 0


def test_events_between_any_two_steps_end_right(odp: ThreadedSandbox, people: People, shop: Install) -> None:
    """At each step one customer enters and another one leaves in Lytics."""
    begin(shop)
    for number in range(MOST):
        people.moves(shop, f"new{number}", "enter")
        if number:
            people.moves(shop, f"new{number - 1}", "exit")
        if not step(shop):
            break
        work(shop)
    people.moves(shop, "kim", "exit")
    work(shop)
    assert GuidedChange.objects.get().problem == ""
    assert odp.members(AUDIENCE) == sorted(map(mail, people.members))


@pytest.mark.parametrize("when", guided.DEATHS)
def test_a_worker_that_dies_at_any_step_is_replaced(
    odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    begin(shop)
    for _ in steps_with_deaths(shop, monkeypatch, when, work=work):
        pass
    change = GuidedChange.objects.get()
    assert (change.problem, change.done) == ("", 1)
    assert change.ended_at is not None
    assert odp.members(AUDIENCE) == [mail("kim"), mail("lee"), mail("mia")]


def test_no_audit_begins_while_calls_may_come_that_were_read_by_the_old_field(
    shop: Install, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.WEBHOOK_READ_SECONDS = 60
    begin(shop)
    until(shop, Phase.CALLS)
    monkeypatch.setattr(identifier_steps, "now", lambda: now() + timedelta(minutes=10))  # the clock of this worker
    for _ in range(3):
        step(shop)
    change = GuidedChange.objects.get()
    assert change.phase == Phase.CALLS
    assert "read by _id" in change.waits_for
    assert not Audit.objects.exists()


def test_an_audit_from_before_the_switch_is_not_used(odp: ThreadedSandbox, shop: Install, settings: Settings) -> None:
    """Its scan may have read the members by the old field."""
    settings.WEBHOOK_READ_SECONDS = -identifier_steps.STORED_SECONDS
    audience = Audience.objects.get()
    old = audits.ask(audience, mode=Audit.Mode.FULL, by="schedule")
    assert old is not None
    begin(shop)
    until(shop, Phase.AUDIT)
    step(shop)
    change = GuidedChange.objects.get()
    assert (change.audit_id, change.waits_for) == (None, "Another audit of the audience is unfinished.")
    assert finish(shop).problem == ""
    assert odp.members(AUDIENCE) == [mail("kim"), mail("lee"), mail("mia")]


def test_a_stop_before_the_switch_changes_nothing_and_after_it_finishes_the_audience(
    odp: ThreadedSandbox, shop: Install
) -> None:
    changes.stop(begin(shop), by="lee")
    assert "still reads _id" in finish(shop).problem
    assert Install.objects.get().identifier_field == "_id"
    change = begin(shop)
    until(shop, Phase.AUDIT)
    changes.stop(change, by="lee")
    assert finish(shop).done == 1
    assert odp.members(AUDIENCE) == [mail("kim"), mail("lee"), mail("mia")]


def test_a_member_whose_entry_has_a_time_after_the_scan_leaves_too(
    odp: ThreadedSandbox, people: People, shop: Install
) -> None:
    """The clock of Lytics is ahead: Kim's entry by the old field seems newer than the scan."""
    people.moves(shop, "kim", "enter", ahead=timedelta(seconds=200))
    drain_all(shop)
    begin(shop)
    assert finish(shop).problem == ""
    assert odp.members(AUDIENCE) == [mail("kim"), mail("lee"), mail("mia")]


def test_an_audience_that_still_differs_after_its_repairs_ends_the_change(
    odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identifier_steps, "REPAIRS", 0)
    begin(shop)
    change = finish(shop)
    assert "6 people differ after 0 repairs" in change.problem
    assert "stay members until an audit and its repair" in change.problem
    assert change.done == 0
    assert odp.members(AUDIENCE) == ["kim", "lee", "mia"]


def test_a_change_and_the_change_back_end_where_they_began(odp: ThreadedSandbox, shop: Install) -> None:
    begin(shop)
    assert finish(shop).problem == ""
    begin(shop, "_id")
    assert finish(shop).problem == ""
    assert odp.members(AUDIENCE) == ["kim", "lee", "mia"]


def test_lytics_that_rejects_the_scan_ends_the_change_with_its_reason(
    shop: Install, people: People, lytics: Lytics
) -> None:
    begin(shop)
    until(shop, Phase.AUDIT)
    lytics.answer = lambda path, query: (403, {"status": 403, "message": "no"}) if path.endswith("/scan") else None
    change = finish(shop)
    assert "Lytics rejects the scan" in change.problem
    assert "customers known by _id stay members" in change.problem


def test_a_worker_without_the_key_of_the_api_token_does_not_end_the_change(
    odp: ThreadedSandbox, shop: Install, settings: Settings
) -> None:
    """As while the keys are rotated: a worker that was restarted has written the token anew, and another one waits."""
    begin(shop)
    until(shop, Phase.AUDIT)
    step(shop)
    keys, settings.FIELD_ENCRYPTION_KEYS = settings.FIELD_ENCRYPTION_KEYS, [Fernet.generate_key().decode()]
    Audit.objects.update(next_at=None)
    audits.advance_all(shop.pk, seconds=1)
    audit = Audit.objects.get()
    assert (audit.ended_at, audit.problem) == (None, "")
    assert audit.next_at is not None
    assert step(shop)
    settings.FIELD_ENCRYPTION_KEYS = keys
    assert finish(shop).problem == ""
    assert odp.members(AUDIENCE) == [mail("kim"), mail("lee"), mail("mia")]


@pytest.mark.parametrize("lost", ["audience", "audience and field"])
def test_an_audience_that_somebody_deletes_in_odp_meanwhile_is_created_again(
    odp: ThreadedSandbox, shop: Install, lost: str
) -> None:
    """No step of the change asks ODP, so the looks find it as ever. Else all repairs would differ."""
    begin(shop)
    until(shop, Phase.AUDIT)
    odp.odp("DELETE", f"/v3/segments/{AUDIENCE}")
    if lost == "audience and field":
        (account,) = odp.world.accounts
        del account.schema.fields[AUDIENCE]
        for customer in account.customers.by_number.values():
            customer.record.pop(AUDIENCE, None)
    for _ in range(MOST):
        goes_on = step(shop)
        twins.look(shop.pk)
        work(shop)
        if not goes_on:
            break
    assert GuidedChange.objects.get().problem == ""
    assert odp.members(AUDIENCE) == [mail("kim"), mail("lee"), mail("mia")]


def test_an_audit_that_did_not_read_lytics_ends_the_change(shop: Install) -> None:
    """It compared the ledger with ODP, and says nothing about the new field."""
    begin(shop)
    until(shop, Phase.AUDIT)
    lytics_account.set_token(shop, "")
    change = finish(shop)
    assert "Lytics was not asked, because the install has no Lytics API token" in change.problem
    assert "customers known by _id stay members" in change.problem
    assert change.done == 0


@pytest.mark.parametrize("mode", Audit.Mode)
def test_another_audit_since_the_switch_is_used_if_it_compares_people(shop: Install, mode: str) -> None:
    begin(shop)
    until(shop, Phase.AUDIT)
    other = audits.ask(Audience.objects.get(), mode=mode, by="sam")
    assert other is not None
    step(shop)
    assert GuidedChange.objects.get().audit_id == (None if mode == Audit.Mode.QUICK else other.pk)


def until_repair(shop: Install) -> Audit:
    begin(shop)
    while GuidedChange.objects.get().phase != Phase.REPAIR:
        step(shop)
        work(shop)
    return Audit.objects.get()


def test_a_newer_audit_than_that_of_the_change_is_followed_by_another_one(odp: ThreadedSandbox, shop: Install) -> None:
    until_repair(shop)
    assert audits.ask(Audience.objects.get(), mode=Audit.Mode.FULL, by="sam")
    work(shop)
    change = finish(shop)
    assert (change.problem, change.left_out, change.done) == ("", {}, 1)
    assert odp.members(AUDIENCE) == [mail("kim"), mail("lee"), mail("mia")]


def test_an_audience_that_is_taken_back_is_changed_afterwards(odp: ThreadedSandbox, shop: Install) -> None:
    begin(shop)
    gold = Audience.objects.get()
    assert retiring.retire(gold, by="sam", reason="a test")
    assert retiring.advance(Retirement.objects.get().pk), "its members get exits"
    assert retiring.take_back(gold, by="sam", reason="a test")
    for _ in range(4):
        step(shop)
    assert GuidedChange.objects.get().waits_for == f"{AUDIENCE} is being retired or taken back."
    retiring.advance_all(shop.pk, seconds=PATIENCE)
    assert finish(shop).problem == ""
    assert odp.members(AUDIENCE) == [mail(who) for who in ("kim", "lee", "mia")]


def test_an_audience_that_was_retired_before_the_switch_comes_back_by_an_audit_and_its_repair(
    odp: ThreadedSandbox, shop: Install, operator: Client
) -> None:
    gold = Audience.objects.get()
    assert retiring.retire(gold, by="sam", reason="a test")
    for _ in range(4):
        retiring.advance_all(shop.pk, seconds=PATIENCE)
        drain_all(shop)
    assert lane_of(gold).retired_at is not None
    Install.objects.update(identifier_field="email", identifier_since_at=now())
    page = operator.get(reverse("admin:audiences_audience_take-back", args=[gold.pk])).content.decode()
    assert "do not enter again, because they are known by the identifier field of before" in page
    assert retiring.take_back(gold, by="sam", reason="a test")
    retiring.advance_all(shop.pk, seconds=PATIENCE)
    work(shop)
    audit = Audit.objects.get()
    assert not Membership.objects.filter(is_member=True).exists()
    assert resends.repair(audit, by="sam", reason="a test")
    work(shop)
    assert odp.members(AUDIENCE) == [mail(who) for who in ("kim", "lee", "mia")]


def test_an_audit_during_which_people_were_sent_again_is_repeated(
    odp: ThreadedSandbox, people: People, shop: Install
) -> None:
    """It doesn't compare them. All have entered by the new field, so it finds no difference among the others."""
    begin(shop)
    until(shop, Phase.AUDIT)
    for who in ("kim", "lee", "mia"):
        people.moves(shop, who, "enter")
    drain_all(shop)
    step(shop)
    Audit.objects.update(started_at=now(), before_sequence=Audience.objects.get().last_sequence)
    assert resends.resync(Audience.objects.get(), by="sam", reason="a test")
    change = finish(shop)
    first = Audit.objects.earliest("pk")
    assert (first.differing, first.moving) == (0, 7)
    assert (change.problem, change.done) == ("", 1)
    assert odp.members(AUDIENCE) == [mail("kim"), mail("lee"), mail("mia")]


def test_the_audit_waits_for_a_resync(shop: Install) -> None:
    assert resends.resync(Audience.objects.get(), by="sam", reason="a test")
    begin(shop)
    until(shop, Phase.AUDIT)
    step(shop)
    assert GuidedChange.objects.get().waits_for == "People of the audience are being sent again."
    assert not Audit.objects.exists()


def silver_that_odp_does_not_make(odp: ThreadedSandbox, shop: Install) -> Audience:
    """An audience with three waiting entries by the Lytics ID."""
    odp.fault({"path": "/v3/schema", "method": "POST"}, {"status": 503})
    event = transition("enter", segment="s2", slug="silver")
    ingest.receive(shop, body(*(message(event, who=who) for who in ("kim", "lee", "zoe"))))
    return Audience.objects.get(slug="silver")


def test_an_audience_that_odp_does_not_have_yet_is_changed_when_it_has_it(
    odp: ThreadedSandbox, shop: Install, people: People
) -> None:
    """Its waiting events are of the old field, and it comes after the audiences that are done."""
    silver = silver_that_odp_does_not_make(odp, shop)
    begin(shop)
    for _ in range(20):
        step(shop)
        work(shop)
    change = GuidedChange.objects.get()
    assert change.done == 1
    assert change.waits_for.startswith("lytics_silver is on hold: it can't be created in ODP: ")
    assert silver.provisioned_at is None
    odp.clear_faults()
    hold_runs_out(shop)
    work(shop)
    assert finish(shop).problem == ""
    assert odp.members("lytics_silver") == odp.members(AUDIENCE) == [mail("kim"), mail("lee"), mail("mia")]


@pytest.mark.parametrize("phase", [Phase.CALLS, Phase.AUDIT, Phase.REPAIR])
@pytest.mark.parametrize("end", ["it delivers again", "it is retired", "the change is stopped"])
@pytest.mark.parametrize("held", ["blocked", "paused"])
def test_a_change_waits_for_an_audience_that_delivers_nothing_until_a_person_ends_that(
    odp: ThreadedSandbox, shop: Install, people: People, phase: str, end: str, held: str
) -> None:
    """Its events of before the audit wait too, so the audit would never end; and a retirement would wait for both."""
    begin(shop)
    until_worked(shop, phase)
    lane = lane_of(Audience.objects.get())
    if held == "blocked":
        holds.block_audience(lane.pk, "The field has another type.")
    else:
        holds.pause(lane, by="sam", reason="holiday.")
    people.moves(shop, "zoe", "enter")
    for _ in range(4):
        assert step(shop)
        work(shop)
    why = "blocked: The field has another type." if held == "blocked" else "paused by sam: holiday."
    waits_for = GuidedChange.objects.get().waits_for
    assert waits_for.startswith(f"{AUDIENCE} is {why} The change goes on when that is over.")
    if end == "it delivers again":
        (holds.unblock if held == "blocked" else holds.resume)(lane_of(Audience.objects.get()))
        assert finish(shop).problem == ""
        assert odp.members(AUDIENCE) == [mail(who) for who in ("kim", "lee", "mia", "zoe")]
    elif end == "it is retired":
        assert retiring.retire(Audience.objects.get(), by="sam", reason="a test")
        for _ in range(3):
            retiring.advance_all(shop.pk, seconds=PATIENCE)
        assert lane_of(Audience.objects.get()).retired_sequence is not None
        assert finish(shop).problem == ""
    else:
        assert changes.stop(GuidedChange.objects.get(), by="lee")
        assert "Stopped by lee. The install reads email." in finish(shop).problem


def test_a_newer_audience_that_odp_does_not_make_holds_nothing_up(odp: ThreadedSandbox, shop: Install) -> None:
    begin(shop)
    until(shop, Phase.AUDIT)
    silver_that_odp_does_not_make(odp, shop)
    change = finish(shop)
    assert (change.problem, change.done) == ("", 1)


def test_an_audience_that_can_not_be_created_is_retired_first(odp: ThreadedSandbox, shop: Install) -> None:
    """The change would wait for it, and the other audiences with it."""
    silver = silver_that_odp_does_not_make(odp, shop)
    assert changes.problem_of_identifier(shop) == ""
    drain_all(shop)
    assert "lytics_silver can't be created in ODP" in changes.problem_of_identifier(shop)
    assert retiring.retire(silver, by="sam", reason="a test")
    retiring.advance_all(shop.pk, seconds=PATIENCE)
    assert changes.problem_of_identifier(shop) == ""


def test_the_form_of_a_draft_with_waiting_events_asks_about_another_field(
    odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is in ODP. What waits is sent by the old field, and its exits come by the new one."""
    Audience.objects.update(provisioned_at=None)
    before, after = Install.objects.get(), Install.objects.get()
    after.identifier_field = "email"
    assert "Press Change identifier" in guards.refusals(before, after)["identifier_field"]
    Install.objects.update(key_accepted_at=None)
    before = Install.objects.get()
    assert guards.refusals(before, after) == {}
    (question,) = guards.questions(before, after)
    assert "also those who enter by waiting events" in question.consequence
    Audience.objects.update(last_sequence=0)
    assert guards.questions(before, after) == []


def test_the_change_waits_for_the_repair_of_a_person(odp: ThreadedSandbox, shop: Install) -> None:
    assert resends.repair(until_repair(shop), by="sam", reason="a test")
    step(shop)
    assert GuidedChange.objects.get().waits_for == "Another repair of the audience is unfinished."
    work(shop)
    change = finish(shop)
    assert (change.problem, change.left_out, change.done) == ("", {}, 1)
    assert odp.members(AUDIENCE) == [mail("kim"), mail("lee"), mail("mia")]


# --- the evidence, and what begins a change ------------------------------------------------------------------


def test_the_evidence_says_how_many_have_each_field_and_whether_it_names_one_person(
    shop: Install, people: People
) -> None:
    people.members["kim"] |= {"plan": "free", "phones": ["1", "2"], "email": [mail("kim"), "k@example.com"]}
    people.members["lee"] |= {"plan": "free", "email": mail("lee"), "phones": []}
    del people.members["mia"]["email"]
    found = identifier_changes.evidence(shop)
    assert found.sample == 3
    email = found.of("email")
    plan = found.of("plan")
    assert email is not None
    assert plan is not None
    assert (email.found, email.arrays, email.different, email.shared) == (2, 1, 3, 0)
    phones = found.of("phones")
    assert phones is not None
    assert (phones.found, phones.arrays) == (1, 1), "an empty array names no person"
    assert (plan.found, plan.arrays, plan.different, plan.shared) == (2, 0, 1, 2)
    assert found.of("_id") is None, "it is the present field"
    assert found.candidates[-1].name == "plan", "a field that several share comes last"


def test_a_change_is_refused_with_its_reason(shop: Install, people: People) -> None:
    def why() -> str:
        return changes.problem_of_identifier(Install.objects.get())

    assert why() == ""
    holds.pause(lane_of(Audience.objects.get()), by="kim", reason="a test")
    assert "paused or blocked" in why()
    holds.resume(lane_of(Audience.objects.get()))
    lytics_account.set_token(shop, "")
    assert "only Lytics knows their values" in why()
    lytics_account.set_token(shop, "api-token")
    assert "0 of 3 members in Lytics have user_id" in identifier_changes.problem_of(shop, "user_id")
    assert identifier_changes.problem_of(shop, "email") == ""
    email = people.members["kim"].pop("email")
    del people.members["lee"]["email"]
    assert "1 of 3 members in Lytics have email" in identifier_changes.problem_of(shop, "email")
    people.members["kim"]["email"] = email
    begin(shop)
    assert "under way" in why()


def test_a_large_audience_is_refused_with_a_way_out(shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identifier_changes, "MOST_MEMBERS", 2)
    assert "Connect a second install" in changes.problem_of_identifier(shop)


def test_the_page_of_an_install_shows_the_evidence_and_begins_a_change(shop: Install, operator: Client) -> None:
    address = f"/admin/audiences/install/{shop.pk}/change-identifier/"
    asked = operator.get(address).content.decode()
    answers = {**hidden(asked), "identifier_field": "user_id", "reason": "a test"}
    assert "0 of 3 members in Lytics have user_id" in operator.post(address, answers).content.decode()
    page = press(operator, "change-identifier", shop, identifier_field="email", reason="a test")
    assert "Of 3 members read from Lytics: email in 3, 3 different." in page
    assert "3 memberships in 1 audience are known by _id" in page
    change = GuidedChange.objects.get()
    assert (change.before, change.after, change.by) == ("_id", "email", "operator")
    until(shop, Phase.AUDIT)
    opened = operator.get(f"/admin/audiences/install/{shop.pk}/change/").content.decode()
    assert "comparing with the members in Lytics" in opened


def test_a_viewer_does_not_begin_a_change(shop: Install, viewer: Client) -> None:
    assert viewer.get(f"/admin/audiences/install/{shop.pk}/change-identifier/").status_code == 403


def test_the_form_leads_to_the_change(shop: Install) -> None:
    after = Install.objects.get()
    after.identifier_field = "email"
    assert "Press Change identifier" in guards.refusals(shop, after)["identifier_field"]
    begin(shop)
    assert "under way" in guards.refusals(shop, after)["identifier_field"]


def command(shop: Install, *words: str) -> Any:
    said = io.StringIO()
    call_command("change_identifier", shop.public_id, *words, "--json", stdout=said)
    return json.loads(said.getvalue())


def test_the_command_shows_what_each_field_has_and_begins_and_stops_a_change(shop: Install) -> None:
    shown = command(shop, "--to", "email")
    assert (shown["begun"], shown["problem"], shown["members"]) == (False, "", 3)
    assert [(each["name"], each["found"]) for each in shown["fields"]] == [("email", 3)]
    assert not GuidedChange.objects.exists()
    assert command(shop, "--to", "email", "--yes", "--reason", "a test")["begun"]
    assert (GuidedChange.objects.get().after, GuidedChange.objects.get().reason) == ("email", "a test")
    assert command(shop, "--stop")["stopped"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--to", "user_id", "--yes", "--reason", "a test"], "0 of 3 members in Lytics have user_id"),
        (["--to", "email", "--yes"], "--reason must say something"),
        (["--to", "_id"], "has this field already"),
        (["--to", "a b"], "--to: "),
        (["--yes", "--reason", "a test"], "Name the field with --to"),
        (["--to", "email", "--stop"], "Give either --to or --stop"),
        (["--stop"], "No change is under way"),
    ],
)
def test_the_command_begins_no_change_that_can_not_be_made(shop: Install, words: list[str], why: str) -> None:
    with pytest.raises(CommandError, match=why):
        command(shop, *words)
    assert not GuidedChange.objects.exists()


def test_the_audience_of_the_test_customers_is_not_changed(shop: Install) -> None:
    before = set(identifier_changes.audiences(shop))
    of_tests = make_audience(shop, "test")
    Audience.objects.filter(pk=of_tests.pk).update(segment_id=trials.SEGMENT_ID)
    assert set(identifier_changes.audiences(shop)) == before
