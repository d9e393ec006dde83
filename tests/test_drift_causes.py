"""Drift whose likely cause is not the first one that comes to mind, and responses that look like drift."""

from typing import Any

import pytest
from django.utils.timezone import now

from audiences.agreement import audits, odp_reasons, repairs, words
from audiences.delivery import holds
from audiences.models import Audience, Audit, Difference, Lane, Membership, Twin
from audiences.operations import resends, twins
from lytics import times
from tests.delivering import drain_all, enter, happen, make_audience
from tests.test_drift import MEMBERS, SEGMENT, Pair, agree, audit, named, pair, repair, work  # noqa: F401 — a fixture
from tests.threads import PATIENCE

pytestmark = pytest.mark.django_db(transaction=True)

Kind = Difference.Kind
FIELDS = "/v3/schema/objects/customers/fields"


def reasons(done: Audit) -> set[str]:
    return {why for _, why in named(done).values()}


def change_definition(pair: Pair) -> None:  # noqa: F811
    """A person has the audience compare another field."""
    other = {"name": "other", "display_name": "Other", "type": "boolean", "public_read": True}
    assert pair.odp.odp("POST", FIELDS, other)[0] == 200
    segment: dict[str, Any] = pair.odp.odp("GET", SEGMENT)[1]
    comparison = segment["definition"]["root_condition"]["customer_condition"]["customer_filter"]["comparison"]
    comparison["lhs"]["path_reference"]["value"] = "customer.other"
    del segment["revision"]
    assert pair.odp.odp("PUT", SEGMENT, segment)[0] == 200


# --- the audience in ODP, before any look has seen it --------------------------------------------------------


def test_a_deleted_audience_is_named_by_the_audit_itself(pair: Pair) -> None:  # noqa: F811
    pair.odp.odp("DELETE", SEGMENT)
    done = audit(pair)
    assert sorted(named(done)) == MEMBERS
    assert reasons(done) == {"ODP no longer has the audience lytics_gold."}
    assert done.explained == 5
    twins.look(pair.shop.pk)
    work(pair)
    assert audit(pair).differing == 0
    agree(pair)


def test_a_deleted_audience_is_named_where_odp_rejects_queries_about_it(pair: Pair) -> None:  # noqa: F811
    pair.odp.assume(unknown_segment="error")
    pair.odp.odp("DELETE", SEGMENT)
    asked = audits.ask(pair.gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    audits.advance_all(pair.shop.pk, seconds=PATIENCE)
    assert Audit.objects.get(pk=asked.pk).problem.startswith("ODP no longer has the audience lytics_gold.")
    twins.look(pair.shop.pk)
    work(pair)
    assert audit(pair).differing == 0
    agree(pair)


def test_a_changed_definition_is_named_by_the_audit_itself(pair: Pair) -> None:  # noqa: F811
    change_definition(pair)
    done = audit(pair)
    assert reasons(done) == {"The definition of lytics_gold was changed in ODP."}
    assert sorted(named(done)) == MEMBERS


def test_an_accepted_definition_is_the_reason_for_those_whom_it_leaves_out(pair: Pair) -> None:  # noqa: F811
    change_definition(pair)
    twins.look(pair.shop.pk)
    gold = Audience.objects.get(pk=pair.gold.pk)
    Audience.objects.filter(pk=gold.pk).update(accepted_definition=gold.foreign_definition)
    twins.look(pair.shop.pk)
    assert reasons(audit(pair)) == {odp_reasons.ACCEPTED}


def test_a_finding_of_an_earlier_look_does_not_explain_a_later_difference(pair: Pair) -> None:  # noqa: F811
    """The audience was made again since; and another system has written Ann's field."""
    Twin.objects.create(
        audience=pair.gold, looked_at=now(), finding=Twin.Finding.MISSING, problem="Gone.", since_at=now()
    )
    pair.write_in_odp(False, fs="ann")
    assert named(audit(pair)) == {"ann": (Kind.NOT_IN_ODP, odp_reasons.CHANGED)}


def test_a_look_reads_the_audiences_whose_audit_differs(
    pair: Pair,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With many audiences, a changed definition would otherwise be on Now hours later."""
    monkeypatch.setattr(twins, "READ", 1)
    twins.look(pair.shop.pk)
    change_definition(pair)
    audit(pair)
    Twin.objects.filter(audience=pair.gold).update(looked_at=now())
    twins.look(pair.shop.pk)
    assert Twin.objects.get(audience=pair.gold).finding == Twin.Finding.CHANGED


# --- profiles in ODP -----------------------------------------------------------------------------------------


def test_a_member_whom_only_one_product_sees_is_found_and_mended(pair: Pair) -> None:  # noqa: F811
    """The identifier of Web Experimentation has moved to another profile; that of Feature Experimentation stayed."""
    pair.odp.assume(web_user_id_confidence="low")
    pair.odp.odp("POST", "/v3/profiles", [{"attributes": {"fs_user_id": "stranger", "web_user_id": "ann"}}])
    assert "ann" in pair.odp.members("lytics_gold")
    assert "ann" not in pair.odp.members("lytics_gold", "web_user_id")
    done = audit(pair)
    assert named(done) == {"ann": (Kind.HALF_IN_ODP, odp_reasons.SPLIT)}
    assert repair(pair, done).differing == 0
    agree(pair)


@pytest.mark.parametrize("value", [False, True])
def test_a_profile_of_a_member_and_of_somebody_who_left_is_named_and_not_repaired(
    pair: Pair,  # noqa: F811
    value: bool,
) -> None:
    """ODP has one state for both. A repair of one would make the other one wrong, and the next repair the first."""
    pair.write_in_odp(value, fs="ann", web="fay")
    work(pair)
    done = audit(pair)
    wrong = {"fay": Kind.STILL_IN_ODP} if value else {"ann": Kind.NOT_IN_ODP}
    assert named(done) == {who: (kind, odp_reasons.MERGED) for who, kind in wrong.items()}
    assert repairs.plan(done) == repairs.Plan(0, 0, 0, left_out=1)
    assert not resends.repair(done, by="kim", reason="drift")


def test_an_identifier_of_nobody_in_the_ledger_is_no_merge(pair: Pair) -> None:  # noqa: F811
    pair.write_in_odp(False, fs="ann", web="stranger")
    assert named(audit(pair)) == {"ann": (Kind.NOT_IN_ODP, odp_reasons.CHANGED)}


def test_odp_that_shows_no_identifiers_leaves_the_usual_reason(pair: Pair) -> None:  # noqa: F811
    pair.write_in_odp(False, fs="ann", web="fay")
    pair.odp.fault({"path": "/v3/graphql", "body_contains": "{ fs_user_id web_user_id }"}, {"status": 400})
    assert named(audit(pair)) == {"ann": (Kind.NOT_IN_ODP, odp_reasons.CHANGED)}


# --- responses of Lytics that look like drift ----------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [
        {"data": [{"_id": "ann"}], "total": 5, "_next": ""},
        {"data": [], "total": 5, "_next": ""},
        {"data": None, "total": 5},
        {"data": []},
    ],
)
def test_a_scan_that_ends_early_is_no_sign_that_a_small_audience_was_left(
    pair: Pair,  # noqa: F811
    page: dict[str, Any],
) -> None:
    pair.lytics.answer = lambda path, query: (200, page) if path.endswith("/scan") else None
    asked = audits.ask(pair.gold, mode=Audit.Mode.FULL, by="kim")
    assert asked is not None
    audits.advance_all(pair.shop.pk, seconds=PATIENCE)
    done = Audit.objects.get(pk=asked.pk)
    assert "did not finish in 5 attempts" in done.problem
    assert named(done) == {}
    assert not resends.repair(done, by="kim", reason="drift")


def test_an_audience_that_is_empty_in_lytics_is_compared(pair: Pair) -> None:  # noqa: F811
    pair.lytics.members = []
    done = audit(pair)
    assert sorted(named(done)) == MEMBERS
    assert repair(pair, done).differing == 0
    agree(pair)


# --- clocks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1, 60])
def test_a_repair_wins_over_an_earlier_event_of_a_clock_that_is_ahead(pair: Pair, seconds: int) -> None:  # noqa: F811
    ahead = times.from_moment(now()) + seconds * times.SECOND
    happen(pair.gold, ("ann", "enter", ahead), ("fay", "exit", ahead))
    work(pair)
    pair.lytics.members = ["bob", "cyd", "dan", "eve", "fay"]
    done = audit(pair)
    assert {who: kind for who, (kind, _) in named(done).items()} == {"ann": Kind.NOT_IN_LYTICS, "fay": Kind.NOT_HERE}
    assert repair(pair, done).differing == 0
    agree(pair)


def test_an_event_of_a_clock_that_is_ahead_wins_over_a_repair_if_it_came_later(pair: Pair) -> None:  # noqa: F811
    ahead = times.from_moment(now()) + 60 * times.SECOND
    happen(pair.gold, ("ann", "enter", ahead))
    work(pair)
    pair.lytics.members = MEMBERS[1:]
    done = audit(pair)
    pair.change("enter", "ann", at=ahead + times.SECOND)
    work(pair)
    repair(pair, done)
    assert Membership.objects.get(audience=pair.gold, identifier="ann").is_member


# --- audiences that a person has stopped ---------------------------------------------------------------------


@pytest.mark.parametrize("is_blocked", [False, True])
def test_an_audience_that_waits_for_a_person_keeps_no_other_audit_waiting(
    pair: Pair,  # noqa: F811
    is_blocked: bool,
) -> None:
    other = make_other(pair)
    lane = Lane.objects.get(pk=other.pk)
    if is_blocked:
        Lane.objects.filter(pk=lane.pk).update(blocked_at=now(), block_reason="no field")
    else:
        holds.pause(lane, by="kim", reason="later")
    happen(other, ("zoe", "exit", 9))
    waiting = audits.ask(other, mode=Audit.Mode.FULL, by="kim")
    assert waiting is not None
    audits.advance_all(pair.shop.pk, seconds=PATIENCE)
    assert Audit.objects.get(pk=waiting.pk).phase == Audit.Phase.SETTLE
    done = audit(pair)
    assert (done.differing, done.phase) == (0, Audit.Phase.DONE)
    assert "until a person" in words.result(Audit.objects.get(pk=waiting.pk))


def make_other(pair: Pair) -> Audience:  # noqa: F811
    made = make_audience(pair.shop, "silver", provisioned=False)
    enter(made, "zoe")
    drain_all(pair.shop)
    return Audience.objects.get(pk=made.pk)
