"""Drift in ODP with each mechanism, and members whom only ODP has."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import Settings

from audiences import lytics_account
from audiences.agreement import odp_reasons, sizes, words
from audiences.models import Audit, Difference, Install, Membership
from audiences.operations import changes
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import drain_all, happen, make_audience, make_checked_install, make_delivered
from tests.lytics_api import Lytics
from tests.test_changes import finish
from tests.test_drift import MEMBERS, Pair, agree, audit, named, repair, work
from tests.threads import PATIENCE

pytestmark = pytest.mark.django_db(transaction=True)

Kind = Difference.Kind
SECOND = 1_000_000_000


@pytest.fixture(autouse=True)
def _at_once(settings: Settings) -> None:
    settings.AUDIT_SETTLE_SECONDS = 0
    settings.AUDIT_LYTICS_REQUESTS_PER_SECOND = settings.AUDIT_ODP_REQUESTS_PER_SECOND = 1_000


def make_pair(odp: ThreadedSandbox, lytics: Lytics, mechanism: str) -> Pair:
    shop = make_checked_install(odp, mechanism=mechanism)
    lytics_account.set_token(shop, "api-token")
    if mechanism == "passthrough":
        made = {"description": "gold", "metadata": {"display_name": "gold"}, "definition": {"passthrough": {}}}
        assert odp.odp("POST", "/v3/segments/lytics_gold", made)[0] == 201
    gold = make_delivered(shop, *MEMBERS, "fay", at=SECOND)
    happen(gold, ("fay", "exit", 2 * SECOND))
    drain_all(shop)
    lytics.members = list(MEMBERS)
    return Pair(lytics, odp, gold)


@pytest.fixture(params=["attribute", "list", "passthrough"])
def pair(request: pytest.FixtureRequest, odp: ThreadedSandbox, lytics: Lytics) -> Pair:
    return make_pair(odp, lytics, request.param)


@pytest.fixture
def attribute(odp: ThreadedSandbox, lytics: Lytics) -> Pair:
    return make_pair(odp, lytics, "attribute")


# --- each mechanism ------------------------------------------------------------------------------------------


def test_a_pair_without_drift_is_clean(pair: Pair) -> None:
    done = audit(pair)
    assert (done.differing, done.only_in_odp, named(done)) == (0, 0, {})
    assert "more members" not in words.result(done)
    agree(pair)


def test_writes_that_odp_swallowed_are_found_and_mended(pair: Pair) -> None:
    pair.odp.fault({"path": "/v3/", "method": "POST"}, {"status": 202, "body": {"title": "ok"}, "apply": False})
    pair.change("enter", "gus", at=3 * SECOND)
    pair.change("exit", "ann", at=3 * SECOND)
    work(pair)
    pair.odp.clear_faults()
    done = audit(pair)
    assert {who: kind for who, (kind, _) in named(done).items()} == {"gus": Kind.NOT_IN_ODP, "ann": Kind.STILL_IN_ODP}
    assert repair(pair, done).differing == 0
    agree(pair)


def test_a_second_writer_of_a_passthrough_audience_is_mended(odp: ThreadedSandbox, lytics: Lytics) -> None:
    """ODP takes the event with the newest time, and that of the other system is newer than any of ours."""
    pair = make_pair(odp, lytics, "passthrough")
    ts = int(time.time()) - 60
    for who, action, names in (("ann", "disqualify", 2), ("fay", "qualify", 2), ("bob", "disqualify", 1)):
        for name in ("web_user_id", "fs_user_id")[:names]:
            data = {"audience_id": "lytics_gold", "ts": ts}
            event = {"type": "passthrough", "action": action, "identifiers": {name: who}, "data": data}
            assert odp.odp("POST", "/v3/events", [event])[0] == 202
    done = audit(pair)
    kinds = {"ann": Kind.NOT_IN_ODP, "fay": Kind.STILL_IN_ODP, "bob": Kind.HALF_IN_ODP}
    assert {who: kind for who, (kind, _) in named(done).items()} == kinds
    assert repair(pair, done).differing == 0
    agree(pair)


def test_consent_is_a_reason_for_people_missing_in_a_list(odp: ThreadedSandbox, lytics: Lytics) -> None:
    pair = make_pair(odp, lytics, "list")
    odp.settings(consent="opted_out")
    pair.change("enter", "gus", at=3 * SECOND)
    work(pair)
    done = audit(pair)
    assert named(done) == {"gus": (Kind.NOT_IN_ODP, odp_reasons.NOT_IN_LIST)}
    assert "consent" in odp_reasons.NOT_IN_LIST
    odp.settings(consent="opted_in")
    assert repair(pair, done).differing == 0
    agree(pair)


# --- members whom only ODP has -------------------------------------------------------------------------------


def test_members_whom_only_odp_has_are_on_the_front_page_until_the_mechanism_has_changed(
    attribute: Pair, operator: Client
) -> None:
    for stranger in ("yak", "zed"):
        attribute.write_in_odp(True, fs=stranger)
    done = audit(attribute)
    assert (done.differing, done.only_in_odp) == (0, 2)
    assert "ODP estimates at least 2 more members" in words.result(done)
    shown = operator.get(reverse("admin:index")).content.decode()
    assert "may have members in ODP who were never here" in shown
    assert changes.begin(Install.objects.get(), to="list", by="kim", reason="strangers")
    assert finish(attribute.shop).ended_at is not None
    assert Install.objects.get().mechanism == "list"
    after = audit(attribute)
    assert (after.differing, after.only_in_odp) == (0, 0)
    assert "never here" not in operator.get(reverse("admin:index")).content.decode()
    agree(attribute)


@pytest.mark.parametrize("is_sent", [True, False])
def test_an_entry_during_the_audit_is_no_member_whom_only_odp_has(
    attribute: Pair, monkeypatch: pytest.MonkeyPatch, is_sent: bool
) -> None:
    """ODP's estimate has one member more than the ledger had when the audit began."""

    def estimate(_: Audit) -> tuple[int, int]:
        if is_sent and not Membership.objects.filter(identifier="gus").exists():
            attribute.change("enter", "gus", at=3 * SECOND)
            drain_all(attribute.shop)
        return 6, 6

    monkeypatch.setattr(sizes, "_estimate", estimate)
    assert audit(attribute).only_in_odp == (0 if is_sent else 1)


def test_events_since_the_audit_began_are_taken_off_what_odp_had_more_before(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold = make_audience(install)
    done = Audit(audience_id=gold.pk, mode=Audit.Mode.FULL, odp_low=7, ledger_size=5, moving=1)
    monkeypatch.setattr(sizes, "_estimate", lambda _: (9, 9))
    assert sizes.only_in_odp(done) == 1


def test_only_a_person_of_the_ledger_with_the_other_state_makes_a_merged_profile(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold = make_audience(install)
    for sequence, who in enumerate(("ann", "bob", "cyd", "dan")):
        held = {"identifier": who, "is_member": who != "bob", "sequence": sequence, "occurred_ns": 1}
        Membership.objects.create(audience=gold, **held)
    names = {"ann": {"unknown"}, "cyd": {"dan"}, "dan": {"bob", "dan"}}

    def names_of(_: Any, people: Sequence[str], *, seconds: float) -> dict[str, set[str]]:
        return {person: names[person] for person in people}

    monkeypatch.setattr(odp_reasons, "AT_ONCE", 2)
    monkeypatch.setattr(odp_reasons, "names_of", names_of)
    assert odp_reasons.merged(gold, [*names], seconds=PATIENCE) == ["dan"]
