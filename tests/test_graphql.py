"""Querying ODP for memberships: one result for both identifiers by which the products know a customer."""

import json
from typing import Any

import pytest

from odp import graphql
from odp.client import Client
from odp.graphql import MembershipAnswer, ask, audiences_of
from odp.mechanisms import Change, Mechanism, encode, mechanism
from odp.outcomes import Answer, Outcome
from sandbox.odp.testing import ThreadedSandbox
from tests.wire import ScriptedServer, answer, say

LONG = 20.0
DEFINITION: dict[str, Any] = {"passthrough": {}}


def client(odp: Any, key: str = "") -> Client:
    return Client(host=odp.url, api_key=key or getattr(odp, "private_key", "public.secret"))


def write(odp: ThreadedSandbox, way: Mechanism, odp_id: str, identifier: str, is_member: bool, at: int = 1) -> None:
    change = Change(1, odp_id, identifier, is_member, at * 10**9, 1)
    body = encode(way.items((change,)))
    assert client(odp).call("POST", way.path, body=body, seconds=LONG).outcome is Outcome.DELIVERED


def who(odp: Any, identifier: str = "kim", *odp_ids: str) -> MembershipAnswer:
    return audiences_of(client(odp), identifier=identifier, odp_ids=odp_ids or ["lytics_gold"], seconds=LONG)


def both(found: set[str] | None) -> dict[str, set[str] | None]:
    """The same audiences by each name; None for a customer whom ODP doesn't know by it."""
    return {"fs_user_id": found, "web_user_id": found}


@pytest.mark.parametrize("name", ["attribute", "list", "passthrough"])
def test_it_says_in_after_an_enter_and_out_after_an_exit(odp: ThreadedSandbox, name: str) -> None:
    way = mechanism(name, passthrough_definition=DEFINITION)
    for odp_id in ("lytics_gold", "lytics_other"):
        assert way.ensure(client(odp), odp_id, "Lytics - x", seconds=LONG) is None
    write(odp, way, "lytics_gold", "kim", True)
    found = who(odp, "kim", "lytics_gold", "lytics_other")
    assert found.by_name == both({"lytics_gold"})
    assert (found.is_in("lytics_gold"), found.is_out("lytics_gold"), found.is_out("lytics_other")) == (
        True,
        False,
        True,
    )
    write(odp, way, "lytics_gold", "kim", False, at=2)
    assert who(odp).is_out("lytics_gold")
    assert who(odp).by_name == both(set())


def test_a_customer_unknown_to_odp_is_in_no_audience(odp: ThreadedSandbox) -> None:
    found = who(odp, "nobody")
    assert (found.answer.outcome, found.by_name) == (Outcome.DELIVERED, both(None))
    assert found.is_out("lytics_gold")
    assert not found.is_in("lytics_gold")


def test_a_customer_known_by_one_name_alone_is_not_in_for_both_products(odp: ThreadedSandbox) -> None:
    way = mechanism("attribute")
    assert way.ensure(client(odp), "lytics_gold", "Lytics - gold", seconds=LONG) is None
    item = {"attributes": {"web_user_id": "kim", "lytics_gold": True}}
    client(odp).call("POST", "/v3/profiles", body=encode([item]), seconds=LONG)
    found = who(odp)
    assert found.by_name == {"fs_user_id": None, "web_user_id": {"lytics_gold"}}
    assert (found.is_in("lytics_gold"), found.is_out("lytics_gold")) == (False, False)


def test_many_audiences_are_queried_in_several_requests(odp: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphql, "AUDIENCES_PER_QUERY", 2)
    way = mechanism("attribute")
    ids = [f"lytics_a{nth}" for nth in range(5)]
    for odp_id in ids:
        assert way.ensure(client(odp), odp_id, odp_id, seconds=LONG) is None
    write(odp, way, "lytics_a0", "kim", True)
    write(odp, way, "lytics_a4", "kim", True)
    assert who(odp, "kim", *ids).by_name == both({"lytics_a0", "lytics_a4"})
    asked = [request for request in odp.requests() if request["path"] == "/v3/graphql"]
    assert len(asked) == 3


def test_the_requests_of_one_query_share_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = []

    def call_for_three_seconds(*_: object, seconds: float, **__: object) -> Answer:
        allowed.append(seconds)
        return Answer(Outcome.DELIVERED, seconds=3.0, json={"data": {"c0": EDGES, "c1": EDGES}})

    monkeypatch.setattr(graphql, "AUDIENCES_PER_QUERY", 1)
    monkeypatch.setattr(Client, "call", call_for_three_seconds)
    nowhere = Client(host="http://127.0.0.1:9", api_key="public.secret")
    found = audiences_of(nowhere, identifier="kim", odp_ids=["a", "b", "c"], seconds=10.0)
    assert (allowed, found.answer.seconds) == ([10.0, 7.0, 4.0], 9.0)


def test_several_customers_are_queried_in_one_request(odp: ThreadedSandbox) -> None:
    way = mechanism("attribute")
    assert way.ensure(client(odp), "lytics_gold", "Lytics - gold", seconds=LONG) is None
    write(odp, way, "lytics_gold", "kim", True)
    write(odp, way, "lytics_gold", "lee", False)
    people = [("fs_user_id", name) for name in ("kim", "lee", "nobody")]
    assert ask(client(odp), customers=people, odp_ids=["lytics_gold"], seconds=LONG).qualified == [
        {"lytics_gold"},
        set(),
        None,
    ]


def test_a_rejected_key_and_a_dead_server_are_distinguished_from_no_membership(odp: ThreadedSandbox) -> None:
    refused = audiences_of(client(odp, "wrong.key"), identifier="kim", odp_ids=["x"], seconds=LONG)
    assert (refused.answer.outcome, refused.by_name) == (Outcome.UNAUTHORISED, {})
    nowhere = Client(host="http://127.0.0.1:9", api_key="public.secret")
    dead = audiences_of(nowhere, identifier="kim", odp_ids=["x"], seconds=LONG)
    assert (dead.answer.outcome, dead.by_name) == (Outcome.RETRY_LATER, {})
    assert not dead.is_in("x")
    assert not dead.is_out("x")


def test_an_audience_unknown_to_odp_may_be_an_error(odp: ThreadedSandbox) -> None:
    way = mechanism("attribute")
    assert way.ensure(client(odp), "lytics_gold", "Lytics - gold", seconds=LONG) is None
    write(odp, way, "lytics_gold", "kim", True)
    odp.assume(unknown_segment="error")
    found = who(odp, "kim", "lytics_gold", "lytics_nothing")
    assert (found.answer.outcome, found.by_name) == (Outcome.REJECTED, {})
    assert "unknown audience lytics_nothing" in found.answer.reason


def test_a_customer_whom_an_error_names_without_quotes_is_masked() -> None:
    """Reasons go to the pages and into messages about troubles."""
    body = {"errors": [{"message": "Customer ann-7 is not allowed, nor is gold"}]}
    with ScriptedServer(say(answer(200, json.dumps(body).encode()))) as server:
        found = who(server, "ann-7", "lytics_gold")
    assert found.answer.reason == "GraphQL: Customer ••• is not allowed, nor is gold"


GONE = {"extensions": {"classification": "InvalidIdentifierException"}, "message": "could not resolve"}
EDGES = {"audiences": {"edges": [{"node": {"name": "lytics_gold", "state": "not_qualified"}}]}}


@pytest.mark.parametrize(
    ("body", "outcome", "by_name"),
    [
        ({"data": {"c0": EDGES, "c1": EDGES}}, Outcome.DELIVERED, both(set())),
        ({"data": {"c0": None, "c1": None}, "errors": [GONE, GONE]}, Outcome.DELIVERED, both(None)),
        ({"data": None, "errors": [GONE, GONE]}, Outcome.DELIVERED, both(None)),
        ({"data": {"c0": EDGES}, "errors": [GONE]}, Outcome.DELIVERED, {"fs_user_id": set(), "web_user_id": None}),
        # It says of one of two customers alone that ODP doesn't know it: the other may be a member.
        ({"data": None, "errors": [GONE]}, Outcome.RETRY_LATER, {}),
        ({"errors": [GONE]}, Outcome.RETRY_LATER, {}),
        ({"data": {"c0": None, "c1": None}}, Outcome.RETRY_LATER, {}),
        ({"data": {"c0": {"audiences": None}, "c1": EDGES}}, Outcome.RETRY_LATER, {}),
        ({"errors": [{"message": "boom"}]}, Outcome.REJECTED, {}),
        ({"errors": ["boom"]}, Outcome.REJECTED, {}),
        ({"errors": 5}, Outcome.REJECTED, {}),
        ({"data": {"c0": EDGES, "c1": EDGES}, "errors": [GONE, {"message": "boom"}]}, Outcome.REJECTED, {}),
        ([], Outcome.RETRY_LATER, {}),
        ("hello", Outcome.RETRY_LATER, {}),
    ],
)
def test_malformed_responses_are_read_safely(body: Any, outcome: Outcome, by_name: dict[str, set[str] | None]) -> None:
    with ScriptedServer(say(answer(200, json.dumps(body).encode()))) as server:
        found = who(server)
    assert (found.answer.outcome, found.by_name) == (outcome, by_name)
