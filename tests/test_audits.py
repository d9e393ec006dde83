"""Audits: Lytics, the ledger and ODP compared person by person; and repairs that make them agree."""

import io
import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.fernet import Fernet
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.db import Error, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import lytics_account, naming, sessions
from audiences.agreement import asking_odp, audits, comparing, odp_reasons, repairs, scanning, sizes, words
from audiences.agreement.steps import Step
from audiences.delivery import holds, leases
from audiences.encryption import WRONG_KEY
from audiences.models import Again, Audience, Audit, Difference, Event, Install, Lane, Membership, Parked, ScannedMember
from audiences.operations import parked_items, resends
from lytics import times
from odp import graphql
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import drain_all, enter, happen, make_audience, make_checked_install, make_install
from tests.lytics_api import Lytics
from tests.people import someone
from tests.test_admin import press
from tests.threads import PATIENCE

pytestmark = pytest.mark.django_db

Kind = Difference.Kind


@pytest.fixture(autouse=True)
def quick(settings: Settings) -> None:
    settings.AUDIT_SETTLE_SECONDS = 0
    settings.AUDIT_LYTICS_REQUESTS_PER_SECOND = settings.AUDIT_ODP_REQUESTS_PER_SECOND = 1_000
    settings.AUDIT_CUSTOMERS_PER_REQUEST = 2


@pytest.fixture
def shop(odp: ThreadedSandbox, lytics: Lytics) -> Install:
    made = make_checked_install(odp)
    lytics_account.set_token(made, "api-token")
    return made


@pytest.fixture
def gold(odp: ThreadedSandbox, shop: Install, lytics: Lytics) -> Audience:
    """Five members on whom all three sides agree, and one who left."""
    made = make_audience(shop, provisioned=False)
    enter(made, "ann", "bob", "cyd", "dan", "eve", "fay")
    happen(made, ("fay", "exit", 2))
    drain_all(shop)
    lytics.members = ["ann", "bob", "cyd", "dan", "eve"]
    return Audience.objects.get(pk=made.pk)


def audit(audience: Audience, mode: str = Audit.Mode.FULL, **options: Any) -> Audit:
    asked = audits.ask(audience, mode=mode, by="kim", **options)
    assert asked is not None
    return finish(asked)


def finish(asked: Audit) -> Audit:
    Audit.objects.update(next_at=None)  # as if its waits were over
    audits.advance_all(asked.install_id, seconds=PATIENCE)
    done = Audit.objects.get(pk=asked.pk)
    assert done.ended_at is not None
    return done


def found(audit: Audit) -> dict[str, str]:
    return dict(Difference.objects.filter(audit=audit).values_list("identifier", "kind"))


def why(audit: Audit, identifier: str) -> str:
    return str(Difference.objects.get(audit=audit, identifier=identifier).why)


def set_in_odp(odp: ThreadedSandbox, identifier: str, value: bool | None) -> None:
    """Another system writes the field."""
    item = {"attributes": {"fs_user_id": identifier, "web_user_id": identifier, "lytics_gold": value}}
    assert odp.odp("POST", "/v3/profiles", [item])[0] == 202


# --- agreement -----------------------------------------------------------------------------------------------


def test_sides_that_agree_are_reported_clean(odp: ThreadedSandbox, gold: Audience) -> None:
    before = len(odp.requests())
    done = audit(gold)
    assert len(odp.requests()) - before == 4, "the estimate, and three queries of two people"
    assert (done.problem, done.note, done.phase) == ("", "", "done")
    assert (done.compared_with_lytics, done.compared_with_odp, done.differing) == (6, 6, 0)
    assert (done.lytics_size, done.ledger_size, done.scanned) == (5, 5, 5)
    assert found(done) == {}
    assert not ScannedMember.objects.exists()


def test_transitions_that_lytics_does_not_show_yet_are_no_differences(
    gold: Audience, lytics: Lytics, settings: Settings
) -> None:
    """Its API lags behind its calls: an exit and an entry are here, and its members are still those of before."""
    settings.AUDIT_SCAN_DELAY_SECONDS = 30
    happen(gold, ("ann", "exit", 8), ("gus", "enter", 8))
    drain_all(gold.install)
    lytics.asked.clear()
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    audits.advance_all(gold.install_id, seconds=PATIENCE)
    assert not any("scan" in target for target in lytics.asked)
    lytics.members = ["bob", "cyd", "dan", "eve", "gus"]
    Audit.objects.update(started_at=now() - timedelta(seconds=31))
    done = finish(asked)
    assert (done.problem, done.compared_with_lytics, done.differing) == ("", 7, 0)


@pytest.mark.parametrize("sizes", [(5, 400, 900), (900, 400, 5)])
def test_an_audience_that_grows_or_shrinks_during_the_scan_is_compared(
    gold: Audience, lytics: Lytics, sizes: tuple[int, int, int]
) -> None:
    lytics.sizes = sizes
    done = audit(gold)
    assert (done.problem, done.scan_starts, done.lytics_size, done.differing) == ("", 0, 5, 0)


def test_a_quick_audit_compares_sizes_and_asks_for_no_person(
    odp: ThreadedSandbox, gold: Audience, lytics: Lytics
) -> None:
    lytics.asked.clear()
    done = audit(gold, Audit.Mode.QUICK)
    assert (done.lytics_size, done.ledger_size) == (5, 5)
    assert done.odp_low is not None
    assert done.odp_high is not None
    assert done.odp_low <= 5 <= done.odp_high
    assert not any("scan" in target for target in lytics.asked)
    assert (done.compared_with_lytics, done.compared_with_odp) == (0, 0)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_an_audit_of_sizes_or_a_stopped_one_leaves_the_result_about_people_and_its_repair(
    gold: Audience, lytics: Lytics, monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    monkeypatch.setattr(audits, "KEPT", 1)
    first = audit(gold, Audit.Mode.QUICK)
    assert first.is_newest
    found = audit(gold)
    Difference.objects.create(audit=found, identifier="kim", kind=Difference.Kind.NOT_HERE)
    Audit.objects.update(differing=1)
    asked = audits.ask(gold, mode=Audit.Mode.FULL if is_stopped else Audit.Mode.QUICK, by="kim")
    assert asked
    if is_stopped:
        audits.stop(asked, by="kim")
    finish(asked)
    assert [one.pk for one in audits.to_act_on()] == [found.pk]
    assert resends.may_repair(found)


def test_members_whom_only_odp_has_are_counted_by_its_estimate(odp: ThreadedSandbox, gold: Audience) -> None:
    assert words.odp_above_ledger(audit(gold, Audit.Mode.QUICK)) == 0
    for number in range(100):
        set_in_odp(odp, f"stranger-{number}", True)
    done = audit(gold, Audit.Mode.QUICK)
    assert done.odp_low is not None
    assert words.odp_above_ledger(done) == done.odp_low - 5 > 50
    assert f"at least {done.odp_low - 5} more than here" in words.result(done)
    assert found(audit(gold)) == {}


@pytest.mark.parametrize(("low", "high"), [(2**63, 2**63), (-5, 5), (9, 5)])
def test_an_impossible_estimate_is_none(odp: ThreadedSandbox, gold: Audience, low: int, high: int) -> None:
    """PostgreSQL can't store the first."""
    estimate = {"estimated_lower_bound": low, "estimated_upper_bound": high}
    body = {"data": {"audience": {"population_estimate": estimate}}}
    odp.fault({"path": "/v3/graphql", "body_contains": "population_estimate"}, {"status": 200, "body": body})
    done = audit(gold)
    assert (done.problem, done.differing, done.odp_low, done.only_in_odp) == ("", 0, None, 0)


# --- drift ---------------------------------------------------------------------------------------------------


def test_each_kind_of_difference_is_found_named_and_explained(
    odp: ThreadedSandbox, shop: Install, gold: Audience, lytics: Lytics
) -> None:
    lytics.members = ["ann", "bob", "cyd", "gus", "fay"]
    set_in_odp(odp, "ann", False)
    closed = {"closed_at": now(), "resolution": "discarded"}
    Parked.objects.create(install=shop, audience=gold, identifier="fay", reason="refused_by_odp", **closed)
    done = audit(gold)
    assert found(done) == {
        "dan": Kind.NOT_IN_LYTICS,
        "eve": Kind.NOT_IN_LYTICS,
        "gus": Kind.NOT_HERE,
        "fay": Kind.NOT_HERE,
        "ann": Kind.NOT_IN_ODP,
    }
    assert (done.differing, done.explained) == (5, 4)
    assert why(done, "gus").startswith("Lytics never sent this customer")
    assert why(done, "fay") == "Lytics has not sent the entry."
    assert why(done, "dan") == "Lytics has not sent the exit."
    assert why(done, "ann") == odp_reasons.CHANGED


def test_a_customer_whom_odp_still_shows_is_found(odp: ThreadedSandbox, gold: Audience) -> None:
    set_in_odp(odp, "fay", True)
    assert found(audit(gold)) == {"fay": Kind.STILL_IN_ODP}


def test_withdrawn_consent_makes_the_customers_unknown_to_odp(
    odp: ThreadedSandbox, gold: Audience, lytics: Lytics
) -> None:
    odp.assume(consent_effect="everything")
    odp.settings(consent="opted_out")
    enter(gold, "zoe")
    drain_all(gold.install)
    lytics.members.append("zoe")
    done = audit(gold)
    assert found(done)["zoe"] == Kind.NOT_IN_ODP
    assert why(done, "zoe") == odp_reasons.UNKNOWN


def test_a_rejected_customer_is_explained_by_the_parked_item(
    odp: ThreadedSandbox, shop: Install, gold: Audience, lytics: Lytics
) -> None:
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["gus"], "named": True}})
    enter(gold, "gus")
    drain_all(shop)
    lytics.members.append("gus")
    done = audit(gold)
    assert "parked" in why(done, "gus").lower()
    assert repairs.plan(done).people == 0


def test_people_whom_a_repair_can_correct_are_stored_first(
    odp: ThreadedSandbox, shop: Install, gold: Audience, lytics: Lytics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit stores a limited number of people. Parked ones used to fill it, and left none for a repair."""
    for module in (comparing, asking_odp):
        monkeypatch.setattr(module, "MOST", 1)
    Parked.objects.create(install=shop, audience=gold, identifier="abe", reason="no_time", raw=b"x")
    lytics.members += ["abe", "gus"]
    done = audit(gold)
    assert (found(done), done.differing, repairs.plan(done).people) == ({"gus": Kind.NOT_HERE}, 2, 1)
    lytics.members = lytics.members[:5]
    rejection = {"install": shop, "audience": gold, "identifier": "ann", "reason": "refused_by_odp", "sequence": 1}
    Parked.objects.create(**rejection)
    Membership.objects.filter(identifier="ann").update(rejected=True)
    for identifier in ("ann", "eve"):
        set_in_odp(odp, identifier, False)
    done = audit(gold)
    assert (found(done), done.differing) == ({"ann": Kind.NOT_IN_ODP, "eve": Kind.NOT_IN_ODP}, 2)


@pytest.mark.parametrize("in_lytics", [True, False])
def test_a_rejected_customer_whose_parked_item_was_discarded_is_repaired(
    odp: ThreadedSandbox, shop: Install, gold: Audience, lytics: Lytics, in_lytics: bool
) -> None:
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["gus"], "named": True}})
    enter(gold, "gus")
    drain_all(shop)
    odp.clear_faults()
    lytics.members += ["gus"] * in_lytics
    parked_items.discard([Parked.objects.get().pk], by="sam")
    done = audit(gold)
    assert not Difference.objects.filter(audit=done, why__contains="parked").exists()
    assert resends.repair(done, by="kim", reason="corrected in ODP")
    resends.advance_all(shop.pk, seconds=PATIENCE)
    drain_all(shop)
    assert ("gus" in odp.members("lytics_gold")) is in_lytics
    assert found(finish(Audit.objects.latest("pk"))) == {}


def test_without_a_token_only_odp_is_compared(odp: ThreadedSandbox, gold: Audience, lytics: Lytics) -> None:
    lytics_account.set_token(gold.install, "")
    lytics.members = []
    set_in_odp(odp, "bob", False)
    done = audit(gold)
    assert found(done) == {"bob": Kind.NOT_IN_ODP}
    assert "no Lytics API token" in done.note
    assert done.compared_with_lytics == 0


# --- in motion -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["api-token", ""])
def test_what_changes_during_the_scan_is_no_drift(gold: Audience, lytics: Lytics, token: str) -> None:
    """Lytics names a customer on a page, and the customer's exit arrives before the comparison."""
    lytics_account.set_token(gold.install, token)
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    audits.run(Audit.objects.get(pk=asked.pk), until=0)
    Audit.objects.update(lease_until_at=None)
    happen(gold, ("ann", "exit", 3), ("hal", "enter", 3))
    drain_all(gold.install)
    done = finish(asked)
    assert (done.differing, done.moving, done.compared_with_odp) == (0, 2, 5)


def test_an_event_that_waits_keeps_a_person_out_of_the_comparison_with_odp(
    odp: ThreadedSandbox, gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request has reached ODP, and its result isn't stored yet."""
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    set_in_odp(odp, "ann", False)
    real = graphql.ask

    def while_an_event_arrives(*args: Any, **options: Any) -> Any:
        if not Event.objects.filter(identifier="ann", kind=0).exists():
            happen(gold, ("ann", "exit", 3))
        return real(*args, **options)

    monkeypatch.setattr(asking_odp, "ask", while_an_event_arrives)
    assert found(finish(asked)) == {}


def test_an_audit_whose_time_is_up_goes_on_at_once_and_one_that_waits_does_not(
    gold: Audience, lytics: Lytics, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.AUDIT_LYTICS_REQUESTS_PER_SECOND = 2  # of three pages, so the time is up before the last
    woken: list[int] = []
    holds.pause(Lane.objects.get(pk=gold.pk), by="kim", reason="later")
    enter(gold, "zoe", at=3)
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    monkeypatch.setattr(audits, "wake_audit", woken.append)
    audits.advance_all(gold.install_id, seconds=0.4)
    assert (Audit.objects.get(pk=asked.pk).phase, woken) == ("scan", [gold.install_id])
    audits.advance_all(gold.install_id, seconds=PATIENCE)
    assert (Audit.objects.get(pk=asked.pk).phase, woken) == ("settle", [gold.install_id])


def test_the_audit_waits_until_the_lane_has_delivered(gold: Audience) -> None:
    holds.pause(Lane.objects.get(pk=gold.pk), by="kim", reason="later")
    enter(gold, "zoe", at=3)
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    audits.advance_all(gold.install_id, seconds=PATIENCE)
    assert Audit.objects.get(pk=asked.pk).phase == "settle"
    holds.resume(Lane.objects.get(pk=gold.pk))
    drain_all(gold.install)
    assert set(found(finish(asked))) == {"zoe"}


def test_the_seconds_of_each_step_with_a_request_are_noted(gold: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    holds.pause(Lane.objects.get(pk=gold.pk), by="kim", reason="later")
    enter(gold, "zoe", at=3)
    noted: list[float] = []
    audits.advance_all(gold.install_id, seconds=PATIENCE, note_request=noted.append)
    assert (Audit.objects.get().phase, len(noted)) == ("settle", 3), "three pages, and a step without a request"


# --- interruptions -------------------------------------------------------------------------------------------


def test_a_killed_audit_goes_on_where_it_was(gold: Audience, lytics: Lytics, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None

    class Killed(BaseException):
        pass

    steps = 0
    real = audits._step

    def step(one: Audit) -> Any:
        nonlocal steps
        steps += 1
        if steps in (2, 4, 6):
            raise Killed
        return real(one)

    monkeypatch.setattr(audits, "_step", step)
    lytics.asked.clear()
    for _ in range(3):
        with pytest.raises(Killed):
            audits.advance_all(gold.install_id, seconds=PATIENCE)
    done = finish(asked)
    assert (done.differing, done.compared_with_lytics, done.scanned) == (0, 6, 5)
    scans = [parse_qs(urlsplit(target).query).get("start", [""])[0] for target in lytics.asked if "scan" in target]
    assert scans == ["", "2", "4"], "no page was read twice"


def test_differences_of_a_step_whose_worker_died_are_counted(odp: ThreadedSandbox, gold: Audience) -> None:
    set_in_odp(odp, "ann", False)
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    Difference.objects.create(audit=asked, identifier="ann", kind=Kind.NOT_IN_ODP)
    assert finish(asked).differing == 1


def test_a_worker_that_holds_an_audit_keeps_others_from_it(gold: Audience) -> None:
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    assert audits.due() == [gold.install_id]
    assert audits._lease(gold.install_id) is not None
    assert audits._lease(gold.install_id) is None
    assert audits.due() == []
    Audit.objects.update(lease_until_at=now())
    assert audits._lease(gold.install_id) is not None


def test_an_install_that_is_off_lets_its_audits_wait(
    gold: Audience, lytics: Lytics, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    with monkeypatch.context() as patched:
        patched.setattr(scanning, "_store", lambda *_: Install.objects.update(enabled=False))
        audits.advance_all(gold.install_id, seconds=PATIENCE)
    assert Audit.objects.get().scanned == 2, "it was switched off during the first page"
    assert audits.due() == []
    audits.advance_all(gold.install_id, seconds=PATIENCE)
    assert Audit.objects.get().scanned == 2
    assert words.result(Audit.objects.get()) == "waiting until the install is switched on"
    with pytest.raises(CommandError, match="switched off"):
        call_command("audit_audiences", "Shop")
    Install.objects.update(enabled=True)
    finish(asked)


@pytest.mark.parametrize("column", ["lease_until_at", "next_at"])
def test_a_clock_that_was_set_back_delays_no_audit(gold: Audience, column: str) -> None:
    assert audits.ask(gold, mode=Audit.Mode.QUICK, by="kim") is not None
    Audit.objects.update(**{column: now() + timedelta(days=1)})
    assert audits.due() == [gold.install_id]
    audits.advance_all(gold.install_id, seconds=PATIENCE)
    assert Audit.objects.get().ended_at is not None


@pytest.mark.parametrize(
    ("column", "setting"),
    [("started_at", "AUDIT_SCAN_DELAY_SECONDS"), ("settled_since_at", "AUDIT_SETTLE_SECONDS")],
)
def test_after_a_clock_was_set_back_an_audit_waits_once_more(
    gold: Audience, settings: Settings, column: str, setting: str
) -> None:
    setattr(settings, setting, 60)
    assert audits.ask(gold, mode=Audit.Mode.FULL, by="kim") is not None
    Audit.objects.update(**{column: now() + timedelta(hours=5)})
    audits.advance_all(gold.install_id, seconds=PATIENCE)
    waiting = Audit.objects.get()
    assert waiting.next_at is not None
    assert timedelta(seconds=50) < waiting.next_at - now() <= timedelta(seconds=60)
    assert "failed" not in words.result(waiting), "a planned wait"
    assert getattr(waiting, column) <= now()


def test_the_clock_of_a_worker_shortens_neither_a_lease_nor_a_wait(
    many: list[Audience], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_all(many)
    assert audits._lease(many[0].install_id) is not None
    monkeypatch.setattr(audits, "now", lambda: now() + timedelta(hours=2))
    assert audits._lease(many[0].install_id) is None
    Audit.objects.update(lease_until_at=None, next_at=now() + timedelta(minutes=59))
    assert audits.due() == []


@pytest.mark.parametrize("result", ["a page", "an error", "a new scan"])
def test_a_worker_whose_lease_is_over_changes_nothing_of_the_same_step(
    gold: Audience, monkeypatch: pytest.MonkeyPatch, result: str
) -> None:
    """Another worker has taken the audit over, in the same phase."""
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    ScannedMember.objects.create(audit=asked, identifier="ann")
    then: dict[str, Any] = {}

    def late(audit: Audit) -> Step:
        Audit.objects.update(lease_until_at=now())
        assert audits._lease(gold.install_id) is not None
        then.update(Audit.objects.values().get())
        if result == "an error":
            raise ValueError("no")
        return Step({"scanned": 7, "scan_token": "zoe"}, forgets_scan=result == "a new scan")

    monkeypatch.setitem(audits._STEPS, Audit.Phase.SCAN, late)
    audits.advance_all(gold.install_id, seconds=PATIENCE)
    assert Audit.objects.values().get() == then
    assert ScannedMember.objects.exists()


# --- several audits of an install ----------------------------------------------------------------------------


@pytest.fixture
def many(gold: Audience, lytics: Lytics, settings: Settings) -> list[Audience]:
    """Three audiences, whose audits wait for an hour."""
    settings.AUDIT_SETTLE_SECONDS = 3600
    others = []
    for name in ("silver", "bronze"):
        others.append(make_audience(gold.install, name, provisioned=False))
        enter(others[-1], "ann")
    drain_all(gold.install)
    return [gold, *others]


def ask_all(some: list[Audience], *, by: str = audits.SCHEDULE) -> list[Audit]:
    asked = [audits.ask(one, mode=Audit.Mode.FULL, by=by) for one in some]
    return [audit for audit in asked if audit is not None]


def test_while_an_audit_waits_the_others_take_their_steps(many: list[Audience], settings: Settings) -> None:
    asked = ask_all(many)
    audits.advance_all(many[0].install_id, seconds=PATIENCE)
    assert [audit.phase for audit in Audit.objects.order_by("pk")] == ["settle"] * 3
    assert audits.due() == []
    settings.AUDIT_SETTLE_SECONDS = 0
    Audit.objects.update(next_at=now())
    assert audits.due() == [many[0].install_id]
    audits.advance_all(many[0].install_id, seconds=PATIENCE)
    assert Audit.objects.filter(pk__in=[audit.pk for audit in asked], phase="done").count() == 3


def test_an_audit_that_fails_ends_and_keeps_no_other_waiting(
    many: list[Audience], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.AUDIT_SETTLE_SECONDS = 0
    real = audits._step

    def step(audit: Audit) -> Step:
        if audit.audience_id == many[0].pk:
            raise ValueError("ann")
        return real(audit)

    monkeypatch.setattr(audits, "_step", step)
    first, *others = ask_all(many)
    assert [finish(one).problem for one in others] == ["", ""]
    failed = Audit.objects.get(pk=first.pk)
    assert failed.problem == audits.FAILED


# The others of ``test_database_errors`` end the session too, and the transaction of a test with it.
@pytest.mark.parametrize("state", ["0A000", "26000", "40P01", "53100", "XX000"])
def test_an_audit_goes_on_after_an_error_of_postgresql(
    gold: Audience, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None

    def fail(_: Audit) -> Step:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$")
        raise AssertionError

    with monkeypatch.context() as failing:
        failing.setattr(audits, "_step", fail)
        with pytest.raises(Error):
            audits.advance_all(gold.install_id, seconds=PATIENCE)
    assert finish(asked).problem == ""


def test_an_audit_that_a_person_asks_for_comes_before_those_of_the_schedule(
    many: list[Audience], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "UNDER_WAY", 1)
    ask_all(many[:2])
    [by_kim] = ask_all(many[2:], by="kim")
    first = audits._lease(many[0].install_id)
    assert first is not None
    assert first.pk == by_kim.pk
    Audit.objects.update(lease_until_at=None)
    audits.advance_all(many[0].install_id, seconds=PATIENCE)
    # Kim's audit counts towards the limit of one, so no audit of the schedule has begun.
    assert [audit.phase for audit in Audit.objects.order_by("pk")] == ["scan", "scan", "settle"]
    waiting = Audit.objects.filter(started_at=None)
    assert [words.result(audit) for audit in waiting] == ["waiting for its turn among the audits of this install"] * 2


def test_an_audit_that_a_person_asks_for_does_not_wait_for_those_of_the_schedule(
    many: list[Audience], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "UNDER_WAY", 1)
    ask_all(many[:2])
    audits.advance_all(many[0].install_id, seconds=PATIENCE)
    assert audits._lease(many[0].install_id) is None
    [by_kim] = ask_all(many[2:], by="kim")
    assert audits._lease(many[0].install_id) == by_kim


STOPPED: list[tuple[type[Lane | Audience], dict[str, Any]]] = [
    (Lane, {"paused_at": now(), "paused_by": "kim", "pause_reason": "later"}),
    (Lane, {"blocked_at": now(), "block_reason": "ODP has another field of this name."}),
    (Lane, {"fault_since_at": now(), "fault_until_at": now(), "fault_reason": "An error of ours."}),
    (Audience, {"provisioned_at": None}),
]


@pytest.mark.parametrize(("model", "stopped"), STOPPED, ids=["paused", "blocked", "failing", "not made"])
def test_an_audit_that_waits_for_its_audience_takes_no_place_of_the_schedule(
    many: list[Audience], monkeypatch: pytest.MonkeyPatch, model: type[Lane | Audience], stopped: dict[str, Any]
) -> None:
    monkeypatch.setattr(audits, "UNDER_WAY", 1)
    ask_all(many)
    audits.advance_all(many[0].install_id, seconds=PATIENCE)
    assert Audit.objects.filter(started_at=None).count() == 2
    model._default_manager.filter(pk=many[0].pk).update(**stopped)
    audits.advance_all(many[0].install_id, seconds=PATIENCE)
    assert Audit.objects.filter(started_at=None).count() == 1


def test_an_expired_scan_begins_again(gold: Audience, lytics: Lytics) -> None:
    expired_at: list[datetime] = []

    def expire(path: str, query: dict[str, list[str]]) -> tuple[int, Any] | None:
        if query.get("start") != ["4"] or expired_at:
            return None
        expired_at.append(now())
        lytics.members.remove("ann")
        return 400, {"message": "token too old"}

    lytics.answer = expire
    done = audit(gold)
    assert (done.scan_starts, done.scanned, found(done)) == (1, 4, {"ann": Kind.NOT_IN_LYTICS})
    assert done.scan_began_at is not None
    assert done.scan_began_at > expired_at[0]


def test_a_scan_in_a_circle_ends(gold: Audience, lytics: Lytics, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page has the token of another one, so none is the last."""
    monkeypatch.setattr(scanning, "LOOK_EVERY", 5)

    def answer(path: str, query: dict[str, list[str]]) -> tuple[int, Any] | None:
        token = "even" if query.get("start") == ["odd"] else "odd"
        page = {"data": [{"_id": "ann"}], "total": 5, "_next": token}
        return (200, page) if path.endswith("/scan") else None

    lytics.answer = answer
    done = audit(gold)
    assert done.problem == "Lytics' scan did not finish in 5 attempts: it gives the same members again and again"


def test_a_scan_that_lytics_rejects_ends_the_audit_with_the_reason(gold: Audience, lytics: Lytics) -> None:
    lytics.answer = lambda path, query: (403, {"message": "no right to scan"}) if path.endswith("/scan") else None
    done = audit(gold)
    assert "no right to scan" in done.problem
    assert not ScannedMember.objects.exists()


def test_a_scan_that_ends_early_begins_again(gold: Audience, lytics: Lytics) -> None:
    """An old token may end a scan without a word; the size that Lytics sends along shows it."""
    lytics.members = [f"member-{n:02d}" for n in range(60)]
    enter(gold, *lytics.members, at=5)
    happen(gold, *((who, "exit", 5) for who in ("ann", "bob", "cyd", "dan", "eve")))
    drain_all(gold.install)
    early = iter([True])
    lytics.answer = lambda path, query: (
        (200, {"data": [], "total": 60, "_next": ""}) if query.get("start") == ["20"] and next(early, False) else None
    )
    done = audit(gold)
    assert (done.scan_starts, done.scanned, done.differing) == (1, 60, 0)


def test_a_scan_of_a_small_audience_that_ends_early_begins_again(gold: Audience, lytics: Lytics) -> None:
    early = iter([True])
    lytics.answer = lambda path, query: (
        (200, {"data": [], "total": 5, "_next": ""}) if path.endswith("/scan") and next(early, False) else None
    )
    done = audit(gold)
    assert (done.scan_starts, done.scanned, done.differing) == (1, 5, 0)


def test_the_size_of_a_scan_replaces_the_one_of_the_audience_which_may_be_old(gold: Audience, lytics: Lytics) -> None:
    lytics.answer = lambda path, query: (
        None if path.endswith("/scan") else (200, {"data": {"id": "segment-gold", "slug_name": "gold", "size": 2}})
    )
    assert audit(gold, Audit.Mode.QUICK).lytics_size == 2
    done = audit(gold)
    assert (done.problem, done.lytics_size) == ("", 5)


def test_a_few_members_without_the_identifier_field_are_left_out(gold: Audience, lytics: Lytics) -> None:
    page = {"data": [*({"_id": who} for who in lytics.members), {"email": "a@b.c"}], "total": 6, "_next": ""}
    lytics.answer = lambda path, query: (200, page) if path.endswith("/scan") else None
    done = audit(gold)
    assert (done.problem, done.scanned, done.differing) == ("", 6, 0)


@pytest.mark.parametrize("field", [{}, {"_id": None}, {"_id": ""}, {"_id": {"no": "text"}}, {"email": "a@b.c"}])
def test_a_scan_without_the_identifier_field_is_no_sign_that_everybody_left(
    gold: Audience, lytics: Lytics, field: dict[str, Any]
) -> None:
    lytics.answer = lambda path, query: (
        (200, {"data": [field] * 5, "total": 5, "_next": ""}) if path.endswith("/scan") else None
    )
    done = audit(gold)
    assert "only 0 identifiers in the field _id" in done.problem
    assert found(done) == {}
    assert not resends.repair(done, by="kim", reason="drift")


def test_what_is_no_identifier_in_a_call_is_none_in_a_scan(gold: Audience, lytics: Lytics) -> None:
    lytics.members += ["null", "0000", "x" * 5_000]
    assert audit(gold).differing == 0


def test_a_query_that_odp_rejects_ends_the_audit_with_masked_words(odp: ThreadedSandbox, gold: Audience) -> None:
    words = {"errors": [{"message": "the value 'kim@example.com' is wrong"}]}
    odp.fault({"path": "/v3/graphql"}, {"status": 200, "body": words})
    done = audit(gold)
    assert done.problem.startswith("ODP could not be asked: GraphQL: the value")
    assert "kim@example.com" not in done.problem


def test_an_unreachable_side_is_asked_again_later(gold: Audience, lytics: Lytics) -> None:
    lytics.answer = lambda path, query: (503, {"message": "busy"})
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    audits.advance_all(gold.install_id, seconds=PATIENCE)
    assert Audit.objects.get(pk=asked.pk).ended_at is None
    lytics.answer = lambda path, query: None
    assert finish(asked).differing == 0


@pytest.mark.parametrize("side", ["Lytics", "ODP"])
def test_a_side_that_does_not_respond_for_a_day_ends_the_audit(
    odp: ThreadedSandbox, gold: Audience, lytics: Lytics, side: str
) -> None:
    """Until then the page shows the result before it, and the install's other audits wait."""
    if side == "Lytics":
        lytics.answer = lambda path, query: (503, {"message": "busy"}) if path.endswith("/scan") else None
    else:
        odp.fault({"path": "/v3/graphql"}, {"status": 503})
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    audits.advance_all(gold.install_id, seconds=PATIENCE)
    waiting = Audit.objects.get(pk=asked.pk)
    again = f"; the last request to {side} failed, and is repeated at {waiting.next_at:%H:%M:%S} UTC"
    assert words.result(waiting).endswith(again)
    waiting.started_at = waiting.settled_since_at = now() - timedelta(hours=1)
    waiting.next_at = now() - timedelta(minutes=1)
    assert "failed" not in words.result(waiting), "it was answered since"
    Audit.objects.update(started_at=now() - timedelta(days=1))
    assert finish(asked).problem == f"{side} did not respond until 1 day after the audit began."


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("secret", ["api_token", "odp_api_key"])
def test_an_audit_waits_a_day_for_the_key_of_a_secret(
    gold: Audience, lytics: Lytics, settings: Settings, *, begun: bool, secret: str
) -> None:
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    if begun:
        settings.AUDIT_SCAN_DELAY_SECONDS = 1_000
        audits.advance_all(gold.install_id, seconds=1)
        settings.AUDIT_SCAN_DELAY_SECONDS = 0
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    if secret == "api_token":
        Install.objects.update(odp_api_key=gold.install.odp_api_key)
    else:
        lytics_account.set_token(gold.install, "api-token")
    Audit.objects.update(next_at=None)
    for _ in range(2):
        audits.advance_all(gold.install_id, seconds=5)
        waiting = Audit.objects.get(pk=asked.pk)
        assert (waiting.ended_at, waiting.lease_until_at) == (None, None)
        assert waiting.next_at is not None, "other audits take their steps"
    Audit.objects.update(asked_at=now() - audits.GIVE_UP)
    Audit.objects.filter(started_at__isnull=False).update(started_at=now() - audits.GIVE_UP)
    assert finish(asked).problem == WRONG_KEY


# --- a sample ------------------------------------------------------------------------------------------------


def test_a_sample_asks_odp_about_some_and_the_same_ones_after_a_restart(gold: Audience) -> None:
    enter(gold, *(f"person-{n:03d}" for n in range(300)), at=5)
    drain_all(gold.install)
    lytics_account.set_token(gold.install, "")
    done = audit(gold, Audit.Mode.SAMPLE, sample=60)
    assert 25 <= done.compared_with_odp <= 110
    assert audits.confidence(done) == pytest.approx(2.7 / (done.compared_with_odp + 2.7), rel=0.01)


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_a_sample_asks_odp_again_about_everyone_who_differed_before(
    odp: ThreadedSandbox, gold: Audience, monkeypatch: pytest.MonkeyPatch, is_interrupted: bool
) -> None:
    """A sample without them said that all is well again."""
    set_in_odp(odp, "dan", False)
    set_in_odp(odp, "eve", False)
    assert audit(gold).differing == 2
    for number in range(2):
        if is_interrupted:
            failed = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
            assert failed is not None
            audits._end(failed, {"problem": audits.FAILED})
        done = audit(gold, Audit.Mode.SAMPLE, share=0.0)
        assert (done.compared_with_odp, done.differing, found(done)) == (2, 2, dict.fromkeys(["dan", "eve"], "not_odp"))
        assert [one.pk for one in audits.to_act_on()] == [done.pk], number
    set_in_odp(odp, "dan", True)
    assert found(audit(gold, Audit.Mode.SAMPLE, share=0.0)) == {"eve": "not_odp"}
    odp.odp("POST", "/v3/profiles", [{"attributes": {"fs_user_id": "eve", "lytics_gold": True}}])
    odp.odp("POST", "/v3/profiles", [{"attributes": {"fs_user_id": "bob", "lytics_gold": False}}])
    assert found(audit(gold)).keys() >= {"bob"}
    assert "bob" in found(audit(gold, Audit.Mode.SAMPLE, share=0.0))
    set_in_odp(odp, "bob", True)
    set_in_odp(odp, "eve", True)
    last = audit(gold, Audit.Mode.SAMPLE, share=0.0)
    assert (last.compared_with_odp > 0, last.differing) == (True, 0)
    assert not audits.to_act_on().exists()


@pytest.mark.parametrize("mode", [Audit.Mode.FULL, Audit.Mode.SAMPLE])
def test_an_audit_without_lytics_leaves_differences_from_lytics_until_they_are_repaired(
    gold: Audience, lytics: Lytics, mode: Audit.Mode
) -> None:
    lytics.members.append("gus")
    differs = audit(gold)
    assert found(differs) == {"gus": Kind.NOT_HERE}
    lytics_account.set_token(gold.install, "")
    without = audit(gold, mode)
    assert (without.differing, without.is_newest) == (0, False)
    assert [one.pk for one in audits.to_act_on()] == [differs.pk]
    assert repair(differs).is_newest
    assert not audits.to_act_on().exists()


@pytest.mark.parametrize("between", ["failed", "only in ODP"])
def test_no_audit_without_lytics_hides_differences_from_lytics_from_the_next_one(
    odp: ThreadedSandbox, gold: Audience, lytics: Lytics, between: str
) -> None:
    lytics.members.append("gus")
    differs = audit(gold)
    lytics_account.set_token(gold.install, "")
    if between == "failed":
        failed = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
        assert failed is not None
        audits._end(failed, {"problem": audits.FAILED})
    else:
        set_in_odp(odp, "ann", False)
        assert found(audit(gold)) == {"ann": Kind.NOT_IN_ODP}
        set_in_odp(odp, "ann", True)
    assert audit(gold).differing == 0
    assert [one.pk for one in audits.to_act_on()] == [differs.pk]
    assert resends.may_repair(differs)


def test_more_people_differ_from_lytics_than_a_sample_has(gold: Audience, lytics: Lytics, operator: Client) -> None:
    lytics.members += [f"new-{n}" for n in range(60)]
    done = audit(gold, Audit.Mode.SAMPLE, share=0.999)
    assert done.differing > done.compared_with_odp > 0
    assert audits.confidence(done) == pytest.approx(1)
    assert "with 95 % confidence fewer than 100 % " in operator.get("/admin/").content.decode()


def test_a_sample_that_meets_nobody_claims_nothing(gold: Audience, operator: Client) -> None:
    lytics_account.set_token(gold.install, "")
    done = audit(gold, Audit.Mode.SAMPLE, share=0.0)
    assert "ODP was asked about nobody" in words.result(done)
    assert words.compared_nobody(done)
    assert audits.confidence(done) == 1


# --- repair --------------------------------------------------------------------------------------------------


def repair(done: Audit) -> Audit:
    assert resends.repair(done, by="kim", reason="drift")
    resends.advance_all(done.install_id, seconds=PATIENCE)
    drain_all(done.install)
    after = Audit.objects.filter(audience=done.audience).latest("id")
    assert after.by == f"repair of audit {done.pk}"
    return finish(after)


def test_a_repair_makes_all_three_sides_equal(odp: ThreadedSandbox, gold: Audience, lytics: Lytics) -> None:
    lytics.members = ["ann", "bob", "cyd", "gus", "fay"]
    set_in_odp(odp, "ann", False)
    set_in_odp(odp, "dan", False)
    done = audit(gold)
    assert repairs.plan(done)[:3] == (2, 2, 1)
    after = repair(done)
    assert (after.differing, found(after)) == (0, {})
    assert odp.members("lytics_gold") == ["ann", "bob", "cyd", "fay", "gus"]
    members = Membership.objects.filter(audience=gold, is_member=True)
    assert sorted(members.values_list("identifier", flat=True)) == ["ann", "bob", "cyd", "fay", "gus"]
    assert set(Again.objects.values_list("cause", flat=True)) == {"repair"}


def test_anything_newer_than_the_scan_wins_over_a_repair(gold: Audience, lytics: Lytics) -> None:
    lytics.members.append("gus")
    done = audit(gold)
    assert done.scan_began_at is not None
    happen(gold, ("gus", "exit", times.from_moment(done.scan_began_at) + 1))
    drain_all(gold.install)
    assert resends.repair(done, by="kim", reason="drift")
    resends.advance_all(gold.install_id, seconds=PATIENCE)
    drain_all(gold.install)
    assert not Membership.objects.get(audience=gold, identifier="gus").is_member


def test_a_repair_that_changes_many_needs_a_confirmation(gold: Audience, lytics: Lytics, settings: Settings) -> None:
    lytics.members.append("gus")
    done = audit(gold)
    assert repairs.needs_confirmation(done)
    settings.REPAIR_PERCENT = 20
    assert not repairs.needs_confirmation(done)
    done.compared_with_lytics = 0  # as without an API token
    assert not repairs.needs_confirmation(done)


def test_a_repair_is_later_than_what_was_here_before_the_scan_unless_that_is_in_the_future() -> None:
    audit, believed, future = Audit(before_sequence=5), leases.latest_ns() - times.SECOND, 2**62
    known = [(5, believed), (6, believed), (5, future)]
    rows = [Membership(sequence=sequence, occurred_ns=at) for sequence, at in known]
    assert [repairs._after(1, row, audit) for row in rows] == [believed + 1, 1, 1]


@pytest.mark.parametrize("sequence", [1, 2])
def test_a_repair_of_a_passthrough_audience_moves_the_time_only_of_what_was_compared(sequence: int) -> None:
    """A state that came later keeps its time: an event between both may still be on its way."""
    shop = make_install(mechanism="passthrough")
    gold, began = make_audience(shop), now()
    done = Audit.objects.create(install=shop, audience=gold, before_sequence=1, scan_began_at=began)
    Membership.objects.create(audience=gold, identifier="ann", is_member=True, sequence=sequence, occurred_ns=7)
    for who in ("ann", "bob"):
        Difference.objects.create(audit=done, identifier=who, kind=Kind.NOT_IN_ODP)
    ends = [repairs.facts(done, after=after, limit=1)[1:] for after in ("", "ann", "bob")]
    assert ends == [("ann", False), ("bob", False), ("bob", True)]
    ((fact,), _, _) = repairs.facts(done, after="", limit=9)
    assert fact.occurred_ns == (times.from_moment(began) if sequence == 1 else 7)


def test_only_the_newest_audit_can_be_repaired(gold: Audience, lytics: Lytics) -> None:
    lytics.members.append("gus")
    older = audit(gold)
    audit(gold)
    assert not resends.repair(older, by="kim", reason="drift")


def test_people_read_by_a_former_identifier_field_are_not_repaired(
    odp: ThreadedSandbox, gold: Audience, lytics: Lytics
) -> None:
    lytics.members.append("gus")
    set_in_odp(odp, "ann", False)
    done = audit(gold)
    assert repairs.plan(done)[:4] == (1, 0, 1, 0)
    Install.objects.update(identifier_field="email", identifier_since_at=now())
    assert repairs.plan(done)[:4] == (0, 0, 1, 1)
    assert resends.repair(done, by="kim", reason="drift")
    resends.advance_all(gold.install_id, seconds=PATIENCE)
    assert Event.objects.latest("sequence").identifier == "ann"


def test_a_field_that_is_switched_while_an_audit_runs_is_not_read_any_more(
    gold: Audience, lytics: Lytics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With members of the former field, a repair would enter them under it, and the others would leave."""
    data = [{"_id": who, "email": f"{who}@example.com"} for who in [*lytics.members, "hal"]]
    lytics.answer = lambda path, _: (200, {"data": data, "_next": ""}) if path.endswith("/scan") else None
    of = sizes.of

    def switch(asked: Audit) -> dict[str, Any]:
        Install.objects.update(identifier_field="email", identifier_since_at=now())
        return of(asked)

    monkeypatch.setattr(sizes, "of", switch)
    done = audit(gold)
    assert {who for who, kind in found(done).items() if kind == Kind.NOT_HERE} == {each["email"] for each in data}


def test_an_audience_that_gets_another_odp_id_while_an_audit_runs_is_asked_about_under_it(
    gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def ask(*arguments: Any, odp_ids: list[str], **more: Any) -> Any:
        seen.append(odp_ids)
        Audience.objects.update(odp_id="lytics_gold_2")
        return graphql.ask(*arguments, odp_ids=odp_ids, **more)

    monkeypatch.setattr(asking_odp, "ask", ask)
    audit(gold)
    assert seen[0] == ["lytics_gold"]
    assert seen[-1] == ["lytics_gold_2"]


def test_a_clean_audit_offers_no_repair(gold: Audience) -> None:
    assert not resends.repair(audit(gold), by="kim", reason="drift")


def test_the_audience_in_odp_is_looked_at_after_an_audit_that_found_something_or_failed(
    gold: Audience, lytics: Lytics, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    monkeypatch.setattr(audits, "wake_look", looks.append)
    audit(gold)
    assert looks == []
    lytics.members = ["ann", "bob", "cyd", "dan"]
    assert audit(gold).differing == 1
    assert len(looks) == 1
    lytics.answer = lambda path, query: (404, {"message": "segment not found"})
    assert audit(gold).problem
    assert looks == [gold.install_id] * 2


# --- when ----------------------------------------------------------------------------------------------------


def test_the_schedule_audits_each_audience_once_a_day(gold: Audience) -> None:
    Audience.objects.update(provisioned_at=times.moment(times.from_moment(now()) - 2 * 86_400 * times.SECOND))
    assert audits.ask_due() == 1
    assert audits.ask_due() == 0


def test_the_schedule_leaves_a_new_audience_alone_for_a_day(gold: Audience) -> None:
    """Lytics may not have sent all its members yet."""
    assert audits.ask_due() == 0


def test_audits_that_wait_for_long_keep_the_schedule_from_no_other_audience(
    many: list[Audience], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "ASKED", 2)
    days_ago = now() - timedelta(days=2)
    Audience.objects.update(provisioned_at=days_ago)
    assert audits.ask_due() == 2
    Audit.objects.update(asked_at=days_ago)
    assert audits.ask_due() == 1


@pytest.fixture
def tests_alone(gold: Audience, lytics: Lytics) -> Audience:
    """Lytics doesn't have the audience of the test customers, and may not have a retired audience."""
    retired = make_audience(gold.install, "retired", provisioned=False)
    tests = make_audience(gold.install, "sync_test", provisioned=False)
    enter(retired, "ann")
    enter(tests, "test-1")
    drain_all(gold.install)
    Audience.objects.filter(pk=tests.pk).update(segment_id=naming.TEST_SEGMENT_ID)
    Lane.objects.filter(pk=retired.pk).update(retired_sequence=1)
    lytics.answer = lambda path, query: None if "gold" in path else (404, {"message": "segment not found"})
    return Audience.objects.get(pk=tests.pk)


def test_lytics_is_not_asked_about_the_audience_of_the_test_customers(tests_alone: Audience) -> None:
    """Its audit failed each day, and stood on Now for ever."""
    done = audit(tests_alone)
    assert (done.problem, done.differing, done.compared_with_odp) == ("", 0, 1)
    assert done.note == scanning.OF_TESTS


def test_the_command_audits_the_audiences_that_lytics_sends(tests_alone: Audience) -> None:
    code, text = run_command("Shop", "--full")
    assert (code, [line.partition(":")[0] for line in text.splitlines()]) == (0, ["lytics_gold"])


def test_one_audit_of_an_audience_at_a_time(gold: Audience) -> None:
    first = audits.ask(gold, mode=Audit.Mode.QUICK, by="kim")
    assert first is not None
    assert audits.ask(gold, mode=Audit.Mode.QUICK, by="kim") is None
    assert audits.stop(first, by="kim")
    assert not audits.stop(first, by="kim")
    assert audits.ask(gold, mode=Audit.Mode.QUICK, by="kim") is not None


def test_an_audit_that_is_stopped_while_it_waits_keeps_no_member_of_its_scan(
    gold: Audience, settings: Settings
) -> None:
    settings.AUDIT_SETTLE_SECONDS = 3600
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    audits.advance_all(gold.install_id, seconds=PATIENCE)
    assert ScannedMember.objects.count() == 5
    allowed = {}

    def execute(proceed: Callable[..., Any], sql: str, *rest: Any) -> Any:
        allowed[sql.split(" WHERE")[0]] = sessions._extra_seconds.get()
        return proceed(sql, *rest)

    with connection.execute_wrapper(execute):
        assert audits.stop(asked, by="kim")
    assert allowed['DELETE FROM "audiences_scannedmember"'] == 60, "millions take longer than DATABASE_WEB_SECONDS"
    assert not ScannedMember.objects.exists()


@pytest.mark.parametrize("mode", [Audit.Mode.FULL, Audit.Mode.SAMPLE])
@pytest.mark.parametrize("ended_by", ["a person", "another worker"])
def test_an_audit_that_ends_while_it_reads_a_page_does_not_keep_the_page(
    gold: Audience, mode: str, ended_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = audits.ask(gold, mode=mode, by="kim")
    assert asked is not None
    store = scanning._store

    def store_late(*page: Any) -> None:
        if ended_by == "a person":
            assert audits.stop(asked, by="kim")
        else:
            audits._end(Audit.objects.get(pk=asked.pk), {"problem": "Stopped by kim."})
        store(*page)

    monkeypatch.setattr(scanning, "_store", store_late)
    assert finish(asked).problem == "Stopped by kim."
    assert not ScannedMember.objects.exists()


def test_an_audit_that_fails_after_a_person_has_stopped_it_leaves_the_newest_result(gold: Audience) -> None:
    newest = audit(gold)
    stopped = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert stopped is not None
    assert audits.stop(stopped, by="kim")
    audits._end(stopped, {"problem": audits.FAILED})
    assert Audit.objects.get(is_newest=True) == newest
    assert Audit.objects.get(pk=stopped.pk).problem == "Stopped by kim."


def compare_after(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Let something happen right before the comparison with Lytics."""

    def late(audit: Audit) -> Step:
        change()
        return comparing.compare(audit)

    monkeypatch.setitem(audits._STEPS, Audit.Phase.COMPARE, late)


def test_an_audit_that_ends_before_its_comparison_stores_no_difference(
    gold: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scan is deleted, so everybody would look like a person who left, and a repair would have them leave."""
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    compare_after(monkeypatch, lambda: audits.stop(asked, by="kim"))
    assert finish(asked).problem == "Stopped by kim."
    assert not Difference.objects.exists()


def test_a_worker_that_wakes_up_late_changes_no_later_step(gold: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker has compared with Lytics and goes on with ODP."""
    asked = audits.ask(gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    row = Audit.objects.filter(pk=asked.pk)
    compare_after(monkeypatch, lambda: row.update(phase=Audit.Phase.ODP, differing=7, compared_with_lytics=8))
    done = finish(asked)
    assert (done.differing, done.compared_with_lytics, done.compared_with_odp) == (7, 8, 6)


@pytest.mark.parametrize("mechanism", ["attribute", "list"])
def test_audits_work_with_each_mechanism(odp: ThreadedSandbox, lytics: Lytics, mechanism: str) -> None:
    shop = make_install(odp, mechanism=mechanism)
    made = make_audience(shop, provisioned=False)
    enter(made, "ann", "bob")
    drain_all(shop)
    odp.fault({"path": "/v3/", "method": "POST"}, {"status": 202, "body": {"title": "ok"}, "apply": False})
    enter(made, "cyd", at=3)
    drain_all(shop)
    odp.clear_faults()
    assert found(audit(Audience.objects.get(pk=made.pk))) == {"cyd": Kind.NOT_IN_ODP}


# --- what people see -----------------------------------------------------------------------------------------


def test_the_page_of_an_audit_names_people_sides_and_reasons(
    odp: ThreadedSandbox, gold: Audience, lytics: Lytics, boss: Client
) -> None:
    lytics.members.append("gus-of-lytics")
    set_in_odp(odp, "ann", False)
    done = audit(gold)
    page = boss.get(reverse("admin:audiences_audit_change", args=[done.pk])).content.decode()
    assert "agreed on 5 of 7 people" in page
    assert "gus-of-lytics" in page
    assert "member in Lytics, not here" in page
    front = boss.get(reverse("admin:index")).content.decode()
    assert "lytics_gold differs between Lytics, this service and ODP" in front
    assert "gus-of-lytics" not in front
    assert "then press Repair" in front
    Difference.objects.update(why="Parked: no_identifier")
    (alert,) = (one for one in boss.get(reverse("admin:index")).context["alerts"] if "differs" in one.what)
    assert (alert.todo[:34], [button.label for button in alert.buttons]) == (
        "A repair can't correct these diffe",
        ["Audit"],
    )
    Lane.objects.update(retired_sequence=1)
    front = boss.get(reverse("admin:index")).content.decode()
    assert "differs between" not in front, "a retired audience can't be audited again"
    of_audience = boss.get(reverse("admin:audiences_audience_change", args=[gold.pk])).content.decode()
    assert "agreed on 5 of 7 people" in of_audience


def test_customers_are_masked_for_people_who_may_not_find_them(gold: Audience, lytics: Lytics) -> None:
    lytics.members.append("gus-of-lytics")
    done = audit(gold)
    viewer = someone("viewer")
    User.objects.get(username="viewer").groups.clear()
    permission = Permission.objects.get(content_type__app_label="audiences", codename="view_audit")
    User.objects.get(username="viewer").user_permissions.add(permission)
    page = viewer.get(reverse("admin:audiences_audit_change", args=[done.pk])).content.decode()
    assert "gus-of-lytics" not in page
    assert "gu•••cs" in page


def test_audit_and_repair_are_buttons(odp: ThreadedSandbox, gold: Audience, lytics: Lytics, operator: Client) -> None:
    lytics.members.append("gus")
    press(operator, "audit", gold, mode="full", sample="1000")
    done = finish(Audit.objects.get())
    asked = press(operator, "repair", done, reason="drift")
    assert "1 enter and 0 leave" in asked
    resends.advance_all(gold.install_id, seconds=PATIENCE)
    drain_all(gold.install)
    assert "gus" in odp.members("lytics_gold")
    after = finish(Audit.objects.latest("id"))
    page = operator.get(reverse("admin:audiences_audit_change", args=[after.pk])).content.decode()
    assert "agreed on 7 of 7 people" in page
    assert "differs between" not in operator.get(reverse("admin:index")).content.decode()


def test_an_audit_without_a_result_has_the_button_that_audits_again(gold: Audience, operator: Client) -> None:
    failed = {"install": gold.install, "audience": gold, "is_newest": True, "ended_at": now()}
    Audit.objects.create(**failed, mode="full", by="kim", problem="Lytics rejects the scan.")

    def told() -> tuple[str, list[str]]:
        alerts = operator.get(reverse("admin:index")).context["alerts"]
        (found,) = [one for one in alerts if "could not be audited" in one.what]
        return found.todo, [button.label for button in found.buttons]

    assert told() == ("Press Audit.", ["Audit"])
    press(operator, "audit", gold, mode="full", sample="1000")
    assert told() == ("Another audit is under way, and replaces this result.", [])


def test_an_audience_has_the_result_that_counts_beside_its_newest_audit(gold: Audience, operator: Client) -> None:
    """The page used to show only the newest audit. An audit of sizes hid an older one of people with differences."""
    shared = {"install": gold.install, "audience": gold, "ended_at": now(), "by": "kim"}
    Audit.objects.create(**shared, mode="full", is_newest=True, compared_with_odp=6, differing=2)
    Audit.objects.create(**shared, mode="full", moving=6)
    page = operator.get(reverse("admin:audiences_audience_change", args=[gold.pk])).content.decode()
    assert re.findall(r'<p><span class="ls-pill[^>]*>(\w+)<', page) == ["unknown", "differs"]
    assert "agreed on 4 of 6 people" in page


def run_command(*words: str) -> tuple[int, str]:
    out = io.StringIO()
    try:
        call_command("audit_audiences", *words, stdout=out)
    except SystemExit as ended:
        return int(str(ended.code)), out.getvalue()
    return 0, out.getvalue()


def test_the_command_prints_the_result_and_fails_where_sides_differ(gold: Audience, lytics: Lytics) -> None:
    other = make_audience(make_install(name="Other"), "silver")
    Audience.objects.filter(pk=other.pk).update(provisioned_at=now())
    code, text = run_command(gold.install.public_id, "--full")
    assert (code, "agreed on 6 of 6 people" in text, len(text.splitlines())) == (0, True, 1)
    lytics.members.append("gus")
    code, text = run_command(
        gold.install.name, "--full", "--json", "--people", "--audience", "gold", "--audience", "lytics_gold"
    )
    (report,) = json.loads(text)["audits"]
    assert (code, report["differing"], report["people"][0]["identifier"]) == (1, 1, "gus")
    assert "people" not in json.loads(run_command(gold.install.name, "--json")[1])["audits"][0]


@pytest.mark.parametrize("found", [{"problem": "ODP is away."}, {"only_in_odp": 3}], ids=str)
def test_the_command_fails_without_a_person_who_differs_too(
    gold: Audience, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]
) -> None:
    def finish(asked: list[Audit]) -> list[Audit]:
        vars(asked[0]).update(found, ended_at=now())
        return asked

    monkeypatch.setattr(audits, "finish", finish)
    assert run_command("Shop")[0] == 1


def test_the_command_does_not_wait_for_an_install_that_is_switched_off(gold: Audience) -> None:
    asked = ask_all([gold])
    Install.objects.update(enabled=False)
    assert list(audits.finish(asked)) == [], "no step is taken while the install is off"
    Audit.objects.all().delete()
    with pytest.raises(CommandError, match="Shop is switched off"):
        call_command("audit_audiences", "Shop", "--full")
    assert not Audit.objects.exists()


def test_the_command_says_when_it_audits_nothing(db: None) -> None:
    make_audience(make_install(name="New"), provisioned=False)
    assert run_command("New") == (0, "New has no audience in ODP to audit.\n")
    assert json.loads(run_command("New", "--json")[1]) == {"audits": []}


def test_the_command_lets_the_waits_of_all_audits_overlap(many: list[Audience], settings: Settings) -> None:
    settings.AUDIT_SETTLE_SECONDS = 1
    _, text = run_command("Shop", "--full")
    assert len(text.splitlines()) == 3
    last_start = max(audit.started_at for audit in Audit.objects.all() if audit.started_at)
    first_end = min(audit.ended_at for audit in Audit.objects.all() if audit.ended_at)
    assert last_start < first_end


def test_the_command_requests_no_audit_if_one_is_under_way(many: list[Audience]) -> None:
    ask_all(sorted(many, key=lambda audience: audience.odp_id)[2:])
    with pytest.raises(CommandError, match=r"An audit of .* is under way"):
        call_command("audit_audiences", "Shop", "--full")
    assert Audit.objects.count() == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nowhere"], "No install is called 'nowhere'"),
        (["Shop", "--audience", "silver"], "no audience in ODP with the slug silver"),
        (["Shop", "--sample", "0"], "at least 1"),
    ],
)
def test_the_command_says_what_is_wrong_with_its_options(gold: Audience, options: list[str], words: str) -> None:
    with pytest.raises(CommandError, match=words):
        call_command("audit_audiences", *options)
