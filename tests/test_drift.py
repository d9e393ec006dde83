"""Each kind of drift between Lytics, the ledger and ODP is found, named and mended; a pair without drift is clean."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from pytest_django.fixtures import Settings

from audiences import lytics_account
from audiences.agreement import audits, odp_reasons
from audiences.agreement.comparing import WORDS
from audiences.models import Audience, Audit, Difference, Install, Membership
from audiences.operations import resends, twins
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import drain_all, happen, make_checked_install, make_delivered
from tests.lytics_api import Lytics
from tests.test_restore import Servers, run, servers  # noqa: F401 — a fixture
from tests.threads import PATIENCE

pytestmark = pytest.mark.django_db(transaction=True)

Kind = Difference.Kind
SEGMENT = "/v3/segments/lytics_gold"
MEMBERS = ["ann", "bob", "cyd", "dan", "eve"]


class Pair(NamedTuple):
    """Lytics and ODP with one audience: five members on whom all sides agree, and Fay, who left."""

    lytics: Lytics
    odp: ThreadedSandbox
    gold: Audience

    @property
    def shop(self) -> Install:
        return self.gold.install

    def write_in_odp(self, value: bool, *, fs: str, web: str = "") -> None:
        """Another system writes the field."""
        item = {"attributes": {"fs_user_id": fs, "web_user_id": web or fs, "lytics_gold": value}}
        assert self.odp.odp("POST", "/v3/profiles", [item])[0] == 202

    def change(self, what: str, *identifiers: str, at: int) -> None:
        """Customers enter or leave in Lytics, and Lytics sends it."""
        happen(self.gold, *((identifier, what, at) for identifier in identifiers))
        stay = [one for one in self.lytics.members if one not in identifiers]
        self.lytics.members = [*stay, *(identifiers if what == "enter" else ())]


@pytest.fixture
def pair(odp: ThreadedSandbox, lytics: Lytics, settings: Settings) -> Pair:
    settings.AUDIT_SETTLE_SECONDS = 0
    settings.AUDIT_LYTICS_REQUESTS_PER_SECOND = settings.AUDIT_ODP_REQUESTS_PER_SECOND = 1_000
    settings.AUDIT_CUSTOMERS_PER_REQUEST = 2
    shop = make_checked_install(odp)
    lytics_account.set_token(shop, "api-token")
    gold = make_delivered(shop, *MEMBERS, "fay")
    happen(gold, ("fay", "exit", 2))
    drain_all(shop)
    lytics.members = list(MEMBERS)
    return Pair(lytics, odp, gold)


def audit(pair: Pair) -> Audit:
    asked = audits.ask(Audience.objects.get(pk=pair.gold.pk), mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    return finish(asked)


def finish(asked: Audit) -> Audit:
    Audit.objects.update(next_at=None)  # as if its waits were over
    audits.advance_all(asked.install_id, seconds=PATIENCE)
    done = Audit.objects.get(pk=asked.pk)
    assert (done.problem, done.note, done.phase) == ("", "", "done")
    return done


def named(done: Audit) -> dict[str, tuple[str, str]]:
    found = Difference.objects.filter(audit=done).values_list("identifier", "kind", "why")
    return {identifier: (kind, why) for identifier, kind, why in found}


def repair(pair: Pair, done: Audit) -> Audit:
    """Repair, and return the audit that begins after the last event of the repair."""
    assert resends.repair(done, by="kim", reason="drift")
    work(pair)
    return finish(Audit.objects.latest("pk"))


def work(pair: Pair) -> None:
    drain_all(Install.objects.get(pk=pair.shop.pk))
    resends.advance_all(pair.shop.pk, seconds=PATIENCE)
    drain_all(Install.objects.get(pk=pair.shop.pk))


def agree(pair: Pair) -> None:
    """Each person has one state: in Lytics, in the ledger, and in ODP by both identifiers."""
    members = sorted(pair.lytics.members)
    ledger = Membership.objects.filter(audience=pair.gold, is_member=True).order_by("identifier")
    assert sorted(ledger.values_list("identifier", flat=True)) == members
    for identifier in ("fs_user_id", "web_user_id"):
        assert pair.odp.members("lytics_gold", identifier) == members


# --- drift of people -----------------------------------------------------------------------------------------

Drift = Callable[[Pair], dict[str, tuple[str, str]]]


def missed_exits(pair: Pair) -> dict[str, tuple[str, str]]:
    pair.lytics.members = MEMBERS[2:]
    return dict.fromkeys(MEMBERS[:2], (Kind.NOT_IN_LYTICS, WORDS["exit_not_sent"]))


def an_omitted_batch(pair: Pair) -> dict[str, tuple[str, str]]:
    pair.lytics.members += ["gus", "hal", "fay"]
    never_sent = (Kind.NOT_HERE, WORDS["never_sent"])
    return {"gus": never_sent, "hal": never_sent, "fay": (Kind.NOT_HERE, WORDS["entry_not_sent"])}


def a_hand_edited_field(pair: Pair) -> dict[str, tuple[str, str]]:
    pair.write_in_odp(False, fs="ann")
    return {"ann": (Kind.NOT_IN_ODP, odp_reasons.CHANGED)}


def a_second_writer(pair: Pair) -> dict[str, tuple[str, str]]:
    """Another export has an older audience: without Ann and Bob, and with Fay."""
    for identifier, value in (("ann", False), ("bob", False), ("fay", True)):
        pair.write_in_odp(value, fs=identifier)
    missing = (Kind.NOT_IN_ODP, odp_reasons.CHANGED)
    return {"ann": missing, "bob": missing, "fay": (Kind.STILL_IN_ODP, odp_reasons.CHANGED)}


def swallowed_writes(pair: Pair) -> dict[str, tuple[str, str]]:
    pair.odp.fault({"path": "/v3/", "method": "POST"}, {"status": 202, "body": {"title": "ok"}, "apply": False})
    pair.change("enter", "gus", at=3)
    pair.change("exit", "ann", at=3)
    work(pair)
    pair.odp.clear_faults()
    return {"gus": (Kind.NOT_IN_ODP, odp_reasons.UNKNOWN), "ann": (Kind.STILL_IN_ODP, odp_reasons.CHANGED)}


def withdrawn_consent(pair: Pair) -> dict[str, tuple[str, str]]:
    """ODP keeps nothing of new customers until they consent; then it is mended."""
    pair.odp.assume(consent_effect="everything")
    pair.odp.settings(consent="opted_out")
    pair.change("enter", "gus", at=3)
    work(pair)
    pair.odp.settings(consent="opted_in")
    return {"gus": (Kind.NOT_IN_ODP, odp_reasons.UNKNOWN)}


def a_profile_merged_in_lytics(pair: Pair) -> dict[str, tuple[str, str]]:
    """The profile has another identifier afterwards, and Lytics sends no exit for the old identifier."""
    pair.lytics.members = ["ann2", *MEMBERS[1:]]
    exit_missing = (Kind.NOT_IN_LYTICS, WORDS["exit_not_sent"])
    return {"ann": exit_missing, "ann2": (Kind.NOT_HERE, WORDS["never_sent"])}


def a_profile_merged_in_odp(pair: Pair) -> dict[str, tuple[str, str]]:
    """Two members become one customer, whose field another system has reset."""
    pair.write_in_odp(False, fs="ann", web="bob")
    missing = (Kind.NOT_IN_ODP, odp_reasons.CHANGED)
    return {"ann": missing, "bob": missing}


DRIFTS: tuple[Drift, ...] = (
    missed_exits,
    an_omitted_batch,
    a_hand_edited_field,
    a_second_writer,
    swallowed_writes,
    withdrawn_consent,
    a_profile_merged_in_lytics,
    a_profile_merged_in_odp,
)


@pytest.mark.parametrize("drift", DRIFTS)
def test_drift_is_found_named_and_mended(pair: Pair, drift: Drift) -> None:
    expected = drift(pair)
    done = audit(pair)
    assert named(done) == expected
    assert done.differing == len(expected)
    after = repair(pair, done)
    assert (after.differing, named(after)) == (0, {})
    agree(pair)


def test_a_restored_backup_is_found_named_and_mended(pair: Pair, servers: Servers) -> None:  # noqa: F811
    """What was accepted after the backup is known to Lytics, and partly to ODP."""
    servers.take()
    pair.change("exit", "ann", at=3)
    pair.change("enter", "gus", at=3)
    work(pair)
    pair.change("exit", "bob", at=4)  # accepted, and lost before it was delivered
    servers.restore()
    run("switch_install", "--all", "--to", "off")
    run("skip_backlog", "--all", "--reason", "restored", "--yes")
    run("switch_install", "--all", "--to", "on")
    done = audit(pair)
    assert set(Difference.objects.filter(audit=done).values_list("identifier", "kind")) == {
        ("ann", Kind.NOT_IN_LYTICS),
        ("ann", Kind.NOT_IN_ODP),
        ("bob", Kind.NOT_IN_LYTICS),
        ("gus", Kind.NOT_HERE),
    }
    assert repair(pair, done).differing == 0
    agree(pair)


# --- drift of the audience in ODP ----------------------------------------------------------------------------


def test_a_deleted_segment_is_found_named_and_mended(pair: Pair) -> None:
    """The look names it as the reason for all members, and has it made again."""
    assert pair.odp.odp("DELETE", SEGMENT)[0] in (200, 202, 204)
    assert twins.look(pair.shop.pk)
    done = audit(pair)
    assert {kind for kind, _ in named(done).values()} == {Kind.NOT_IN_ODP}
    assert all("ODP no longer has" in why for _, why in named(done).values())
    assert sorted(named(done)) == MEMBERS
    work(pair)
    assert twins.look(pair.shop.pk)
    assert audit(pair).differing == 0
    agree(pair)


# --- no drift ------------------------------------------------------------------------------------------------


def test_a_pair_without_drift_is_clean_under_load_ten_times_of_ten(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two steps of an audit a customer enters or leaves; some of the events wait, and some are delivered.

    They change at the end of the scan, because the pages of this API are places in its list.
    """
    at = 10
    real = audits._step

    def step(one: Audit) -> Any:
        nonlocal at
        at += 1
        visitor = f"zoe{at % 4}"
        pair.change("exit" if visitor in pair.lytics.members else "enter", visitor, at=at)
        if at % 2 == 0 or one.phase == Audit.Phase.SETTLE:
            drain_all(pair.shop)
        return real(one)

    monkeypatch.setattr(audits, "_step", step)
    for _ in range(10):
        done = audit(pair)
        assert (done.differing, named(done)) == (0, {})
        assert done.moving > 0
        work(pair)
        agree(pair)
