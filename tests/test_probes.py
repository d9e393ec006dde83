"""Probes: each install's own test customer, sent on a schedule, and what pages say is proven."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models import F
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences.delivery import backoff, drafts
from audiences.front import proofs
from audiences.front.alerts import EVERYWHERE, Extent
from audiences.insight import checklist, probes, trials
from audiences.insight.probes import Proof
from audiences.models import Audience, GuidedChange, Install, Membership, Trial
from audiences.receiving import tokens
from sandbox.odp.testing import ThreadedSandbox
from sandbox.odp.world import Options
from tests.delivering import NOWHERE, UNLIMITED, drain_all, make_audience, make_checked_install, make_install
from tests.people import someone
from workers import tasks, trial

pytestmark = pytest.mark.django_db


@pytest.fixture
def shop(odp: ThreadedSandbox) -> Install:
    made = make_checked_install(odp)
    tokens.create(made)
    make_audience(made)
    return made


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step gets three looks, and the workers run between two of them."""
    monkeypatch.setattr(trial, "HOP_SECONDS", 3.0)
    monkeypatch.setattr(trial, "SHOWN_SECONDS", 4.0)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trial]:
    """Let the schedule start what is due, and walk the probe of this install to its end."""

    def run(shop: Install, *, meanwhile: Callable[[], Any] | None = None) -> Trial:
        elapsed = [0.0]

        class Clock:
            monotonic = staticmethod(lambda: elapsed[0])

        def pause(seconds: float) -> None:
            elapsed[0] += 1.0
            (meanwhile or (lambda: drain_all(shop)))()

        monkeypatch.setattr(trial, "time", Clock)
        tasks.probe()
        trial.walk(shop.pk, pause=pause)
        return Trial.objects.filter(install=shop).latest("id")

    return run


def passed(minutes: float) -> None:
    """Let time pass: the Trials and what the ledger knows are older by these minutes."""
    Membership.objects.update(occurred_ns=F("occurred_ns") - int(minutes * 60 * 10**9))
    for one in Trial.objects.all():
        moved = {name: getattr(one, name) for name in ("started_at", "begun_at", "moved_at", "closed_at")}
        Trial.objects.filter(pk=one.pk).update(
            **{name: at and at - timedelta(minutes=minutes) for name, at in moved.items()}
        )
    Install.objects.update(key_asked_at=now() - timedelta(days=1))


Run = Callable[..., Trial]


def proof(shop: Install) -> probes.Proof:
    return probes.proof_of(Install.objects.get(pk=shop.pk))


def save(operator: Client, shop: Install, **changes: Any) -> None:
    """Save the form of the install."""
    address = reverse("admin:audiences_install_change", args=[shop.pk])
    form = operator.get(address).context["adminform"].form
    values = {name: form.initial.get(name) for name in form.fields}
    sent = {name: value for name, value in values.items() if value is not None and value is not False}
    assert operator.post(address, {**sent, **changes}).status_code == 302


def proven(odp: ThreadedSandbox, run: Run, settings: Settings, **fields: Any) -> Install:
    """An install with the test customers' audience alone. It has a proof, and no schedule that asks for another one."""
    shop = make_checked_install(odp, **fields)
    tokens.create(shop)
    trials.start(shop, by="kim")
    run(shop)
    assert proof(shop).word == "proven"
    settings.PROBE_MINUTES = 0
    return shop


# --- when ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["account", "mechanism", "identifier"])
def test_a_proof_of_another_account_or_mechanism_is_none(
    shop: Install, run: Run, settings: Settings, kind: GuidedChange.Kind
) -> None:
    """Without a schedule it would be shown as done for ever."""
    run(shop)
    settings.PROBE_MINUTES = 0
    change = GuidedChange.objects.create(install=shop, kind=kind, before="a", after="b", by="kim", reason="x")
    assert proof(shop).word == "proven", "it is not switched yet"
    GuidedChange.objects.filter(pk=change.pk).update(
        switched_at=now() if kind == "account" else None, ended_at=now() if kind != "account" else None
    )
    shown = next(line for line in checklist.lines(shop) if line.name == "shown")
    if kind == "identifier":
        assert (proof(shop).word, shown.is_done) == ("proven", True)
        return
    assert (proof(shop), shown.is_done) == (Proof("none"), False)
    assert "since the account, the mechanism or" in shown.state.why
    Trial.objects.update(started_at=now() + timedelta(seconds=1))
    assert proof(shop).word == "proven"


def test_an_install_with_the_test_audience_alone_begins_anew_in_the_account_of_its_form(
    operator: Client, run: Run, settings: Settings, odp: ThreadedSandbox
) -> None:
    """Its proof is of the account before. The new account has neither the audience nor its field."""
    shop = proven(odp, run, settings)
    with ThreadedSandbox(Options(private_key="another.account", settings=UNLIMITED)) as other:
        save(operator, shop, odp_host=other.url, odp_api_key="another.wrong")
        assert Install.objects.get().key_accepted_at is None
        save(operator, shop, odp_api_key="another.account")
        assert Install.objects.get().key_accepted_at is not None
        assert proof(shop) == Proof("none")
        assert "since the account, the mechanism or" in probes.none_sent(shop)
        trials.start(Install.objects.get(), by="kim")
        run(Install.objects.get())
        assert proof(shop).word == "proven"


@pytest.mark.parametrize("before", ["attribute", "list"])
def test_an_install_with_the_test_audience_alone_begins_anew_with_the_mechanism_of_its_form(
    operator: Client, run: Run, settings: Settings, odp: ThreadedSandbox, before: str
) -> None:
    shop = proven(odp, run, settings, mechanism=before)
    save(operator, shop, mechanism="list" if before == "attribute" else "attribute")
    assert proof(shop) == Proof("none")
    trials.start(Install.objects.get(), by="kim")
    run(Install.objects.get())
    assert proof(shop).word == "proven"


def test_another_secret_of_the_account_leaves_the_proof(
    operator: Client, run: Run, settings: Settings, odp: ThreadedSandbox
) -> None:
    shop = proven(odp, run, settings)
    save(operator, shop, odp_api_key=f"{shop.odp_api_key.partition('.')[0]}.another")
    assert proof(shop).word == "proven"


def test_an_install_with_an_audience_is_probed_without_anybody_asking(shop: Install, run: Run) -> None:
    assert proof(shop).word == "none"
    ended = run(shop)
    assert (ended.is_probe, ended.started_by) == (True, "schedule")
    assert proof(shop).word == "proven"
    assert proof(shop).at == ended.closed_at


@pytest.mark.parametrize(
    "change",
    [
        lambda shop: Install.objects.update(enabled=False),
        lambda shop: Install.objects.update(key_accepted_at=None),
        lambda shop: (Audience.objects.get().lane.delete(), Audience.objects.all().delete()),
    ],
    ids=["switched off", "a draft", "without an audience"],
)
def test_an_install_that_delivers_nothing_is_not_probed(shop: Install, change: Callable[[Install], Any]) -> None:
    change(shop)
    assert probes.start_due() == 0


def test_probes_can_be_switched_off(shop: Install, settings: Settings) -> None:
    settings.PROBE_MINUTES = 0
    assert probes.start_due() == 0


def test_the_next_probe_follows_after_the_interval(shop: Install, run: Run) -> None:
    run(shop)
    passed(14.9)
    assert probes.start_due() == 0
    passed(0.2)
    assert probes.start_due() == 1
    assert probes.start_due() == 0


def test_a_failed_probe_is_followed_sooner(shop: Install, run: Run) -> None:
    run(shop, meanwhile=lambda: None)
    assert proof(shop).word == "failing"
    passed(1.9)
    assert probes.start_due() == 0
    passed(0.2)
    assert probes.start_due() == 1


def test_a_probe_that_failed_on_its_way_in_and_ended_outside_is_followed_sooner(shop: Install, run: Run) -> None:
    trials.note(run(shop), trials.IN, trials.SHOWN, trials.FAILED, "ODP didn't show it", ms=1)
    passed(2.1)
    assert probes.start_due() == 1


def test_a_changed_connection_is_probed_at_once(shop: Install, run: Run) -> None:
    run(shop)
    passed(1)
    assert probes.start_due() == 0
    Trial.objects.update(closed_at=now())
    drafts.note_key(shop.pk, problem="")
    assert probes.start_due() == 0, "its entry would be dated before the last exit"
    passed(1)
    drafts.note_key(shop.pk, problem="")
    assert probes.start_due() == 1


def test_few_probes_are_under_way_at_once_and_the_oldest_proof_goes_first(shop: Install, odp: ThreadedSandbox) -> None:
    others = [make_install(odp) for _ in range(7)]
    for other in others:
        drafts.note_key(other.pk, problem="")
        make_audience(other)
    newest = others[0]
    trials.start(newest, by="kim")
    trials.close(Trial.objects.get(install=newest))
    passed(60)
    trials.start(others[1], by="kim")  # it takes no place of theirs
    assert probes.start_due() == probes.AT_ONCE == 5
    assert not Trial.objects.filter(install=newest, closed_at=None).exists()
    assert probes.start_due() == 0


# --- what it proves ------------------------------------------------------------------------------------------


def test_all_probes_of_an_install_have_one_customer_that_ends_outside(
    shop: Install, odp: ThreadedSandbox, run: Run
) -> None:
    first = run(shop)
    passed(20)
    second = run(shop)
    assert first.identifier == second.identifier
    assert second.pk != first.pk
    assert proof(shop) == probes.Proof("proven", second.closed_at)
    (row,) = Membership.objects.filter(audience__segment_id=trials.SEGMENT_ID)
    assert (row.identifier, row.is_member) == (first.identifier, False)


def test_after_a_failure_the_next_probe_has_a_new_customer(shop: Install, run: Run) -> None:
    """ODP may still show the old one, and its entry would prove nothing."""
    first = run(shop, meanwhile=lambda: None)
    drain_all(shop)
    passed(20)
    second = run(shop)
    assert second.identifier != first.identifier
    assert proof(shop).word == "proven"
    passed(20)
    assert run(shop).identifier == second.identifier


def withdraw_consent(odp: ThreadedSandbox) -> None:
    odp.assume(consent_effect="everything")
    odp.settings(consent="opted_out")


def swallow(odp: ThreadedSandbox) -> None:
    """ODP accepts each write and applies none."""
    odp.fault({"path": "/v3/profiles", "method": "POST"}, {"status": 202, "body": {"title": "ok"}, "apply": False})


def revoke_key(odp: ThreadedSandbox) -> None:
    odp.control("/sandbox/keys/revoke", {"key": odp.private_key, "after_seconds": 0})


def break_reading(odp: ThreadedSandbox) -> None:
    odp.fault({"path": "/v3/graphql"}, {"status": 500})


def show_no_exit(odp: ThreadedSandbox) -> None:
    """ODP accepts the exit and does not apply it."""
    swallowed = {"status": 202, "body": {"title": "ok"}, "apply": False}
    odp.fault({"path": "/v3/profiles", "method": "POST", "after": 1}, swallowed)


def wrong_host(odp: ThreadedSandbox) -> None:
    Install.objects.update(odp_host=NOWHERE)


@pytest.mark.parametrize(
    ("trouble", "cause", "cure"),
    [
        (withdraw_consent, "doesn't show it", "Opted In"),
        (swallow, "doesn't show it", "Opted In"),
        (show_no_exit, "still shows the customer", "Resync"),
        (revoke_key, "on hold: 403", "Enter an API key"),
        (break_reading, "ODP could not be asked", "500"),
        (wrong_host, "could not be reached", "ODP host"),
    ],
)
def test_what_no_delivery_shows_is_found_by_the_next_probe(
    shop: Install, odp: ThreadedSandbox, run: Run, trouble: Callable[[ThreadedSandbox], None], cause: str, cure: str
) -> None:
    """Deliveries are answered 202 in most of these, and every other page stays green."""
    run(shop)
    assert proof(shop).word == "proven"
    passed(20)
    trouble(odp)
    run(shop)
    found = proof(shop)
    assert found.word == "failing"
    assert found.at is not None
    assert cause in found.why
    assert cure in found.why


def test_a_failure_turns_the_pages_red_with_cause_and_age(shop: Install, run: Run, boss: Client) -> None:
    run(shop)
    passed(20)
    run(shop, meanwhile=lambda: None)
    front = boss.get(reverse("admin:index")).content.decode()
    assert f"{shop}: ODP doesn&#x27;t show what is sent" in front
    assert "No worker has taken the event" in front
    assert "ODP last showed a test customer 20 min ago." in front
    listed = boss.get(reverse("admin:audiences_install_changelist")).content.decode()
    assert ">failing</span>" in listed
    line = next(one for one in checklist.lines(shop) if one.name == "shown")
    assert line.state.alert
    assert "No worker has taken the event" in line.state.why


def test_without_probes_for_two_intervals_the_proof_is_overdue(shop: Install, run: Run, boss: Client) -> None:
    run(shop)
    passed(31)
    assert proof(shop).word == "proven"
    passed(2)
    assert proof(shop).word == "overdue"
    assert "Start the worker and beat processes." in boss.get(reverse("admin:index")).content.decode()


def test_a_failure_by_a_hold_that_is_over_is_no_trouble(shop: Install, odp: ThreadedSandbox, run: Run) -> None:
    """The next test customer follows within two minutes; until then the last proof counts."""
    run(shop)
    passed(40)
    revoke_key(odp)
    run(shop)
    assert proof(shop).word == "failing"
    backoff.release(shop)
    assert proof(shop).word == "proven"
    passed(33)
    assert proof(shop).word == "overdue"


def test_an_overdue_proof_says_when_its_test_customer_waits_for_those_of_other_installs(
    shop: Install, run: Run, odp: ThreadedSandbox
) -> None:
    run(shop)
    passed(33)
    other = Trial.objects.create(install=make_install(odp, name="Other"), identifier="x", is_probe=True)
    assert (proof(shop).word, proof(shop).cure) == ("overdue", probes.WAITING_CURE)
    assert proof(shop).why == f"{probes.WAITING} {probes.WAITING_CURE}"
    Trial.objects.filter(pk=other.pk).update(moved_at=now() - trials.SILENT_AFTER)
    assert proof(shop).cure == probes.STOPPED_CURE


def test_a_proof_is_not_overdue_while_the_next_test_customer_is_under_way(shop: Install, run: Run) -> None:
    """As after a maintenance, or when an install is switched on again: nothing has to be started."""
    run(shop)
    passed(600)
    assert probes.start_due() == 1
    assert proof(shop).word == "proven"
    Trial.objects.filter(closed_at=None).update(moved_at=now() - trials.SILENT_AFTER)
    trials.give_up_silent()
    assert proof(shop).word == "failing"


def test_the_installs_list_reads_all_proofs_with_a_fixed_number_of_queries(
    shop: Install, odp: ThreadedSandbox, run: Run, boss: Client, django_assert_max_num_queries: Any
) -> None:
    run(shop)
    url = reverse("admin:audiences_install_changelist")
    with django_assert_max_num_queries(40) as one:
        assert boss.get(url).content.decode().count(">proven</span>") == 1
    for _ in range(5):
        make_install(odp)
    with django_assert_max_num_queries(len(one)):
        assert boss.get(url).status_code == 200


def test_now_has_the_oldest_proof_and_names_no_install_on_hold_twice() -> None:
    first, held = Install(pk=1, name="Shop"), Install(pk=2, name="Held", backoff_until_at=now())
    known = {1: Proof("proven", now() - timedelta(minutes=1)), 2: Proof("failing", now() - timedelta(hours=2))}
    assert proofs.proof_number([first, held], known).value == "2 h ago"
    assert proofs.not_proven([first, held], known, EVERYWHERE) == []


def test_now_says_why_it_has_no_proof() -> None:
    off, fresh = Install(pk=1, name="Off", enabled=False), Install(pk=2, name="Fresh")
    known = {1: Proof("proven", now()), 2: Proof("none")}
    assert proofs.proof_number([], {}).note == "no install is on"
    assert proofs.proof_number([off], known).note == "no install is on"
    # A test customer may be under way, or have ended in another account.
    assert proofs.proof_number([off, fresh], known).note == "no result of a test customer yet"


def test_the_audience_of_the_probes_is_not_among_the_audiences_of_lytics(shop: Install, run: Run) -> None:
    run(shop)
    url = reverse("admin:audiences_audience_changelist")
    viewer = someone("viewer")
    assert "lytics_sync_test" not in viewer.get(url).content.decode()
    assert "lytics_sync_test" in viewer.get(f"{url}?state=test").content.decode()
    assert "lytics_sync_test" in viewer.get(f"{url}?q=sync_test").content.decode()


def test_the_last_proof_is_kept_though_many_probes_have_failed_since(
    odp: ThreadedSandbox, shop: Install, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a night of failures, Now said that ODP has never shown a test customer."""
    monkeypatch.setattr(probes, "KEPT", 1)
    shown = run(shop)
    break_reading(odp)
    for _ in range(3):
        passed(20)
        run(shop)
    assert (proof(shop).word, proof(shop).at) == ("failing", Trial.objects.get(pk=shown.pk).closed_at)
    assert Trial.objects.count() == 2
    assert probes.gaps(now() - timedelta(days=1)) == [], "those between the two were deleted"


def test_only_the_newest_probes_are_kept(shop: Install, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "KEPT", 2)
    trials.start(shop, by="kim")
    trials.close(Trial.objects.get())
    for _ in range(4):
        passed(20)
        run(shop)
    assert Trial.objects.filter(is_probe=True).count() == 2
    assert Trial.objects.filter(is_probe=False).count() == 1


LONG_AGO = now() - timedelta(hours=2)


@pytest.mark.parametrize(
    ("known", "well"),
    [
        ([Proof("none")], None),
        ([Proof("failing", None)], False),
        ([Proof("proven", LONG_AGO)], True),
        ([Proof("proven", LONG_AGO), Proof("failing", LONG_AGO)], False),
        ([Proof("proven", LONG_AGO), Proof("failing", None)], False),
        ([Proof("proven", LONG_AGO), Proof("none")], True),
    ],
)
def test_now_is_green_only_with_a_proof_and_red_with_a_failure(known: list[Proof], well: bool | None) -> None:
    installs = [Install(pk=number, name=f"Shop {number}") for number in range(len(known))]
    assert proofs.proof_number(installs, dict(enumerate(known))).well is well


def test_failures_that_now_does_not_list_are_counted() -> None:
    installs = [Install(pk=number, name=f"Shop {number}", enabled=number != 3) for number in range(4)]
    found = proofs.not_proven(installs, dict.fromkeys(range(4), Proof("failing", LONG_AGO)), Extent(most=1))
    assert [alert.what for alert in found][1:] == ["2 more installs whose test customer failed"]
