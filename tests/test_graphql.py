"""Querying ODP for memberships: one result for both identifiers by which the products know a customer."""

import json
from typing import Any

import pytest

from odp import graphql
from odp.client import Client
from odp.graphql import MembershipAnswer, ask, audiences_of
from odp.mechanisms import Change, Mechanism, encode, mechanism
from odp.outcomes import Outcome
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


@pytest.mark.parametrize("name", ["attribute", "list", "passthrough"])
def test_it_says_in_after_an_enter_and_out_after_an_exit(odp: ThreadedSandbox, name: str) -> None:
    way = mechanism(name, passthrough_definition=DEFINITION)
    for odp_id in ("lytics_gold", "lytics_other"):
        assert way.ensure(client(odp), odp_id, "Lytics - x", seconds=LONG) is None
    write(odp, way, "lytics_gold", "kim", True)
    found = who(odp, "kim", "lytics_gold", "lytics_other")
    assert (found.qualified, found.known) == ({"lytics_gold"}, True)
    assert (found.is_in("lytics_gold"), found.is_out("lytics_gold"), found.is_out("lytics_other")) == (
        True,
        False,
        True,
    )
    write(odp, way, "lytics_gold", "kim", False, at=2)
    assert who(odp).is_out("lytics_gold")
    assert who(odp).qualified == set()


def test_a_customer_unknown_to_odp_is_in_no_audience(odp: ThreadedSandbox) -> None:
    found = who(odp, "nobody")
    assert (found.answer.outcome, found.qualified, found.known) == (Outcome.DELIVERED, set(), False)
    assert found.is_out("lytics_gold")
    assert not found.is_in("lytics_gold")


def test_a_customer_known_by_one_name_alone_is_not_in_for_both_products(odp: ThreadedSandbox) -> None:
    way = mechanism("attribute")
    assert way.ensure(client(odp), "lytics_gold", "Lytics - gold", seconds=LONG) is None
    item = {"attributes": {"web_user_id": "kim", "lytics_gold": True}}
    client(odp).call("POST", "/v3/profiles", body=encode([item]), seconds=LONG)
    found = who(odp)
    assert found.by_name == {"fs_user_id": None, "web_user_id": {"lytics_gold"}}
    assert found.qualified == {"lytics_gold"}
    assert (found.is_in("lytics_gold"), found.is_out("lytics_gold")) == (False, False)


def test_many_audiences_are_queried_in_several_requests(odp: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphql, "AUDIENCES_PER_QUERY", 2)
    way = mechanism("attribute")
    ids = [f"lytics_a{nth}" for nth in range(5)]
    for odp_id in ids:
        assert way.ensure(client(odp), odp_id, odp_id, seconds=LONG) is None
    write(odp, way, "lytics_a0", "kim", True)
    write(odp, way, "lytics_a4", "kim", True)
    assert who(odp, "kim", *ids).qualified == {"lytics_a0", "lytics_a4"}
    asked = [request for request in odp.requests() if request["path"] == "/v3/graphql"]
    assert len(asked) == 3


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
    assert (refused.answer.outcome, refused.qualified) == (Outcome.UNAUTHORISED, None)
    nowhere = Client(host="http://127.0.0.1:9", api_key="public.secret")
    dead = audiences_of(nowhere, identifier="kim", odp_ids=["x"], seconds=LONG)
    assert (dead.answer.outcome, dead.qualified) == (Outcome.RETRY_LATER, None)
    assert not dead.is_in("x")
    assert not dead.is_out("x")


def test_an_audience_unknown_to_odp_may_be_an_error(odp: ThreadedSandbox) -> None:
    way = mechanism("attribute")
    assert way.ensure(client(odp), "lytics_gold", "Lytics - gold", seconds=LONG) is None
    write(odp, way, "lytics_gold", "kim", True)
    odp.assume(unknown_segment="error")
    found = who(odp, "kim", "lytics_gold", "lytics_nothing")
    assert (found.answer.outcome, found.qualified) == (Outcome.REJECTED, None)
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
    ("body", "outcome", "qualified"),
    [
        ({"data": {"c0": EDGES, "c1": EDGES}}, Outcome.DELIVERED, set()),
        ({"data": {"c0": None, "c1": None}, "errors": [GONE, GONE]}, Outcome.DELIVERED, set()),
        ({"data": None, "errors": [GONE]}, Outcome.DELIVERED, set()),
        ({"data": {"c0": None, "c1": None}}, Outcome.RETRY_LATER, None),
        ({"data": {"c0": {"audiences": None}, "c1": EDGES}}, Outcome.RETRY_LATER, None),
        ({"errors": [{"message": "boom"}]}, Outcome.REJECTED, None),
        ({"errors": ["boom"]}, Outcome.REJECTED, None),
        ({"errors": 5}, Outcome.REJECTED, None),
        ({"data": {"c0": EDGES, "c1": EDGES}, "errors": [GONE, {"message": "boom"}]}, Outcome.REJECTED, None),
        ([], Outcome.RETRY_LATER, None),
        ("hello", Outcome.RETRY_LATER, None),
    ],
)
def test_malformed_responses_are_read_safely(body: Any, outcome: Outcome, qualified: set[str] | None) -> None:
    with ScriptedServer(say(answer(200, json.dumps(body).encode()))) as server:
        found = who(server)
    assert (found.answer.outcome, found.qualified) == (outcome, qualified)
