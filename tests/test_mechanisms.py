"""The three ways to write a membership in ODP: bodies exactly as documented, and what each makes in ODP first."""

import json
from typing import Any

import pytest

from audiences.models import Install
from odp import paths
from odp.client import Client
from odp.mechanisms import (
    CHOICES,
    MECHANISMS,
    Attribute,
    Change,
    ListMembership,
    Mechanism,
    Passthrough,
    Refusal,
    encode,
    limit_of,
    mechanism,
    membership_in,
)
from odp.outcomes import Answer, Outcome
from sandbox.odp.testing import ThreadedSandbox
from tests.wire import ScriptedServer, answer, say

SECONDS = 20.0
FIELDS = "/v3/schema/objects/customers/fields"
LABEL = "Lytics - Gold Club"
ID = "lytics_gold_club"
DEFINITION = {"passthrough": {"audience_id": ID}}


def client(odp: ThreadedSandbox | ScriptedServer) -> Client:
    key = odp.private_key if isinstance(odp, ThreadedSandbox) else "public.secret"
    return Client(host=odp.url, api_key=key)


def ensure(
    how: Mechanism, odp: ThreadedSandbox | ScriptedServer, odp_id: str = ID, *, accepted: str = ""
) -> Answer | Refusal | None:
    return how.ensure(client(odp), odp_id, LABEL, seconds=SECONDS, accepted=accepted)


def change(identifier: str = "kim", odp_id: str = ID, *, is_member: bool = True, at: int = 1_700_000_000) -> Change:
    return Change(
        lane=1, odp_id=odp_id, identifier=identifier, is_member=is_member, occurred_ns=at * 10**9 + 999, sequence=1
    )


def calls(odp: ThreadedSandbox) -> list[str]:
    return [f"{request['method']} {request['path']}" for request in odp.requests()]


def body(odp: ThreadedSandbox, method: str, path: str) -> Any:
    (seen,) = [r for r in odp.requests(bodies=True) if (r["method"], r["path"]) == (method, path)]
    return json.loads(seen["body"])


def items(how: Mechanism, *changes: Change) -> list[dict[str, Any]]:
    return [item for group in how.groups(changes) for item in how.items(group)]


# --- Changes -------------------------------------------------------------------------------------------------


def test_an_attribute_is_a_boolean_beside_both_identifiers() -> None:
    assert items(Attribute(), change("kim"), change("lee", is_member=False)) == [
        {"attributes": {"fs_user_id": "kim", "web_user_id": "kim", ID: True}},
        {"attributes": {"fs_user_id": "lee", "web_user_id": "lee", ID: False}},
    ]


def test_several_audiences_of_one_customer_are_one_item() -> None:
    changes = [change("kim"), change("lee"), change("kim", "lytics_vip", is_member=False)]
    assert items(Attribute(), *changes) == [
        {"attributes": {"fs_user_id": "kim", "web_user_id": "kim", ID: True, "lytics_vip": False}},
        {"attributes": {"fs_user_id": "lee", "web_user_id": "lee", ID: True}},
    ]


def test_a_list_subscription_names_its_list_and_both_identifiers() -> None:
    changes = [change("kim"), change("kim", "lytics_vip", is_member=False)]
    assert items(ListMembership(), *changes) == [
        {"list_id": ID, "fs_user_id": "kim", "web_user_id": "kim", "subscribed": True},
        {"list_id": "lytics_vip", "fs_user_id": "kim", "web_user_id": "kim", "subscribed": False},
    ]


def test_a_passthrough_change_is_one_event_for_each_identifier_in_whole_seconds() -> None:
    assert items(Passthrough(), change("kim"), change("kim", is_member=False)) == [
        {
            "type": "passthrough",
            "action": action,
            "identifiers": {name: "kim"},
            "data": {"audience_id": ID, "ts": 1_700_000_000},
        }
        for action in ("qualify", "disqualify")
        for name in ("fs_user_id", "web_user_id")
    ]


@pytest.mark.parametrize("how", MECHANISMS.values(), ids=MECHANISMS)
def test_a_group_makes_as_many_items_as_the_mechanism_says(how: Mechanism) -> None:
    for group in how.groups([change("kim"), change("lee"), change("kim", "lytics_vip")]):
        assert len(how.items(group)) == how.items_per_change


def test_a_control_names_the_customer_and_no_audience() -> None:
    assert Attribute().control(change("kim")) == {"attributes": {"fs_user_id": "kim", "web_user_id": "kim"}}
    assert ListMembership().control(change("kim")) is None
    assert Passthrough().control(change("kim")) is None


def test_any_identifier_gets_through_as_it_is() -> None:
    odd = 'é"\\\u2028 名 {"a":1} null'
    (item,) = json.loads(encode(items(Attribute(), change(odd))))
    assert item["attributes"]["fs_user_id"] == odd


# --- The registry --------------------------------------------------------------------------------------------


def test_a_mechanism_is_found_by_its_name() -> None:
    assert {name: mechanism(name).path for name in MECHANISMS} == {
        "attribute": "/v3/profiles",
        "list": "/v3/lists/subscriptions",
        "passthrough": "/v3/events",
    }
    with pytest.raises(KeyError):
        mechanism("carrier pigeon")


def test_only_the_passthrough_mechanism_is_made_with_the_definition_that_was_set() -> None:
    made = mechanism("passthrough", passthrough_definition=DEFINITION)
    assert isinstance(made, Passthrough)
    assert made.definition("lytics_gold") == DEFINITION
    assert isinstance(mechanism("list", passthrough_definition=DEFINITION), ListMembership)


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_label_of_a_mechanism_is_offered_by_the_form_of_an_install(name: str) -> None:
    field = Install._meta.get_field("mechanism")
    assert dict(CHOICES)[name] == MECHANISMS[name].label == dict(field.flatchoices)[name]
    assert len(name) <= (field.max_length or 0)


@pytest.mark.parametrize("how", MECHANISMS.values(), ids=MECHANISMS)
def test_the_rate_limit_of_a_mechanism_is_the_one_that_its_path_counts_against(how: Mechanism) -> None:
    assert limit_of(how.path) == how.rate_limit


@pytest.mark.parametrize("how", MECHANISMS.values(), ids=MECHANISMS)
def test_responses_and_errors_of_a_mechanism_are_read_as_those_of_membership_writes(how: Mechanism) -> None:
    """Else a proxy's 200 would count as delivered, and an error could show a customer's identifier."""
    assert how.path in paths.MEMBERSHIP_WRITES


@pytest.mark.parametrize("how", MECHANISMS.values(), ids=MECHANISMS)
def test_an_item_is_read_back_by_its_own_mechanism_and_by_no_other(how: Mechanism) -> None:
    sent = items(how, change("kim"), change("lee", is_member=False))
    found = [how.read(item, ID) for item in sent]
    assert [each for each in found if each is not None] == [("kim", True), ("lee", False)]
    assert [membership_in(item, ID) for item in sent] == found
    others = [other for other in MECHANISMS.values() if other is not how]
    assert {other.read(item, ID) for other in others for item in sent} == {None}
    assert {how.read(item, "lytics_other") for item in sent} == {None}


# --- An audience in ODP: attribute ---------------------------------------------------------------------------

IS_TRUE = {
    "comparison": {
        "lhs": {"path_reference": {"value": f"customer.{ID}"}},
        "comparator": "EQUAL",
        "rhs": {"boolean_literal": {"value": True}},
    }
}


def segment(customer_filter: Any) -> dict[str, Any]:
    return {
        "description": LABEL,
        "metadata": {"display_name": LABEL},
        "definition": {"root_condition": {"customer_condition": {"customer_filter": customer_filter}}},
    }


def test_an_attribute_audience_is_a_boolean_field_and_a_segment_over_it(odp: ThreadedSandbox) -> None:
    assert ensure(Attribute(), odp) is None
    assert calls(odp) == [
        f"GET {FIELDS}/{ID}",
        f"POST {FIELDS}",
        f"GET {FIELDS}/{ID}",
        f"GET /v3/segments/{ID}",
        f"PUT /v3/segments/{ID}",
        f"GET /v3/segments/{ID}",
    ]
    assert body(odp, "POST", FIELDS) == {
        "name": ID,
        "display_name": LABEL,
        "type": "boolean",
        "description": "Whether the customer is in the Lytics audience Gold Club",
    }
    assert body(odp, "PUT", f"/v3/segments/{ID}") == segment(IS_TRUE)


def test_existing_objects_count_as_created_and_stay_unchanged(odp: ThreadedSandbox) -> None:
    ensure(Attribute(), odp)
    (before,) = odp.requests()[-1:]
    assert ensure(Attribute(), odp) is None
    assert [r["method"] for r in odp.requests(before["number"])] == ["GET", "GET"]


def test_a_segment_edited_by_a_person_is_never_overwritten(odp: ThreadedSandbox) -> None:
    ensure(Attribute(), odp)
    mine = segment({"is_list_member": {"list": "newsletter"}}) | {"description": "Theirs"}
    odp.odp("POST", "/v3/lists", {"name": "newsletter"})
    assert odp.odp("PUT", f"/v3/segments/{ID}", mine)[0] == 200
    problem = ensure(Attribute(), odp)
    assert isinstance(problem, Refusal)
    assert "ODP has member of the list newsletter; this service would write customer.lytics_gold_club = true" in (
        problem.reason
    )
    assert ensure(Attribute(), odp, accepted=problem.definition) is None
    _, found = odp.odp("GET", f"/v3/segments/{ID}")
    assert (found["description"], found["definition"], found["revision"]) == ("Theirs", mine["definition"], 2)


@pytest.mark.parametrize("kind", ["string", "number", "timestamp"])
def test_a_field_of_another_type_is_a_reason_to_stop(odp: ThreadedSandbox, kind: str) -> None:
    odp.odp("POST", FIELDS, {"name": ID, "display_name": "Older", "type": kind})
    problem = ensure(Attribute(), odp)
    assert isinstance(problem, Refusal)
    assert f"The customer field {ID} is there with type {kind}, not boolean." in problem.reason
    assert odp.odp("GET", f"/v3/segments/{ID}")[0] == 404


def test_a_display_name_that_another_field_has_gets_the_id_behind_it(odp: ThreadedSandbox) -> None:
    odp.odp("POST", FIELDS, {"name": "gold", "display_name": LABEL, "type": "string"})
    assert ensure(Attribute(), odp) is None
    assert odp.odp("GET", f"{FIELDS}/{ID}")[1]["display_name"] == f"{LABEL} ({ID})"
    assert odp.odp("GET", f"/v3/segments/{ID}")[1]["metadata"] == {"display_name": LABEL}


def test_two_audiences_with_one_slug_both_come_to_be(odp: ThreadedSandbox) -> None:
    assert ensure(Attribute(), odp, "lytics_gold_club") is None
    assert ensure(Attribute(), odp, "lytics_gold_club_4f2a") is None
    assert odp.control("/sandbox/summary")["accounts"][odp.public_key]["segments"] == 2


def test_a_field_that_odp_will_not_make_is_a_reason_to_stop_in_odps_words(odp: ThreadedSandbox) -> None:
    odp.assume(field_limit=1)
    assert ensure(Attribute(), odp, "lytics_first") is None
    problem = ensure(Attribute(), odp, "lytics_second")
    assert isinstance(problem, Refusal)
    assert problem.reason.startswith("The field lytics_second could not be created: 400: ")


def test_a_segment_that_odp_will_not_make_is_a_reason_to_stop_in_odps_words(odp: ThreadedSandbox) -> None:
    odp.assume(segment_limit=1)
    assert ensure(Attribute(), odp, "lytics_first") is None
    problem = ensure(Attribute(), odp, "lytics_second")
    assert isinstance(problem, Refusal)
    assert problem.reason.startswith("The audience lytics_second could not be created: 400: ")


STEPS = {
    "creating the field": {"method": "POST", "path": FIELDS},
    "reading the field": {"method": "GET", "path": FIELDS},
    "reading the segment": {"method": "GET", "path": "/v3/segments"},
    "creating the segment": {"method": "PUT", "path": "/v3/segments"},
}


@pytest.mark.parametrize("then", [{"status": 503}, {"status": 429}, {"close": "before"}, {"status": 403}])
@pytest.mark.parametrize("step", STEPS)
def test_trouble_at_any_step_is_handed_up_and_the_next_time_all_is_made(
    odp: ThreadedSandbox, step: str, then: dict[str, Any]
) -> None:
    odp.fault({**STEPS[step], "times": 1}, then)
    problem = ensure(Attribute(), odp)
    assert isinstance(problem, Answer)
    expected = Outcome.UNAUTHORISED if then == {"status": 403} else Outcome.RETRY_LATER
    assert problem.outcome is expected
    assert ensure(Attribute(), odp) is None
    assert odp.odp("GET", f"/v3/segments/{ID}")[0] == 200


@pytest.mark.parametrize("step", ["creating the field", "creating the segment"])
def test_an_answer_that_got_lost_after_the_work_was_done_does_no_harm(odp: ThreadedSandbox, step: str) -> None:
    odp.fault({**STEPS[step], "times": 1}, {"close": "after"})
    assert isinstance(ensure(Attribute(), odp), Answer)
    assert ensure(Attribute(), odp) is None
    assert odp.odp("GET", f"/v3/segments/{ID}")[1]["revision"] == 1


def test_a_host_that_is_not_odp_is_retried_slowly_and_not_a_rejection() -> None:
    with ScriptedServer(say(answer(404, b"<html>", kind="text/html"))) as server:
        for how in (Attribute(), ListMembership(), Passthrough(DEFINITION)):
            problem = ensure(how, server)
            assert isinstance(problem, Answer)
            assert (problem.outcome, problem.fixed_backoff) == (Outcome.RETRY_LATER, True)


@pytest.mark.parametrize("found", [b"[]", b"null", b'"boolean"', b"{}", b'{"type": null}', b"not json"])
def test_an_unreadable_field_is_not_taken_for_boolean(found: bytes) -> None:
    with ScriptedServer(say(answer(200, found))) as server:
        problem = ensure(Attribute(), server)
    assert isinstance(problem, Answer)
    assert (problem.outcome, problem.fixed_backoff) == (Outcome.RETRY_LATER, True)
    assert server.requests
    assert all(request.startswith(b"GET") for request in server.requests)


JUNK = {
    "a maintenance page": ("Service is under maintenance", "text/plain"),
    "a web page": ("<html>maintenance</html>", "text/html"),
    "an empty object": ("{}", "application/json"),
    "nothing": ("", "application/json"),
    "another service's JSON": ('{"status": "ok", "items": []}', "application/json"),
}
MAKING: dict[str, tuple[Mechanism, dict[str, Any]]] = {
    "the field": (Attribute(), STEPS["creating the field"]),
    "the segment": (Attribute(), STEPS["creating the segment"]),
    "the list": (ListMembership(), {"method": "POST", "path": "/v3/lists"}),
    "the passthrough audience": (Passthrough(DEFINITION), STEPS["creating the segment"]),
}


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("what", MAKING)
@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_a_success_without_an_object_to_read_back_is_not_a_success(
    odp: ThreadedSandbox, what: str, junk: str, status: int
) -> None:
    how, when = MAKING[what]
    text, kind = JUNK[junk]
    odp.fault({**when, "times": 1}, {"status": status, "body": text, "headers": {"Content-Type": kind}})
    problem = ensure(how, odp)
    assert isinstance(problem, Answer)
    assert problem.outcome is Outcome.RETRY_LATER
    assert problem.reason
    assert ensure(how, odp) is None
    assert odp.odp("GET", f"/v3/segments/{ID}")[0] == 200


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("how", [Attribute(), ListMembership(), Passthrough(DEFINITION), Passthrough()])
def test_a_look_that_shows_nothing_of_odp_is_worth_a_retry_and_no_writing(
    odp: ThreadedSandbox, how: Mechanism, junk: str
) -> None:
    text, kind = JUNK[junk]
    odp.fault({"method": "GET"}, {"status": 200, "body": text, "headers": {"Content-Type": kind}})
    assert isinstance(ensure(how, odp), Answer)
    assert [call for call in calls(odp) if not call.startswith("GET")] == []


@pytest.mark.parametrize(
    ("mine", "other"),
    [
        (mine, other)
        for mine in (Attribute(), ListMembership(), Passthrough(), Passthrough(DEFINITION))
        for other in (Attribute(), ListMembership())
        if type(mine) is not type(other)
    ],
)
def test_objects_of_another_mechanism_are_neither_used_nor_overwritten(
    odp: ThreadedSandbox, mine: Mechanism, other: Mechanism
) -> None:
    assert ensure(other, odp) is None
    before = odp.odp("GET", f"/v3/segments/{ID}")
    problem = ensure(mine, odp)
    assert isinstance(problem, Refusal)
    assert "another definition" in problem.reason
    assert odp.odp("GET", f"/v3/segments/{ID}") == before
    assert ensure(mine, odp, accepted=problem.definition) is None


def test_another_list_is_not_ours(odp: ThreadedSandbox) -> None:
    odp.odp("POST", "/v3/lists", {"name": "newsletter"})
    odp.fault({"method": "POST", "path": "/v3/lists"}, {"status": 400, "message": "too many lists"})
    assert ensure(ListMembership(), odp) == Refusal(f"The list {ID} could not be created: 400: too many lists")


# --- An audience in ODP: list and passthrough ----------------------------------------------------------------


@pytest.mark.parametrize("shape", ["created", "flat"])
def test_a_list_audience_is_a_list_and_a_segment_over_it(odp: ThreadedSandbox, shape: str) -> None:
    odp.assume(list_created_body=shape)
    assert ensure(ListMembership(), odp) is None
    assert calls(odp) == [
        "GET /v3/lists",
        "POST /v3/lists",
        "GET /v3/lists",
        f"GET /v3/segments/{ID}",
        f"PUT /v3/segments/{ID}",
        f"GET /v3/segments/{ID}",
    ]
    assert body(odp, "POST", "/v3/lists") == {"name": ID}
    assert body(odp, "PUT", f"/v3/segments/{ID}") == segment({"is_list_member": {"list": ID}})


def test_a_list_that_is_there_already_is_success(odp: ThreadedSandbox) -> None:
    odp.odp("POST", "/v3/lists", {"name": ID})
    assert ensure(ListMembership(), odp) is None
    assert ensure(ListMembership(), odp) is None
    assert calls(odp).count(f"PUT /v3/segments/{ID}") == 1


def test_a_list_that_is_rejected_and_missing_needs_a_person(odp: ThreadedSandbox) -> None:
    odp.fault({"method": "POST", "path": "/v3/lists"}, {"status": 400, "message": "too many lists"})
    assert ensure(ListMembership(), odp) == Refusal(f"The list {ID} could not be created: 400: too many lists")


def test_lists_that_can_not_be_read_are_worth_a_retry(odp: ThreadedSandbox) -> None:
    odp.odp("POST", "/v3/lists", {"name": ID})
    odp.fault({"method": "GET", "path": "/v3/lists"}, {"status": 503})
    assert isinstance(ensure(ListMembership(), odp), Answer)


def test_a_passthrough_audience_is_created_from_the_configured_definition(odp: ThreadedSandbox) -> None:
    assert ensure(Passthrough(DEFINITION), odp) is None
    assert body(odp, "PUT", f"/v3/segments/{ID}") == {
        "description": LABEL,
        "metadata": {"display_name": LABEL},
        "definition": DEFINITION,
    }
    assert ensure(Passthrough(DEFINITION), odp) is None
    assert calls(odp).count(f"PUT /v3/segments/{ID}") == 1


def test_without_a_definition_a_passthrough_audience_has_to_be_there(odp: ThreadedSandbox) -> None:
    problem = ensure(Passthrough(), odp)
    assert isinstance(problem, Refusal)
    assert "ODP_PASSTHROUGH_DEFINITION" in problem.reason
    ensure(Passthrough(DEFINITION), odp)
    assert ensure(Passthrough(), odp) is None
    odp.fault({}, {"status": 500})
    assert isinstance(ensure(Passthrough(), odp), Answer)
