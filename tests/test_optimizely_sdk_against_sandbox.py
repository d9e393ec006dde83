"""The vendor's own SDK, unmodified, asks the sandbox who qualifies: what it understands, ODP's customers will see."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from optimizely.optimizely import Optimizely
from optimizely.optimizely_user_context import OptimizelyUserContext

from sandbox.odp.testing import RunningSandbox

AUDIENCE = "lytics_high_value"


@pytest.fixture(scope="module")
def odp() -> Iterator[RunningSandbox]:
    with RunningSandbox("--rate-profiles", "0") as sandbox:
        label = "Lytics - high_value"
        field = {"name": AUDIENCE, "display_name": label, "type": "boolean"}
        assert sandbox.odp("POST", "/v3/schema/objects/customers/fields", field)[0] == 200
        is_true = {
            "lhs": {"path_reference": {"value": f"customer.{AUDIENCE}"}},
            "comparator": "EQUAL",
            "rhs": {"boolean_literal": {"value": True}},
        }
        segment = {
            "description": label,
            "metadata": {"display_name": label},
            "definition": {"root_condition": {"customer_condition": {"customer_filter": {"comparison": is_true}}}},
        }
        assert sandbox.odp("PUT", f"/v3/segments/{AUDIENCE}", segment)[0] == 201
        yield sandbox


def datafile(odp: RunningSandbox, public_key: str) -> str:
    """The smallest that makes the SDK ask: an ODP integration, and one audience condition on our segment."""
    qualified = {"type": "third_party_dimension", "name": "odp.audiences", "match": "qualified", "value": AUDIENCE}
    whole: dict[str, Any] = {
        "version": "4",
        "accountId": "1",
        "projectId": "2",
        "revision": "1",
        "anonymizeIP": True,
        "botFiltering": False,
        "sendFlagDecisions": False,
        "environmentKey": "test",
        "sdkKey": "sandbox",
        "attributes": [],
        "events": [],
        "groups": [],
        "experiments": [],
        "featureFlags": [],
        "rollouts": [],
        "variables": [],
        "holdouts": [],
        "audiences": [],
        "typedAudiences": [{"id": "3", "name": AUDIENCE, "conditions": ["and", ["or", ["or", qualified]]]}],
        "integrations": [{"key": "odp", "host": odp.url, "publicKey": public_key}],
    }
    return json.dumps(whole)


@pytest.fixture
def sdk(odp: RunningSandbox) -> Iterator[Optimizely]:
    client = Optimizely(datafile=datafile(odp, odp.public_key))
    yield client
    client.close()


def user(sdk: Optimizely, user_id: str) -> OptimizelyUserContext:
    context = sdk.create_user_context(user_id)
    assert context is not None
    return context


def write(odp: RunningSandbox, user_id: str, member: bool) -> None:
    attributes = {"fs_user_id": user_id, "web_user_id": user_id, AUDIENCE: member}
    assert odp.odp("POST", "/v3/profiles", [{"attributes": attributes}])[0] == 202


def test_a_member_qualifies(odp: RunningSandbox, sdk: Optimizely) -> None:
    write(odp, "member", True)
    context = user(sdk, "member")
    assert context.fetch_qualified_segments() is True
    assert context.get_qualified_segments() == [AUDIENCE]
    assert context.is_qualified_for(AUDIENCE) is True


def test_a_known_customer_who_is_not_a_member_does_not_qualify(odp: RunningSandbox, sdk: Optimizely) -> None:
    write(odp, "outsider", False)
    context = user(sdk, "outsider")
    assert context.fetch_qualified_segments() is True
    assert context.get_qualified_segments() == []
    assert context.is_qualified_for(AUDIENCE) is False


def test_a_customer_who_left_no_longer_qualifies(odp: RunningSandbox, sdk: Optimizely) -> None:
    write(odp, "leaver", True)
    context = user(sdk, "leaver")
    context.fetch_qualified_segments()
    assert context.is_qualified_for(AUDIENCE) is True
    write(odp, "leaver", False)
    assert context.fetch_qualified_segments(options=["IGNORE_CACHE"]) is True
    assert context.get_qualified_segments() == []


def test_an_unknown_id_fails_as_the_sdk_expects(sdk: Optimizely, caplog: pytest.LogCaptureFixture) -> None:
    context = user(sdk, "nobody")
    with caplog.at_level(logging.WARNING):
        assert context.fetch_qualified_segments() is False
    assert context.get_qualified_segments() is None
    assert context.is_qualified_for(AUDIENCE) is False


def test_a_bad_key_fails(odp: RunningSandbox) -> None:
    write(odp, "member", True)
    client = Optimizely(datafile=datafile(odp, "nonsense"))
    context = user(client, "member")
    assert context.fetch_qualified_segments() is False
    assert context.get_qualified_segments() is None
    client.close()
    assert odp.requests()[-1]["status"] == 403


def test_a_revoked_key_fails(odp: RunningSandbox, sdk: Optimizely) -> None:
    write(odp, "member", True)
    odp.control("/sandbox/keys/revoke", {"key": odp.public_key})
    assert user(sdk, "member").fetch_qualified_segments() is False
    odp.control("/sandbox/keys/restore", {"key": odp.public_key})
    assert user(sdk, "member").fetch_qualified_segments() is True


def test_a_server_error_fails_and_the_next_try_succeeds(odp: RunningSandbox, sdk: Optimizely) -> None:
    write(odp, "member", True)
    odp.fault({"path": "/v3/graphql", "times": 1}, {"status": 503, "html": True})
    context = user(sdk, "member")
    assert context.fetch_qualified_segments() is False
    assert context.fetch_qualified_segments() is True
    assert context.get_qualified_segments() == [AUDIENCE]


def test_its_events_are_understood(odp: RunningSandbox, sdk: Optimizely) -> None:
    before = odp.requests()[-1]["number"]
    sdk.send_odp_event(type="page", action="view", identifiers={"fs_user_id": "visitor"}, data={"page": "home"})
    sdk.close()
    sent = [each for each in odp.requests(since=before) if each["endpoint"] == "POST /v3/events"]
    assert [each["status"] for each in sent] == [202]
    assert odp.customer("visitor")["known"] is True
