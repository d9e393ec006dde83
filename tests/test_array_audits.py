"""Audits of identifier fields that hold lists: shortened lists and merged profiles are named and counted."""

import io
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from django.core.management import call_command
from django.test import Client
from django.utils.timezone import now
from pytest_django.fixtures import Settings

from audiences import lytics_account
from audiences.agreement import array_identifiers, audits, comparing, words
from audiences.models import Audience, Audit, Difference, Install
from audiences.operations import resends, skips
from audiences.receiving import ingest
from sandbox.lytics.account import Account
from sandbox.lytics.api.server import LyticsServer
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import drain_all, make_checked_install
from tests.lytics_sandbox import TOKEN, serving
from tests.test_admin import url
from tests.test_sandbox_lytics_api import control
from tests.threads import PATIENCE

pytestmark = pytest.mark.django_db

Kind = Difference.Kind
T1, T2, T3, T4 = (f"2026-02-0{day}T00:00:00.{day}Z" for day in (1, 2, 3, 4))
LEFT_LIST = (Kind.NOT_IN_LYTICS, array_identifiers.WORDS["left_list"])
EXIT_NOT_SENT = (Kind.NOT_IN_LYTICS, comparing.WORDS["exit_not_sent"])
MERGED = array_identifiers.WORDS["merged"]
both_options = pytest.mark.parametrize("forget", [False, True], ids=["option off", "option on"])


class Pair(NamedTuple):
    """A sandbox Lytics and an install that reads the list ``_uids``."""

    lytics: LyticsServer
    shop: Install

    def tell(self, *messages: dict[str, Any], deliver: bool = True) -> None:
        """A call of Lytics. Lytics has what its messages say."""
        self.lytics.api.account.keep(messages, self.shop.identifier_field)
        ingest.receive(self.shop, json.dumps(messages).encode())
        if deliver:
            drain_all(self.shop)

    def set_list(self, identifier: str, *uids: str) -> None:
        """A list changes in Lytics, and Lytics sends nothing."""
        given = {"field": "_uids", "identifier": identifier, "set": {"_uids": uids}}
        control(self.lytics, "profiles", given)

    def merge(self, identifier: str, *, into: str) -> None:
        control(self.lytics, "merge", {"field": "_uids", "identifier": identifier, "into": into})

    def audit(self) -> Audit:
        audience = Audience.objects.select_related("install").get(install=self.shop)
        asked = audits.ask(audience, mode=Audit.Mode.FULL, by="kim")
        assert asked is not None
        done = next(audits.finish([asked]))
        assert (done.problem, done.note) == ("", "")
        return done

    def repair(self, done: Audit) -> Audit:
        assert resends.repair(done, by="kim", reason="drift")
        resends.advance_all(self.shop.pk, seconds=PATIENCE)
        drain_all(self.shop)
        return next(audits.finish([Audit.objects.latest("pk")]))


@pytest.fixture
def lytics(tmp_path: Path, settings: Settings) -> Iterator[LyticsServer]:
    with serving(Account(tmp_path / "lytics.sqlite3")) as running:
        settings.LYTICS_API_URL = running.url
        yield running


@pytest.fixture
def pair(odp: ThreadedSandbox, lytics: LyticsServer, settings: Settings, forget: bool) -> Pair:
    settings.AUDIT_SETTLE_SECONDS = settings.AUDIT_SCAN_DELAY_SECONDS = 0
    settings.AUDIT_LYTICS_REQUESTS_PER_SECOND = settings.AUDIT_ODP_REQUESTS_PER_SECOND = 1_000
    shop = make_checked_install(odp, identifier_field="_uids", forget_missing_identifiers=forget)
    lytics_account.set_token(shop, TOKEN)
    made = Pair(lytics, shop)
    made.tell(said("enter", "ann", T1, "a1", "a2", "a3"), said("enter", "bob", T2, "b1"))
    return made


def said(event: str, profile: str, at: str, *uids: str) -> dict[str, Any]:
    transition = {"id": "s1", "event": event, "slug": "gold", **({} if event == "change" else {event: at})}
    data = {"_id": profile, "_uids": list(uids), "segment_events": [transition]}
    return {"id": profile, "data": data, "meta": {"object": "user", "subscription_id": "job-7", "timestamp": at}}


def named(done: Audit) -> dict[str, tuple[str, str]]:
    found = Difference.objects.filter(audit=done).values_list("identifier", "kind", "why")
    return {identifier: (kind, why) for identifier, kind, why in found}


def counted(done: Audit) -> tuple[str, int, int]:
    return done.array_option, done.left_list, done.merged


@both_options
def test_lists_on_which_both_ends_agree_have_no_mistakes(pair: Pair, forget: bool) -> None:
    done = pair.audit()
    assert (named(done), counted(done)) == ({}, ("on" if forget else "off", 0, 0))


@both_options
def test_an_identifier_that_left_the_list_is_named(pair: Pair, forget: bool) -> None:
    pair.set_list("a1", "a1", "a3")
    done = pair.audit()
    assert named(done) == {"a2": LEFT_LIST}
    assert counted(done)[1:] == (1, 0)
    assert words.arrays(done).startswith("1 of 4 people are wrong because of array identifiers: 1 left")
    after = pair.repair(done)
    assert (named(after), counted(after)[1:]) == ({}, (0, 0))


@both_options
def test_the_option_is_what_a_message_with_a_shorter_list_needs(pair: Pair, forget: bool) -> None:
    pair.tell(said("change", "ann", T3, "a1"))
    done = pair.audit()
    assert named(done) == ({} if forget else {"a2": LEFT_LIST, "a3": LEFT_LIST})


@both_options
def test_a_merge_that_keeps_all_identifiers_is_no_mistake(pair: Pair, forget: bool) -> None:
    pair.merge("a1", into="b1")
    assert named(pair.audit()) == {}


@pytest.mark.parametrize("forget", [True])
@pytest.mark.parametrize("last", ["change", "exit"])
def test_an_identifier_that_a_merge_moved_and_the_former_profile_took_out_is_named(
    pair: Pair, forget: bool, last: str
) -> None:
    """The option's own mistake: the list that lost the identifier is newer than the list that gained it."""
    pair.tell(said("change", "bob", T3, "b1", "a2"))
    if last == "change":
        pair.tell(said("change", "ann", T4, "a1", "a3"))
    else:
        pair.tell(said("exit", "ann", T4, "a1", "a2", "a3"))
    done = pair.audit()
    assert named(done) == {"a2": (Kind.NOT_HERE, MERGED)}
    assert counted(done)[1:] == (0, 1)
    assert "0 left their profile's list, 1 are of merged profiles" in words.arrays(done)
    after = pair.repair(done)
    assert (named(after), counted(after)[1:]) == ({}, (0, 0))


@pytest.mark.parametrize("forget", [False])
def test_without_the_option_a_moved_identifier_stays(pair: Pair, forget: bool) -> None:
    pair.tell(said("change", "bob", T3, "b1", "a2"))
    pair.tell(said("change", "ann", T4, "a1", "a3"))
    assert named(pair.audit()) == {}


@both_options
def test_an_identifier_that_a_merge_dropped_is_named(pair: Pair, forget: bool) -> None:
    """Only the option stores whose identifiers they were; without it, the list of the present profile lacks one."""
    pair.merge("a1", into="b1")
    pair.set_list("b1", "b1", "a1", "a3")
    done = pair.audit()
    assert named(done) == {"a2": (Kind.NOT_IN_LYTICS, MERGED) if forget else LEFT_LIST}
    assert sum(counted(done)[1:]) == 1
    assert named(pair.repair(done)) == {}


# --- other reasons keep their names -------------------------------------------------------------------------------


@both_options
def test_a_profile_that_left_without_a_message_is_no_mistake_of_lists(pair: Pair, forget: bool) -> None:
    control(pair.lytics, "members", {"audience": "gold", "field": "_uids", "identifier": "a1", "member": False})
    done = pair.audit()
    assert named(done) == dict.fromkeys(("a1", "a2", "a3"), EXIT_NOT_SENT)
    assert counted(done)[1:] == (0, 0)


@both_options
def test_an_entry_that_was_never_sent_is_no_mistake_of_lists(pair: Pair, forget: bool) -> None:
    pair.set_list("b1", "b1", "b2")
    done = pair.audit()
    assert named(done) == {"b2": (Kind.NOT_HERE, comparing.WORDS["never_sent"])}


@pytest.mark.parametrize("forget", [True])
def test_an_entry_that_a_skip_left_out_is_no_merge(pair: Pair, forget: bool) -> None:
    pair.tell(said("exit", "bob", T3, "b1"))
    pair.tell(said("enter", "bob", T4, "b1"), deliver=False)
    Install.objects.filter(pk=pair.shop.pk).update(enabled=False)
    skips.skip(pair.shop.pk, by="kim", reason="a restored backup")
    Install.objects.filter(pk=pair.shop.pk).update(enabled=True)
    done = pair.audit()
    assert named(done) == {"b1": (Kind.NOT_HERE, comparing.WORDS["entry_not_sent"])}


@pytest.mark.parametrize("forget", [True])
def test_an_exit_of_a_repair_is_no_merge(pair: Pair, forget: bool) -> None:
    ann = {"audience": "gold", "field": "_uids", "identifier": "a1"}
    control(pair.lytics, "members", {**ann, "member": False})
    pair.repair(pair.audit())
    control(pair.lytics, "members", {**ann, "member": True})
    entry_not_sent = (Kind.NOT_HERE, comparing.WORDS["entry_not_sent"])
    assert named(pair.audit()) == dict.fromkeys(("a1", "a2", "a3"), entry_not_sent)


@pytest.mark.parametrize("forget", [False])
def test_an_exit_at_the_time_of_an_entry_is_of_another_message(pair: Pair, forget: bool) -> None:
    pair.tell(said("enter", "cyd", T3, "c1"), said("exit", "dan", T3, "d1"))
    pair.tell(said("enter", "dan", T4, "d1"))
    control(pair.lytics, "members", {"audience": "gold", "field": "_uids", "identifier": "c1", "member": False})
    assert named(pair.audit()) == {"c1": EXIT_NOT_SENT}


@pytest.mark.parametrize("forget", [False])
def test_profiles_that_entered_at_one_time_in_one_call_are_not_taken_for_one(pair: Pair, forget: bool) -> None:
    """Without stored lists, which identifiers were in one message can't be told then."""
    pair.tell(said("enter", "cyd", T3, "c1"), said("enter", "dan", T3, "d1"), said("enter", "eve", T3, "e1"))
    control(pair.lytics, "members", {"audience": "gold", "field": "_uids", "identifier": "c1", "member": False})
    assert named(pair.audit()) == {"c1": EXIT_NOT_SENT}


@pytest.mark.parametrize("forget", [False])
def test_more_identifiers_at_one_time_than_a_list_can_have_are_of_several_profiles(
    pair: Pair, forget: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if only one of these profiles is still in the audience."""
    monkeypatch.setattr(array_identifiers, "LONGEST_LIST", 3)
    people = {"c1": "cyd", "d1": "dan", "e1": "eve", "f1": "fay"}
    pair.tell(*(said("enter", profile, T3, uid) for uid, profile in people.items()))
    for uid in ("c1", "d1", "e1"):
        control(pair.lytics, "members", {"audience": "gold", "field": "_uids", "identifier": uid, "member": False})
    assert named(pair.audit()) == dict.fromkeys(("c1", "d1", "e1"), EXIT_NOT_SENT)


@pytest.mark.parametrize("forget", [False])
def test_a_field_with_single_values_has_no_numbers_of_lists(pair: Pair, forget: bool) -> None:
    for profile in ("ann", "bob"):
        single = {**said("enter", profile, T3), "id": profile}
        single["data"]["_uids"] = f"{profile}-1"
        pair.tell(single)
    done = pair.audit()
    assert {why for _, why in named(done).values()} == {comparing.WORDS["exit_not_sent"]}
    assert (counted(done), words.arrays(done)) == (("", 0, 0), "")


# --- reports ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forget", [False])
def test_a_repeated_step_counts_the_same(pair: Pair, forget: bool) -> None:
    """A killed worker's step runs again: its reasons are stored, its numbers may not be."""
    pair.set_list("a1", "a1")
    done = pair.audit()
    reasons = {name: comparing.WORDS[name] for name in ("entry_not_sent", "exit_not_sent")}
    assert array_identifiers.explain(done, **reasons) == {"left_list": 2, "merged": 0}


@pytest.mark.parametrize("forget", [False])
def test_with_more_differences_than_are_stored_the_number_is_a_least_one(
    pair: Pair, forget: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.set_list("a1", "a1")
    monkeypatch.setattr(array_identifiers, "MOST", 1)
    monkeypatch.setattr(words, "MOST", 1)
    assert words.arrays(pair.audit()).startswith("at least 1 of 4 people")


@both_options
def test_the_command_and_the_page_sum_up_the_mistakes(pair: Pair, forget: bool, viewer: Client) -> None:
    pair.set_list("a1", "a1", "a3")
    out = io.StringIO()
    with pytest.raises(SystemExit):
        call_command("audit_audiences", pair.shop.public_id, "--full", "--json", stdout=out)
    (report,) = json.loads(out.getvalue())["audits"]
    assert report["array_identifiers"] == {
        "forget_missing_identifiers": forget,
        "people": 4,
        "wrong": 1,
        "left_list": 1,
        "merged_profiles": 0,
        "is_at_least": False,
    }
    out = io.StringIO()
    with pytest.raises(SystemExit):
        call_command("audit_audiences", pair.shop.public_id, "--full", stdout=out)
    assert "1 of 4 people are wrong because of array identifiers" in out.getvalue()
    page = viewer.get(url("change", Audit.objects.latest("pk"))).content.decode()
    assert "1 of 4 people are wrong because of array identifiers" in page


@pytest.mark.parametrize("forget", [True])
@pytest.mark.parametrize("before", [(), ("exit", T3)], ids=["member", "left"])
def test_an_identifier_that_a_repair_entered_leaves_with_its_list(
    pair: Pair, forget: bool, before: tuple[str, str]
) -> None:
    """Lytics did not send the list that has it, nor one of the new profile cyd."""
    if before:
        pair.tell(said(before[0], "ann", before[1], "a1", "a2", "a3"))
    pair.lytics.api.account.keep([said("enter", "ann", T4, "a1", "a4"), said("enter", "cyd", T4, "c1", "c2")], "_uids")
    after = pair.repair(pair.audit())
    assert named(after) == {}
    later = f"{now() + timedelta(seconds=1):%Y-%m-%dT%H:%M:%SZ}"
    pair.tell(said("change", "ann", later, "a1"), said("change", "cyd", later, "c1"))
    assert named(pair.audit()) == {}
