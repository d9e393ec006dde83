"""Forgetting finds a person however the identifier is spelled, and touches nothing of other people."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from django.db import transaction
from django.db.models import F
from django.utils.timezone import now

from audiences import request_bodies, sessions
from audiences.delivery import holds
from audiences.insight import customer_texts, failures
from audiences.models import (
    Audience,
    Audit,
    Delivery,
    Difference,
    Event,
    Forgotten,
    GuidedChange,
    Install,
    Lane,
    Membership,
    Parked,
    Profile,
    Run,
    ScannedMember,
    Twin,
)
from audiences.operations import forgetting, other_id, parked_items, resends, retiring, skips, take_over
from audiences.operations.reconcile import reconcile
from audiences.receiving import audience_lookup, ingest
from lytics import times
from lytics.facts import IDENTIFIER_BYTES
from odp import redact
from sandbox.odp.testing import ThreadedSandbox
from tests.delivering import (
    backoff_runs_out,
    claim,
    drain_all,
    enter,
    give_up,
    happen,
    lane_of,
    make_audience,
    make_delivered,
    make_install,
    writes,
)
from tests.messages import body, message, transition
from tests.test_forgetting import rows_that_name
from tests.threads import PATIENCE, eventually, start
from workers import drain

pytestmark = pytest.mark.django_db(transaction=True)


def forget(install: Install, identifier: str, *, tell_odp: bool = False) -> None:
    asked = forgetting.ask(install, identifier, tell_odp=tell_odp, by="dpo")
    assert asked is not None
    assert forgetting.advance(asked)


def without_field(who: Any) -> dict[str, Any]:
    """A message without the identifier field, so that it is parked whole."""
    one = message(transition(slug="gold"), who="x")
    del one["data"]["_id"]
    one["data"]["email"] = who
    return one


SPELLINGS = [
    "ünal@example.com",
    'o\'neil "x" <a&b>@example.com',
    "kim\\lee",
    "a/b+c@example.com",
    "名前" * 80,
    "k" * 500,
]


@pytest.mark.parametrize(
    ("identifier", "others"),
    [
        ("42", [{"age": 4242}, "142@example.com", "42nd"]),
        ("kim", ["kimberly@example.com", "kim@example.com", "joakim"]),
        ("e", ["lee"]),
        ("gold", ["lee"]),
        ("enter", ["lee"]),
        ("data", ["lee"]),
        ("1", [{"n": 1.5}, "1a", [11]]),
        ("Jose", ["Jose\u0301", {"name": "Jose\u0301 Lee"}]),
    ],
)
def test_items_of_other_people_stay_open(shop: Install, identifier: str, others: list[Any]) -> None:
    ingest.receive(shop, body(*(without_field(other) for other in others)))
    ingest.receive(shop, body(without_field(identifier)))
    before = dict(Parked.objects.values_list("pk", "raw"))
    assert len(before) == len(others) + 1

    forget(shop, identifier)

    kept = Parked.objects.filter(closed_at=None)
    assert kept.count() == len(others)
    assert all(bytes(parked.raw or b"") == bytes(before[parked.pk] or b"") for parked in kept)


def test_a_name_without_a_boundary_is_found_in_a_body_that_is_no_json(shop: Install) -> None:
    ingest.receive(shop, b"kim;lee;ann")
    ingest.receive(shop, b"kimberly;lee")
    forget(shop, "kim")
    assert Parked.objects.filter(closed_at=None).count() == 1


@pytest.mark.parametrize("identifier", SPELLINGS)
@pytest.mark.parametrize("escaped", [True, False])
def test_an_item_is_found_however_json_spells_it(shop: Install, identifier: str, escaped: bool) -> None:
    spelled = json.dumps([without_field(identifier)], ensure_ascii=escaped)
    if escaped:
        spelled = spelled.replace("\\u00fc", "\\u00FC").replace("/", "\\/")
    ingest.receive(shop, spelled.encode())
    ingest.receive(shop, json.dumps([without_field({"ids": [identifier], "n": 1})]).encode())
    assert Parked.objects.filter(closed_at=None).count() == 2
    forget(shop, identifier)
    assert Parked.objects.filter(closed_at=None).count() == 0
    assert Parked.objects.filter(raw__isnull=False).count() == 0


def test_an_identifier_that_is_a_number_in_the_item_is_found(shop: Install) -> None:
    ingest.receive(shop, body(without_field(42)))
    forget(shop, "42")
    assert Parked.objects.get().raw is None


def test_a_name_of_a_field_of_an_item_can_be_the_person(shop: Install) -> None:
    ingest.receive(shop, body(without_field({"kim@example.com": True})))
    forget(shop, "kim@example.com")
    assert Parked.objects.get().raw is None


@pytest.mark.parametrize("identifier", SPELLINGS)
def test_answers_and_reasons_lose_the_person_however_odp_spells_it(
    odp: ThreadedSandbox, shop: Install, identifier: str
) -> None:
    gold = make_delivered(shop, identifier, "lee")
    spelled = list(redact.values_in([identifier]))
    Delivery.objects.update(answer=f"no {' and '.join(spelled)}", reason=f"bad {spelled[0]} {spelled[-1]}")
    at = now()
    reasons = dict.fromkeys(("fault_reason", "block_reason", "lifted_reason"), " ".join(spelled))
    since = dict.fromkeys(("fault_since_at", "fault_until_at", "blocked_at", "lifted_since_at"), at)
    Lane.objects.filter(pk=gold.pk).update(**reasons, **since)
    backoff = {"backoff_since_at": at, "backoff_until_at": at, "backoff_failures": 1}
    Install.objects.update(backoff_reason=" ".join(spelled), **backoff)
    Twin.objects.create(audience=gold, looked_at=at, finding="wrong", problem=" ".join(spelled), since_at=at)
    Profile.objects.create(audience=gold, profile="p", occurred_ns=1, has_left=False, identifiers=["lee", identifier])
    Audience.objects.filter(pk=gold.pk).update(
        hold_since_at=now(), hold_until_at=now(), hold_failures=1, hold_reason=" ".join(spelled)
    )
    texts = dict.fromkeys(("problem", "waits_for"), " ".join(spelled))
    usual = {"kind": "mechanism", "before": "attribute", "after": "list", "by": "sam", "reason": "a test"}
    GuidedChange.objects.create(install=shop, **usual, **texts)
    forget(shop, identifier)
    delivery, lane = Delivery.objects.get(), Lane.objects.get(pk=gold.pk)
    for text in (delivery.answer, delivery.reason, lane.fault_reason):
        assert not any(one in text for one in spelled), text
    assert [name for one in spelled for name in rows_that_name(one)] == []


def test_the_other_identifiers_of_a_list_still_leave_with_it(odp: ThreadedSandbox, shop: Install) -> None:
    Install.objects.update(identifier_field="ids", forget_missing_identifiers=True)
    shop.refresh_from_db()

    def told(at: str, *identifiers: str) -> None:
        told_of = message(transition(at=f"2026-03-02T09:{at}Z"), who=[*identifiers], field="ids")
        told_of["data"]["_id"] = "p"
        ingest.receive(shop, body(told_of))
        drain_all(shop)

    told("15:00", "kim", "lee", "max")
    forget(shop, "kim")
    assert rows_that_name("kim") == []
    told("16:00", "max")
    assert dict(Membership.objects.values_list("identifier", "is_member")) == {"lee": False, "max": True}


def test_a_short_identifier_leaves_other_words_in_answers_alone(odp: ThreadedSandbox, shop: Install) -> None:
    make_delivered(shop, "a", "lee")
    Delivery.objects.update(answer="an answer about a and lee")
    forget(shop, "a")
    answer = Delivery.objects.get().answer
    assert answer.startswith("an answer about lytics-sync-forgotten-")
    assert answer.endswith(" and lee")


# --- exits and requests under way ----------------------------------------------------------------------------


def finish(install: Install) -> None:
    for _ in range(4):
        drain_all(install)
        forgetting.advance_all()


def test_an_entry_under_way_when_exits_are_asked_for_gets_its_exit(odp: ThreadedSandbox, shop: Install) -> None:
    gold = make_delivered(shop, "lee")
    enter(gold, "kim")
    lease = claim(shop)
    asked = forgetting.ask(shop, "kim", tell_odp=True, by="dpo")
    assert asked is not None
    forgetting.advance_all()
    holds.give_back(lease)
    drain_all(shop)
    finish(shop)
    asked.refresh_from_db()
    assert asked.ended_at is not None
    assert odp.members("lytics_gold") == ["lee"]
    assert rows_that_name("kim") == []


def test_an_entry_that_comes_before_the_exit_is_delivered_gets_its_exit(odp: ThreadedSandbox, shop: Install) -> None:
    gold = make_delivered(shop, "kim", "lee")
    asked = forgetting.ask(shop, "kim", tell_odp=True, by="dpo")
    assert asked is not None
    assert not forgetting.advance(asked)
    happen(gold, ("kim", "enter", times.from_moment(now())))
    drain_all(shop)
    assert Membership.objects.get(identifier="kim").is_member
    finish(shop)
    asked.refresh_from_db()
    assert asked.ended_at is not None
    assert odp.members("lytics_gold") == ["lee"]


def test_a_waiting_entry_gets_its_exit(odp: ThreadedSandbox, shop: Install) -> None:
    """ODP may have the entry already, from a request without an answer."""
    gold: Audience = make_delivered(shop, "lee")
    enter(gold, "kim")
    asked = forgetting.ask(shop, "kim", tell_odp=True, by="dpo")
    assert asked is not None
    assert not forgetting.advance(asked)
    finish(shop)
    asked.refresh_from_db()
    assert asked.ended_at is not None
    assert odp.members("lytics_gold") == ["lee"]


@pytest.mark.parametrize("outcome", ["unknown", "retry_later"])
def test_a_request_that_odp_may_apply_late_is_reconciled_first(
    odp: ThreadedSandbox, shop: Install, settings: Any, outcome: str
) -> None:
    """Applied after the exit, it brings the person back; the ledger has to know by then that the person has left."""
    settings.RECONCILE_AFTER_SECONDS = 0
    gold = make_delivered(shop, "lee")
    enter(gold, "kim")
    odp.fault({"path": "/v3/profiles", "times": 1}, {"status": 503})
    assert drain.turn(shop.pk)
    late = Delivery.objects.latest("pk")
    Delivery.objects.filter(pk=late.pk).update(outcome=outcome)
    backoff_runs_out(shop)
    asked = forgetting.ask(shop, "kim", tell_odp=True, by="dpo")
    assert asked is not None
    finish(shop)
    asked.refresh_from_db()
    assert asked.ended_at is None
    assert odp.members("lytics_gold") == ["lee"]
    assert reconcile() == 1
    finish(shop)
    asked.refresh_from_db()
    assert asked.ended_at is not None
    assert odp.members("lytics_gold") == ["lee"]
    assert rows_that_name("kim") == []


@pytest.mark.parametrize("act", [parked_items.release, parked_items.discard])
def test_a_rejected_exit_waits_for_a_person(odp: ThreadedSandbox, shop: Install, act: Callable[..., Any]) -> None:
    make_delivered(shop, "kim", "lee")
    rejection = {"title": "Bad Request", "status": 400, "detail": {"invalids": [{"event": 0, "message": "not now"}]}}
    odp.fault({"path": "/v3/profiles"}, {"status": 400, "body": json.dumps(rejection)})
    asked = forgetting.ask(shop, "kim", tell_odp=True, by="dpo")
    assert asked is not None
    finish(shop)
    asked.refresh_from_db()
    assert asked.ended_at is None
    odp.clear_faults()
    act([Parked.objects.get(closed_at=None).pk], by="dpo")
    finish(shop)
    asked.refresh_from_db()
    assert asked.ended_at is not None
    assert odp.members("lytics_gold") == (["lee"] if act is parked_items.release else ["kim", "lee"])


@pytest.mark.parametrize("is_retired", [False, True])
def test_a_customer_whose_rejected_exit_was_discarded_leaves_odp(
    odp: ThreadedSandbox, shop: Install, is_retired: bool
) -> None:
    gold = make_delivered(shop, "kim", "lee")
    odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["kim"]}})
    happen(gold, ("kim", "exit", 2))
    drain_all(shop)
    parked_items.discard([Parked.objects.get(closed_at=None).pk], by="sam")
    odp.clear_faults()
    if is_retired:  # its field stays in ODP
        Audience.objects.update(provisioned_at=None)
        Lane.objects.update(retired_at=now(), retired_sequence=F("delivered_sequence"))
    assert forgetting.ask(shop, "kim", tell_odp=True, by="dpo")
    finish(shop)
    assert rows_that_name("kim") == []
    assert odp.members("lytics_gold") == ["lee"]


def test_a_customer_whose_entry_has_a_time_ahead_of_our_clock_is_no_member_in_odp(
    odp: ThreadedSandbox, shop: Install
) -> None:
    in_a_minute = times.from_moment(now() + timedelta(minutes=1))
    gold = make_delivered(shop, "kim", "lee", at=in_a_minute)
    happen(gold, ("kim", "enter", in_a_minute + 1), ("kim", "enter", 5))
    assert forgetting.ask(shop, "kim", tell_odp=True, by="dpo")
    forgetting.advance_all()
    assert Event.objects.get(kind=0).occurred_ns == in_a_minute + 1
    finish(shop)
    assert rows_that_name("kim") == []
    assert odp.members("lytics_gold") == ["lee"]


def test_a_customer_of_a_retiring_audience_gets_no_event_after_its_end(odp: ThreadedSandbox, shop: Install) -> None:
    """It would be reported as an event of a retired audience."""
    gold = make_delivered(shop, "kim", "lee")
    assert retiring.retire(gold, by="sam", reason="left the job")
    for _ in range(2):
        retiring.advance_all(shop.pk, seconds=PATIENCE)
    end = Lane.objects.get().retired_sequence
    assert Membership.objects.filter(identifier="kim", is_member=True).exists()
    assert forgetting.ask(shop, "kim", tell_odp=True, by="dpo")
    forgetting.advance_all()
    assert Audience.objects.get().last_sequence == end


def test_an_item_that_is_parked_after_the_search_is_emptied_too(shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search decrypts all items, and ODP may reject a change of the person meanwhile."""
    gold = make_delivered(shop, "kim", "lee")
    monkeypatch.setattr(customer_texts, "parked_about", lambda *about: set())
    Parked.objects.create(
        install=shop, audience=gold, reason="refused_by_odp", sequence=1, identifier="kim", detail="ODP rejects kim."
    )
    forget(shop, "kim")
    assert rows_that_name("kim") == []
    assert Parked.objects.get().closed_at is not None


def test_an_item_that_was_closed_before_keeps_who_closed_it(shop: Install) -> None:
    closed = {"closed_at": now(), "closed_by": "sam", "resolution": Parked.Resolution.RELEASED}
    Parked.objects.create(install=shop, identifier="kim", reason="refused_by_odp", **closed)
    forget(shop, "kim")
    item = Parked.objects.get()
    assert item.identifier != "kim"
    assert (item.closed_at, item.closed_by, item.resolution) == tuple(closed.values())


def test_nothing_of_another_install_is_changed(odp: ThreadedSandbox, shop: Install) -> None:
    make_delivered(shop, "kim")
    other = make_install(odp, name="Other")
    silver = make_audience(other, "silver", provisioned=False)
    enter(silver, "kim")
    drain_all(other)
    shared, at = "kim of both installs", now()
    Delivery.objects.filter(install=other).update(answer=shared, reason=shared)
    Lane.objects.filter(pk=silver.pk).update(block_reason=shared, blocked_at=at)
    Audience.objects.filter(pk=silver.pk).update(
        hold_reason=shared, hold_since_at=at, hold_until_at=at, hold_failures=1
    )
    since = {"backoff_since_at": at, "backoff_until_at": at, "backoff_failures": 1}
    Install.objects.filter(pk=other.pk).update(backoff_reason=shared, **since)
    Twin.objects.create(audience=silver, looked_at=at, finding="wrong", problem=shared, since_at=at)
    usual = {"kind": "mechanism", "before": "attribute", "after": "list", "by": "sam", "reason": "a test"}
    GuidedChange.objects.create(install=other, problem=shared, **usual)
    parked = Parked.objects.create(install=other, identifier="kim", reason="refused_by_odp", detail=shared)
    report = Audit.objects.create(install=other, audience=silver, mode="full", by="sam", after_identifier="kim")
    Difference.objects.create(audit=report, identifier="kim", kind="not_here", profile="kim")
    ScannedMember.objects.create(audit=report, identifier="kim", profile="kim")
    Profile.objects.create(audience=silver, profile="kim", occurred_ns=1, has_left=False, identifiers=["kim"])
    before = list(Delivery.objects.filter(install=other).values())
    forget(shop, "kim")
    assert list(Delivery.objects.filter(install=other).values()) == before
    texts = [lane_of(silver).block_reason, Twin.objects.get().problem, GuidedChange.objects.get().problem]
    other.refresh_from_db()
    silver.refresh_from_db()
    assert {*texts, other.backoff_reason, silver.hold_reason} == {shared}
    assert Parked.objects.filter(pk=parked.pk, closed_at=None, identifier="kim", detail=shared).exists()
    assert Profile.objects.exists()
    assert Audit.objects.get().after_identifier == "kim"
    kept = [model._default_manager.get().identifier for model in (Difference, ScannedMember, Membership)]
    assert kept == ["kim"] * 3
    assert [model._default_manager.get().profile for model in (Difference, ScannedMember)] == ["kim"] * 2


def test_a_member_in_another_install_is_forgotten_with_exits_and_stays_there(
    odp: ThreadedSandbox, shop: Install
) -> None:
    make_delivered(shop, "kim")
    other = make_install(odp, name="Other")
    enter(make_audience(other, "silver", provisioned=False), "kim")
    drain_all(other)
    asked = forgetting.ask(shop, "kim", tell_odp=True, by="dpo")
    assert asked is not None
    finish(shop)
    asked.refresh_from_db()
    assert asked.ended_at is not None
    assert (odp.members("lytics_gold"), odp.members("lytics_silver")) == ([], ["kim"])


def test_a_lane_in_use_holds_up_its_own_customer_only(shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [forgetting.ask(shop, who, tell_odp=False, by="dpo") for who in ("kim", "lee")]
    advance = forgetting._advance

    def advance_all_but_the_first(one: Forgotten) -> bool:
        if one == asked[0]:
            raise forgetting.BusyError
        return advance(one)

    monkeypatch.setattr(forgetting, "_advance", advance_all_but_the_first)
    forgetting.advance_all()
    assert Forgotten.objects.get(ended_at=None) == asked[0]


def test_forgetting_that_fails_is_shown_and_tried_again(shop: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = forgetting.ask(shop, "kim", tell_odp=False, by="dpo")
    assert asked is not None
    with monkeypatch.context() as patched:
        patched.setattr(forgetting, "_advance", lambda one: 1 / 0)
        forgetting.advance_all()
    assert [failure.task for failure in failures.recent()] == ["ask_audits"]
    forgetting.advance_all()
    assert Forgotten.objects.get().ended_at is not None


def test_a_retired_audience_does_not_hold_up_forgetting(odp: ThreadedSandbox, shop: Install) -> None:
    gold = make_delivered(shop, "kim", "lee")
    assert retiring.retire(gold, by="sam", reason="left the job")
    asked = forgetting.ask(shop, "kim", tell_odp=True, by="dpo")
    assert asked is not None
    forgetting.advance_all()
    for _ in range(4):
        retiring.advance_all(shop.pk, seconds=PATIENCE)
        drain_all(shop)
    enter(gold, "kim", at=9)
    finish(shop)
    asked.refresh_from_db()
    assert asked.ended_at is not None
    assert rows_that_name("kim") == []


def test_an_identifier_that_the_end_of_a_kept_request_cuts_off_is_removed(odp: ThreadedSandbox, shop: Install) -> None:
    make_delivered(shop, "kim@example.com", "lee")
    body = '[{"fs_user_id": "lee"}, {"fs_user_id": "'
    filling = "x" * (request_bodies.KEPT_BYTES - len(body) - len("kim@exam"))
    Delivery.objects.update(request=request_bodies.pack(f"{filling}{body}kim@example.com".encode()))
    forget(shop, "kim@example.com")
    kept = request_bodies.unpack(bytes(Delivery.objects.get().request or b""))
    assert kept.endswith('"lee"}, {"fs_user_id": ')


@pytest.mark.parametrize("letter", ["名", "'", "é", "k", ".", "\\", "\n", "🙂"])
def test_the_longest_identifier_is_forgotten(odp: ThreadedSandbox, shop: Install, letter: str) -> None:
    longest = letter * (IDENTIFIER_BYTES // len(letter.encode()))
    make_delivered(shop, longest, "lee")
    Delivery.objects.update(answer=f"no {longest}, and no {quote(longest)}")
    forget(shop, longest)
    answers = "".join(Delivery.objects.values_list("answer", flat=True))
    assert longest not in answers
    assert quote(longest) not in answers


def test_a_skipped_exit_of_a_retired_audience_is_sent_to_its_field(odp: ThreadedSandbox, shop: Install) -> None:
    """The field stays in ODP, and the audience is made on it again when it is taken back."""
    gold = make_delivered(shop, "kim", "lee")
    assert retiring.retire(gold, by="sam", reason="left the job")
    for _ in range(2):
        retiring.advance_all(shop.pk, seconds=PATIENCE)
    Install.objects.update(enabled=False)
    assert skips.skip(shop.pk, by="sam", reason="restored").total == 2
    Install.objects.update(enabled=True)
    retiring.advance_all(shop.pk, seconds=PATIENCE)
    forget(shop, "kim", tell_odp=True)
    assert [item["attributes"]["lytics_gold"] for item in writes(odp)[-1]] == [False]


def test_a_customer_of_a_request_applied_late_stays_forgotten_when_the_audience_is_taken_back(
    odp: ThreadedSandbox, shop: Install, settings: Any
) -> None:
    """Nothing is reconciled while the audience is retired, and the ledger says that the customer has left."""
    settings.RECONCILE_AFTER_SECONDS = 0
    gold = make_delivered(shop, "lee")
    enter(gold, "kim", at=5)
    give_up(odp, shop, applied_after=0.6)
    happen(gold, ("kim", "exit", 6))
    finish(shop)
    assert retiring.retire(gold, by="sam", reason="left the job")
    for _ in range(3):
        retiring.advance_all(shop.pk, seconds=PATIENCE)
        finish(shop)
    assert Audience.objects.get().provisioned_at is None
    eventually(lambda: odp.customer("kim")["attributes"].get("lytics_gold"))
    reconcile()
    forget(shop, "kim", tell_odp=True)
    assert retiring.take_back(gold, by="sam", reason="back in the job")
    for _ in range(3):
        retiring.advance_all(shop.pk, seconds=PATIENCE)
        resends.advance_all(shop.pk, seconds=PATIENCE)
        finish(shop)
    assert odp.members("lytics_gold") == ["lee"]


def test_a_customer_leaves_the_id_that_the_audience_had_before_a_take_over(odp: ThreadedSandbox, shop: Install) -> None:
    old, new = make_delivered(shop, "kim"), make_audience(shop, "new", provisioned=False)
    enter(new, "lee", "max")
    drain_all(shop)
    Run.objects.update(opened_at=now() - timedelta(hours=1))
    assert take_over.take_over(new, old, by="sam", reason="made anew")
    resends.advance_all(shop.pk, seconds=PATIENCE)
    finish(shop)
    assert odp.members("lytics_new") == ["lee", "max"]
    asked = forgetting.ask(shop, "lee", tell_odp=True, by="dpo")
    assert asked is not None
    forgetting.advance_all()
    finish(shop)
    forgetting.advance_all()
    asked.refresh_from_db()
    assert asked.ended_at is not None
    assert (odp.members("lytics_gold"), odp.members("lytics_new")) == (["max"], ["max"])


def test_a_customer_leaves_each_id_that_an_audience_had_before(odp: ThreadedSandbox, shop: Install) -> None:
    gold = make_delivered(shop, "kim", "lee")
    for odp_id in ("lytics_gold_2", "lytics_gold_3"):
        holds.block_audience(gold.pk, "its field is a string there")
        assert other_id.use(Audience.objects.get(), odp_id, by="sam", reason="x")
        resends.advance_all(shop.pk, seconds=PATIENCE)
        finish(shop)
    asked = forgetting.ask(shop, "lee", tell_odp=True, by="dpo")
    assert asked is not None
    forgetting.advance_all()
    finish(shop)
    forgetting.advance_all()
    assert [odp.members(f"lytics_gold{end}") for end in ("", "_2", "_3")] == [["kim"]] * 3
    asked.refresh_from_db()
    assert asked.ended_at is not None


def test_no_exit_is_sent_to_a_field_that_another_install_uses(odp: ThreadedSandbox, shop: Install) -> None:
    gold = make_delivered(shop, "kim")
    Audience.objects.update(provisioned_at=None)
    other = make_audience(make_install(odp, name="Other"))
    sent = writes(odp)
    forget(shop, "kim", tell_odp=True)
    assert (other.odp_id, writes(odp)) == (gold.odp_id, sent)


def test_an_audience_that_can_not_be_made_does_not_hold_up_forgetting(odp: ThreadedSandbox, shop: Install) -> None:
    odp.fault({"path": "/v3/segments/lytics_gold"}, {"status": 503})
    make_delivered(shop, "kim")
    forget(shop, "kim", tell_odp=True)
    assert rows_that_name("kim") == []


@pytest.mark.parametrize("has_left", [True, False])
@pytest.mark.parametrize("is_member", [True, False])
def test_a_take_over_does_not_hold_up_forgetting(
    odp: ThreadedSandbox, shop: Install, has_left: bool, is_member: bool
) -> None:
    """The old audience stays paused, with its members in the ledger. They leave by the new audience's log."""
    old = make_delivered(shop, "kim")
    if not is_member:  # but ODP rejected the exit
        odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifiers": ["kim"]}})
        happen(old, ("kim", "exit", 2))
        drain_all(shop)
        parked_items.discard([Parked.objects.get(closed_at=None).pk], by="sam")
        odp.clear_faults()
    new = make_audience(shop, "new", provisioned=False)
    enter(new, "lee")
    drain_all(shop)
    Run.objects.update(opened_at=now() - timedelta(hours=1))
    assert take_over.take_over(new, old, by="sam", reason="made anew")
    if has_left:
        resends.advance_all(shop.pk, seconds=PATIENCE)
        finish(shop)
    asked = forgetting.ask(shop, "kim", tell_odp=True, by="dpo")
    assert asked is not None
    forgetting.advance_all()
    resends.advance_all(shop.pk, seconds=PATIENCE)
    finish(shop)
    asked.refresh_from_db()
    assert asked.ended_at is not None
    assert odp.members("lytics_gold") == ["lee"]


def test_a_locked_audience_holds_up_forgetting_and_no_delivery(
    odp: ThreadedSandbox, shop: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold = make_delivered(shop, "kim")
    asked = forgetting.ask(shop, "kim", tell_odp=False, by="dpo")
    assert asked is not None
    monkeypatch.setattr(sessions, "LOCK_MILLISECONDS", 10)
    with transaction.atomic():
        audience_lookup.lock([gold.pk])
        (forgets,) = start(lambda: forgetting.advance(asked))
        assert isinstance(forgets.exception(PATIENCE), forgetting.BusyError)
    assert forgetting.advance(asked)
