"""The sandbox ODP behaves as its README says, tested over HTTP."""

import ast
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from graphlib import TopologicalSorter
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.odp.__main__ import main
from sandbox.odp.account.accounts import Account
from sandbox.odp.account.assumptions import Assumptions
from sandbox.odp.account.changes import CHANGES, changes_of
from sandbox.odp.testing import ROOT, ControlledSandbox, RunningSandbox, ThreadedSandbox
from sandbox.odp.world import Options
from tests.threads import PATIENCE

UNLIMITED = {"rates": {"profiles": 0, "lists": 0, "graphql": 0}}
FIELDS = "/v3/schema/objects/customers/fields"
VUID = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def odp() -> Iterator[ThreadedSandbox]:
    with ThreadedSandbox(Options(settings=UNLIMITED)) as sandbox:
        yield sandbox


def path(name: str) -> dict[str, Any]:
    return {"path_reference": {"value": name}}


TRUE = {"boolean_literal": {"value": True}}


def compare(left: Any, comparator: str, right: Any) -> dict[str, Any]:
    return {"comparison": {"lhs": left, "comparator": comparator, "rhs": right}}


def is_true(name: str) -> dict[str, Any]:
    return compare(path(f"customer.{name}"), "EQUAL", TRUE)


def customer_segment(customer_filter: Any, label: str = "Lytics - x") -> dict[str, Any]:
    condition = {"customer_condition": {"customer_filter": customer_filter}}
    return {
        "description": label,
        "metadata": {"display_name": label},
        "definition": {"root_condition": condition},
    }


def make_field(odp: ControlledSandbox, name: str, kind: str = "boolean", **more: Any) -> None:
    status, body = odp.odp("POST", FIELDS, {"name": name, "display_name": f"Label {name}", "type": kind, **more})
    assert status == 200, body


def make_segment(odp: ControlledSandbox, name: str, body: Any) -> None:
    status, answer = odp.odp("PUT", f"/v3/segments/{name}", body)
    assert status == 201, answer


def make_audience(odp: ControlledSandbox, name: str = "lytics_x") -> None:
    make_field(odp, name)
    make_segment(odp, name, customer_segment(is_true(name)))


def write(odp: ControlledSandbox, *items: dict[str, Any], key: str | None = None) -> tuple[int, Any]:
    return odp.odp("POST", "/v3/profiles", [{"attributes": item} for item in items], key=key)


def query(odp: ControlledSandbox, text: str, *, key: str | None = None, **variables: Any) -> Any:
    status, body = odp.odp("POST", "/v3/graphql", {"query": text, "variables": variables}, key=key)
    assert status == 200, body
    return body


def audiences(odp: ControlledSandbox, user: str, *subset: str, by: str = "fs_user_id") -> list[str] | None:
    """Query as the vendor's SDKs do; None for an unknown customer."""
    wanted = "audiences(subset: $of) {edges {node {name state}}}"
    asked = f"query($id: String, $of: [String]) {{customer({by}: $id) {{{wanted}}}}}"
    body = query(odp, asked, id=user, of=list(subset))
    if "errors" in body:
        assert body["errors"][0]["extensions"]["code"] == "INVALID_IDENTIFIER_EXCEPTION"
        return None
    assert all(edge["node"]["state"] == "qualified" for edge in body["data"]["customer"]["audiences"]["edges"])
    return [edge["node"]["name"] for edge in body["data"]["customer"]["audiences"]["edges"]]


def eventually(true: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(0.01)
    return true()


class TestKeys:
    @pytest.mark.parametrize("key", ["", "nonsense", "sandbox-public.wrong", "other.sandbox-private"])
    def test_it_answers_403_without_a_title_for_a_missing_or_wrong_key(self, odp: ThreadedSandbox, key: str) -> None:
        assert odp.odp("GET", "/v3/segments", key=key) == (403, {"message": "Forbidden"})

    @pytest.mark.parametrize(
        ("method", "where"),
        [("GET", "/v3/segments"), ("GET", FIELDS), ("GET", "/v3/lists"), ("GET", "/v3/profiles?fs_user_id=u1")],
    )
    def test_it_keeps_reads_and_schema_for_the_private_key(self, odp: ThreadedSandbox, method: str, where: str) -> None:
        assert odp.odp(method, where, key=odp.public_key)[0] == 403

    def test_it_accepts_events_profiles_and_audience_queries_with_the_public_key(self, odp: ThreadedSandbox) -> None:
        event = {"type": "page", "action": "view", "identifiers": {"fs_user_id": "u1"}}
        assert odp.odp("POST", "/v3/events", event, key=odp.public_key)[0] == 202
        assert write(odp, {"fs_user_id": "u1"}, key=odp.public_key)[0] == 202
        assert "errors" not in query(
            odp, '{customer(fs_user_id: "u1") {audiences {edges {node {name}}}}}', key=odp.public_key
        )

    def test_it_answers_403_for_a_revoked_key_until_it_is_restored(self, odp: ThreadedSandbox) -> None:
        odp.control("/sandbox/keys/revoke", {"key": odp.private_key})
        assert odp.odp("GET", "/v3/segments")[0] == 403
        odp.control("/sandbox/keys/restore", {"key": odp.private_key})
        assert odp.odp("GET", "/v3/segments")[0] == 200

    def test_a_revoked_key_may_work_for_a_while(self, odp: ThreadedSandbox) -> None:
        odp.assume(revoked_key_seconds=43_200)
        odp.control("/sandbox/keys/revoke", {"key": odp.private_key})
        assert odp.odp("GET", "/v3/segments")[0] == 200
        odp.advance(43_201)
        assert odp.odp("GET", "/v3/segments")[0] == 403

    def test_accounts_do_not_see_each_other(self, odp: ThreadedSandbox) -> None:
        odp.control("/sandbox/accounts", {"private_key": "other-eu1.secret", "region": "eu1"})
        make_field(odp, "lytics_x")
        assert odp.odp("GET", f"{FIELDS}/lytics_x", key="other-eu1.secret")[0] == 404

    def test_a_key_of_another_region_is_rejected(self) -> None:
        with ThreadedSandbox(Options(private_key="acme-eu1.secret", region="eu1")) as odp:
            odp.control("/sandbox/accounts", {"private_key": "acme.secret", "region": "us"})
            assert odp.odp("GET", "/v3/segments")[0] == 200
            assert odp.odp("GET", "/v3/segments", key="acme.secret")[0] == 403

    def test_an_account_s_key_has_to_say_its_region(self, odp: ThreadedSandbox) -> None:
        with pytest.raises(ValueError, match="needs a public key that says so"):
            odp.control("/sandbox/accounts", {"private_key": "acme.secret", "region": "eu1"})


class TestSegments:
    def test_it_creates_reads_replaces_and_deletes(self, odp: ThreadedSandbox) -> None:
        make_field(odp, "lytics_x")
        body = customer_segment(is_true("lytics_x"))
        assert odp.odp("GET", "/v3/segments/lytics_x")[0] == 404
        assert odp.odp("PUT", "/v3/segments/lytics_x", body) == (201, {"revision": 1})
        assert odp.odp("PUT", "/v3/segments/lytics_x", body) == (200, {"revision": 2})
        assert odp.odp("GET", "/v3/segments/lytics_x") == (200, {"revision": 2, **body})
        assert odp.odp("GET", "/v3/segments") == (200, {"segment_ids": ["lytics_x"]})
        assert odp.odp("DELETE", "/v3/segments/lytics_x") == (200, {})
        assert odp.odp("DELETE", "/v3/segments/lytics_x")[0] == 404

    def test_deleting_leaves_the_field_and_the_members_alone(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)
        write(odp, {"fs_user_id": "u1", "lytics_x": True})
        odp.odp("DELETE", "/v3/segments/lytics_x")
        assert odp.customer("u1")["attributes"]["lytics_x"] is True
        make_segment(odp, "lytics_x", customer_segment(is_true("lytics_x")))
        assert odp.members("lytics_x") == ["u1"]

    def test_posting_an_existing_id_is_rejected_or_replaces_it(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)
        body = customer_segment(is_true("lytics_x"))
        assert odp.odp("POST", "/v3/segments/lytics_x", body)[0] == 400
        odp.assume(segment_post_existing="replace")
        assert odp.odp("POST", "/v3/segments/lytics_x", body) == (200, {"revision": 2})

    def test_validating_installs_nothing(self, odp: ThreadedSandbox) -> None:
        make_field(odp, "lytics_x")
        assert odp.odp("POST", "/v3/segments/lytics_x:validate", customer_segment(is_true("lytics_x"))) == (200, {})
        assert odp.odp("POST", "/v3/segments/lytics_x:validate", customer_segment(is_true("nobody")))[0] == 400
        assert odp.odp("GET", "/v3/segments")[1] == {"segment_ids": []}

    def test_its_errors_come_in_either_shape(self, odp: ThreadedSandbox) -> None:
        assert set(odp.odp("GET", "/v3/segments/none")[1]) == {"code", "message", "details"}
        odp.assume(segment_errors="titled")
        assert set(odp.odp("GET", "/v3/segments/none")[1]) == {"title", "status", "timestamp", "detail"}

    def test_replacing_replaces_the_metadata_or_merges_it(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)
        body = customer_segment(is_true("lytics_x")) | {"metadata": {"owner": "me"}}
        odp.odp("PUT", "/v3/segments/lytics_x", body)
        assert odp.odp("GET", "/v3/segments/lytics_x")[1]["metadata"] == {"owner": "me"}
        odp.assume(metadata_on_replace="merge")
        odp.odp("PUT", "/v3/segments/lytics_x", body | {"metadata": {"display_name": "X"}})
        assert odp.odp("GET", "/v3/segments/lytics_x")[1]["metadata"] == {"owner": "me", "display_name": "X"}

    def test_it_reads_protobuf_s_camel_case(self, odp: ThreadedSandbox) -> None:
        make_field(odp, "lytics_x")
        definition = {
            "rootCondition": {
                "customerCondition": {"customerFilter": {"pathReference": {"value": "customer.lytics_x"}}}
            }
        }
        make_segment(odp, "lytics_x", {"definition": definition})
        kept = odp.odp("GET", "/v3/segments/lytics_x")[1]["definition"]
        assert kept == {"root_condition": {"customer_condition": {"customer_filter": path("customer.lytics_x")}}}

    def test_an_account_may_have_room_for_no_more(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)
        odp.assume(segment_limit=1)
        assert odp.odp("PUT", "/v3/segments/lytics_y", customer_segment(is_true("lytics_x")))[0] == 400
        assert odp.odp("PUT", "/v3/segments/lytics_x", customer_segment(is_true("lytics_x")))[0] == 200

    @pytest.mark.parametrize("segment_id", ["1st", "_x", "lytics-x", "lytics.x", "x%20y"])
    def test_it_rejects_an_id_outside_the_pattern(self, odp: ThreadedSandbox, segment_id: str) -> None:
        make_field(odp, "lytics_x")
        status, answer = odp.odp("PUT", f"/v3/segments/{segment_id}", customer_segment(is_true("lytics_x")))
        assert status == 400
        assert "segment_id" in answer["message"]

    @pytest.mark.parametrize(
        ("customer_filter", "why"),
        [
            ({}, "exactly one member"),
            ({"is_list_member": {"list": "x"}, **path("customer.lytics_x")}, "exactly one member"),
            (path("customer.nobody"), "no field 'nobody'"),
            (path("customer.account.name"), "follows no relations"),
            (path("event.type"), "must be rooted at customer"),
            (path("customer.email"), "must be boolean, not string"),
            (compare(path("customer.age"), "EQUAL", TRUE), "must be boolean, not number"),
            (compare(path("customer.lytics_x"), "EQUAL", {"boolean_literal": {"value": "true"}}), "must be a boolean"),
            ({"comparison": {"lhs": path("customer.lytics_x"), "comparator": "EQUAL"}}, "rhs is required"),
            ({"path_reference": {"value": "customer.lytics_x", "type": "boolean"}}, "unknown member 'type'"),
            ({"is_list_member": {"list": "nowhere"}}, "no list 'nowhere'"),
        ],
    )
    def test_it_rejects_an_invalid_expression(self, odp: ThreadedSandbox, customer_filter: Any, why: str) -> None:
        make_field(odp, "lytics_x")
        make_field(odp, "age", "number")
        status, answer = odp.odp("PUT", "/v3/segments/lytics_x", customer_segment(customer_filter))
        assert (status, answer["code"]) == (400, 3)
        assert why in answer["message"]

    @pytest.mark.parametrize(
        "body",
        [
            [],
            {"description": "no definition"},
            {"definition": {}},
            {"definition": {"root_condition": {}}},
            {"definition": {"root_condition": {"combination": {"conjunction": "AND", "conditions": []}}}},
            customer_segment(is_true("lytics_x")) | {"metadata": {"display_name": 1}},
            customer_segment(is_true("lytics_x")) | {"name": "unknown member"},
        ],
    )
    def test_it_rejects_a_body_that_is_not_a_segment(self, odp: ThreadedSandbox, body: Any) -> None:
        make_field(odp, "lytics_x")
        assert odp.odp("PUT", "/v3/segments/lytics_x", body)[0] == 400


class TestEvaluation:
    """Each case: a filter, and the customers (by the value of one field) that match."""

    @pytest.mark.parametrize(
        ("customer_filter", "inside"),
        [
            (is_true("flag"), ["yes"]),
            (path("customer.flag"), ["yes"]),
            (compare(TRUE, "EQUAL", path("customer.flag")), ["yes"]),
            (compare(path("customer.flag"), "EQUAL", {"boolean_literal": {"value": False}}), ["no"]),
            (compare(path("customer.flag"), "EQUAL", path("customer.flag")), ["no", "yes"]),
            (TRUE, ["no", "null", "yes"]),
        ],
    )
    def test_a_missing_value_is_neither_true_nor_false(
        self, odp: ThreadedSandbox, customer_filter: Any, inside: list[str]
    ) -> None:
        make_field(odp, "flag")
        write(odp, {"fs_user_id": "yes", "flag": True}, {"fs_user_id": "no", "flag": False}, {"fs_user_id": "null"})
        make_segment(odp, "lytics_x", customer_segment(customer_filter))
        assert odp.members("lytics_x") == inside
        assert [user for user in ("no", "null", "yes") if audiences(odp, user, "lytics_x")] == inside

    @pytest.mark.parametrize(
        ("root", "what"),
        [
            ({"combination": {"conjunction": "AND", "conditions": []}}, "'combination'"),
            ({"sequence_condition": {"sequence": {}, "min_count": 1}}, "'sequence_condition'"),
            *(
                ({"customer_condition": {"customer_filter": {name: {}}}}, f"'{name}'")
                for name in ("truncate_time", "shift_time", "coalesce", "is_missing", "any_of_string", "no_such_thing")
            ),
            (
                {"customer_condition": {"customer_filter": compare(path("customer.flag"), "NOT_EQUAL", TRUE)}},
                "comparator 'NOT_EQUAL'",
            ),
        ],
    )
    def test_a_function_that_the_sandbox_lacks_is_rejected_as_not_modelled(
        self, odp: ThreadedSandbox, root: Any, what: str
    ) -> None:
        make_field(odp, "flag")
        status, answer = odp.odp("PUT", "/v3/segments/lytics_x", {"definition": {"root_condition": root}})
        assert (status, answer["code"]) == (400, 3)
        assert f"{what} is not modelled by the sandbox" in answer["message"]
        assert odp.odp("GET", "/v3/segments")[1] == {"segment_ids": []}

    def test_a_customer_leaves_as_soon_as_it_stops_being_true(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)
        write(odp, {"fs_user_id": "u1", "lytics_x": True})
        assert audiences(odp, "u1", "lytics_x") == ["lytics_x"]
        write(odp, {"fs_user_id": "u1", "lytics_x": False})
        assert audiences(odp, "u1", "lytics_x") == []
        write(odp, {"fs_user_id": "u1", "lytics_x": True})
        write(odp, {"fs_user_id": "u1", "lytics_x": None})
        assert audiences(odp, "u1", "lytics_x") == []


class TestProfiles:
    def test_a_write_is_accepted_in_ODP_s_words(self, odp: ThreadedSandbox) -> None:
        status, answer = write(odp, {"fs_user_id": "u1", "city": "Rome"})
        assert (status, answer["title"], answer["status"]) == (202, "Accepted", 202)
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z$", answer["timestamp"])

    def test_written_objects_are_read_back(self, odp: ThreadedSandbox) -> None:
        odp.odp("POST", "/v3/profiles", {"attributes": {"email": "a@b.c", "city": "Rome"}})
        status, answer = odp.odp("GET", "/v3/profiles?email=a%40b.c")
        assert status == 200
        assert answer["attributes"].pop("zaius_id")
        assert answer == {"attributes": {"email": "a@b.c", "city": "Rome"}}
        assert odp.odp("GET", "/v3/profiles?email=x%40b.c")[0] == 404
        assert odp.odp("GET", "/v3/profiles")[0] == 400
        odp.assume(read_status="202")
        assert odp.odp("GET", "/v3/profiles?email=a%40b.c")[0] == 202

    @pytest.mark.parametrize(
        ("item", "why"),
        [
            ({"city": "Rome"}, "at least one known identifier"),
            ({"fs_user_id": "", "city": "Rome"}, "at least one known identifier"),
            ({"fs_user_id": "   "}, "at least one known identifier"),
            ({"fs_user_id": None}, "at least one known identifier"),
            ({"fs_user_id": 7}, "identifier fs_user_id must be a string"),
            ({"fs_user_id": ["a", "b"]}, "identifier fs_user_id must be a string"),
            ({"fs_user_id": "x" * 1025}, "longer than 1024"),
            ({"vuid": "01234567-89ab-cdef-0123-456789abcdef"}, "vuid must be 32 hexadecimal characters"),
            ({"fs_user_id": "u1", "nobody": 1}, "unknown field nobody"),
            ({"fs_user_id": "u1", "city": "x" * 1025}, "city must not be longer than 1024"),
            ({"fs_user_id": "u1", "city": 7}, "city must be a string"),
            ({"fs_user_id": "u1", "flag": "true"}, "flag must be a boolean"),
            ({"fs_user_id": "u1", "flag": 2}, "flag must be a boolean"),
            ({"fs_user_id": "u1", "age": "7"}, "age must be a number"),
            ({"fs_user_id": "u1", "age": True}, "age must be a number"),
            ({"fs_user_id": "u1", "seen": "yesterday"}, "seen must be epoch seconds or an ISO 8601 timestamp"),
            ({"fs_user_id": "u1", "shape": "x"}, "shape must be an array of numbers"),
        ],
    )
    def test_it_names_a_bad_item_and_accepts_no_item_of_its_batch(
        self, odp: ThreadedSandbox, item: Any, why: str
    ) -> None:
        for name, kind in (("flag", "boolean"), ("age", "number"), ("seen", "timestamp"), ("shape", "vector")):
            make_field(odp, name, kind)
        status, answer = write(odp, {"fs_user_id": "good"}, item)
        assert (status, answer["title"]) == (400, "Bad Request")
        (invalid,) = answer["detail"]["invalids"]
        assert invalid["event"] == 1
        assert why in invalid["message"]
        assert odp.customer("good")["known"] is False

    @pytest.mark.parametrize("body", [[], "text", 7, None, ["text"], [{"fs_user_id": "u1"}], [{"attributes": []}]])
    def test_it_rejects_items_that_are_not_profiles(self, odp: ThreadedSandbox, body: Any) -> None:
        assert odp.odp("POST", "/v3/profiles", body)[0] == 400

    def test_a_boolean_may_be_written_as_0_or_1(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)
        write(odp, {"fs_user_id": "u1", "lytics_x": 1}, {"fs_user_id": "u2", "lytics_x": 0})
        assert odp.members("lytics_x") == ["u1"]

    def test_it_accepts_500_items_and_rejects_501(self, odp: ThreadedSandbox) -> None:
        items = [{"fs_user_id": f"u{n}"} for n in range(501)]
        assert write(odp, *items[:500])[0] == 202
        assert write(odp, *items)[0] == 400
        odp.assume(too_many_items="413")
        assert write(odp, *items)[0] == 413

    def test_a_body_over_the_limit_is_413(self, odp: ThreadedSandbox) -> None:
        odp.assume(max_body_bytes=100)
        assert write(odp, {"fs_user_id": "x" * 100})[0] == 413

    @pytest.mark.parametrize("body", [b"{nonsense", b"", b"[NaN]", b"[" * 100_000, b"\xff\xfe\xfd"])
    def test_a_body_that_is_not_json_is_rejected_with_that_reason(self, odp: ThreadedSandbox, body: bytes) -> None:
        status, _, answer = raw(odp, "POST", "/v3/profiles", body)
        assert status == 400
        assert "could not be parsed" in json.loads(answer)["detail"]["message"]

    def test_a_bad_item_may_leave_the_others_applied(self, odp: ThreadedSandbox) -> None:
        odp.assume(batch_rejection="partial", invalids_key="index")
        status, answer = write(odp, {"fs_user_id": "good"}, {"nobody": 1})
        assert (status, [each["index"] for each in answer["detail"]["invalids"]]) == (400, [1])
        odp.assume(batch_rejection="drop")
        assert write(odp, {"fs_user_id": "fine"}, {"nobody": 1})[0] == 202
        assert [odp.customer(user)["known"] for user in ("good", "fine")] == [True, True]

    def test_a_rejected_batch_may_not_name_the_item(self, odp: ThreadedSandbox) -> None:
        odp.assume(bad_items="bare")
        assert set(write(odp, {"nobody": 1})[1]["detail"]) == {"message"}

    def test_an_unknown_field_may_be_dropped_or_created(self, odp: ThreadedSandbox) -> None:
        odp.assume(unknown_field="drop")
        assert write(odp, {"fs_user_id": "u1", "mood": "good"})[0] == 202
        assert "mood" not in odp.customer("u1")["attributes"]
        odp.assume(unknown_field="create")
        assert write(odp, {"fs_user_id": "u1", "mood": True})[0] == 202
        assert odp.odp("GET", f"{FIELDS}/mood")[1]["type"] == "boolean"
        assert odp.summary()["writes_to_unknown_fields"] == 2

    def test_a_new_field_may_become_visible_late(self, odp: ThreadedSandbox) -> None:
        odp.assume(field_delay_seconds=60)
        make_field(odp, "lytics_x")
        assert write(odp, {"fs_user_id": "u1", "lytics_x": True})[0] == 400
        odp.advance(61)
        assert write(odp, {"fs_user_id": "u1", "lytics_x": True})[0] == 202

    def test_a_vuid_needs_an_event_first(self, odp: ThreadedSandbox) -> None:
        assert write(odp, {"vuid": VUID, "city": "Rome"})[0] == 202
        assert odp.customer(VUID)["known"] is False
        odp.odp("POST", "/v3/events", {"type": "page", "identifiers": {"vuid": VUID}})
        write(odp, {"vuid": VUID, "city": "Rome"})
        assert odp.customer(VUID)["attributes"]["city"] == "Rome"

    def test_a_vuid_may_need_no_event(self, odp: ThreadedSandbox) -> None:
        odp.assume(new_vuid="created")
        write(odp, {"vuid": VUID, "city": "Rome"})
        assert odp.customer(VUID)["known"] is True


class TestIdentity:
    def test_two_identifiers_on_one_item_are_one_customer(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)
        write(odp, {"fs_user_id": "u1", "web_user_id": "w1", "lytics_x": True})
        assert audiences(odp, "w1", "lytics_x", by="web_user_id") == ["lytics_x"]
        assert odp.summary()["accounts"]["sandbox-public"]["customers"] == 1

    def test_customers_with_a_common_high_confidence_identifier_merge_and_the_newer_value_wins(
        self, odp: ThreadedSandbox
    ) -> None:
        write(odp, {"fs_user_id": "u1", "city": "Rome", "country": "IT"})
        write(odp, {"email": "a@b.c", "city": "Bonn"})
        write(odp, {"fs_user_id": "u1", "email": "a@b.c"})
        assert odp.customer("u1")["attributes"] == odp.customer("a@b.c")["attributes"]
        assert odp.customer("u1")["attributes"] | {"city": "Bonn", "country": "IT"} == odp.customer("u1")["attributes"]
        assert odp.summary()["accounts"]["sandbox-public"]["customers"] == 1

    def test_merged_customers_keep_each_other_s_lists(self, odp: ThreadedSandbox) -> None:
        for name in ("one", "two"):
            odp.odp("POST", "/v3/lists", {"name": name})
        odp.odp("POST", "/v3/lists/subscriptions", {"list_id": "one", "fs_user_id": "u1", "subscribed": True})
        odp.odp("POST", "/v3/lists/subscriptions", {"list_id": "two", "email": "a@b.c", "subscribed": True})
        write(odp, {"fs_user_id": "u1", "email": "a@b.c"})
        assert odp.customer("u1")["lists"] == {"one": True, "two": True}

    def test_a_low_confidence_identifier_moves_to_the_newer_customer(self, odp: ThreadedSandbox) -> None:
        odp.odp("POST", "/v3/events", {"type": "page", "identifiers": {"vuid": VUID}})
        write(odp, {"vuid": VUID, "fs_user_id": "u1"})
        assert odp.customer(VUID)["identifiers"] == {"vuid": [VUID], "fs_user_id": ["u1"]}
        write(odp, {"vuid": VUID, "fs_user_id": "u2"})
        assert odp.customer(VUID)["identifiers"] == {"vuid": [VUID], "fs_user_id": ["u2"]}
        assert odp.customer("u1")["identifiers"] == {"fs_user_id": ["u1"]}

    def test_low_confidence_is_a_switch(self, odp: ThreadedSandbox) -> None:
        odp.assume(web_user_id_confidence="low")
        write(odp, {"fs_user_id": "u1", "web_user_id": "w"}, {"fs_user_id": "u2", "web_user_id": "w"})
        assert odp.customer("w")["identifiers"]["fs_user_id"] == ["u2"]
        assert odp.summary()["accounts"]["sandbox-public"]["customers"] == 2
        odp.assume(fs_user_id_confidence="low")
        odp.odp("POST", "/v3/events", passthrough("fs_user_id", "u1", "qualify", 1))
        assert odp.requests()[-1]["status"] == 400

    def test_it_keeps_25_values_of_a_kind_and_forgets_the_oldest(self, odp: ThreadedSandbox) -> None:
        for at in range(27):
            write(odp, {"email": "a@b.c", "fs_user_id": f"u{at}"})
        assert odp.customer("a@b.c")["identifiers"]["fs_user_id"] == [f"u{at}" for at in range(2, 27)]
        assert odp.customer("u1")["known"] is False
        assert odp.customer("u2")["known"] is True

    def test_an_older_value_still_finds_the_customer_and_becomes_the_newest(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)
        write(odp, {"email": "a@b.c", "fs_user_id": "old"}, {"email": "a@b.c", "fs_user_id": "new"})
        write(odp, {"fs_user_id": "old", "lytics_x": True})
        assert odp.members("lytics_x") == ["new", "old"]
        assert odp.customer("new")["attributes"]["fs_user_id"] == "old"


KINDS = ("fs_user_id", "web_user_id", "vuid")
IDENTIFIERS = st.dictionaries(st.sampled_from(KINDS), st.sampled_from("abcd"), min_size=1)


@given(items=st.lists(IDENTIFIERS, max_size=40))
def test_every_identifier_belongs_to_exactly_one_customer(items: list[dict[str, str]]) -> None:
    account = Account("a.b")
    for item in items:
        customer = account.customers.write(tuple(item), dict(item))
        assert all(account.customers.find(kind, value) is customer for kind, value in item.items())
    held = [(kind, value) for each in account.customers for kind in KINDS for value in each.values_of(kind)]
    found = {(kind, value): each for kind in KINDS for value, each in account.customers.index[kind].items()}
    assert sorted(held) == sorted(found)
    assert all(value in each.values_of(kind) for (kind, value), each in found.items())
    assert {id(each) for each in found.values()} == {id(each) for each in account.customers}


@given(items=st.lists(IDENTIFIERS, max_size=20))
def test_a_saved_and_restored_account_is_equal(items: list[dict[str, str]]) -> None:
    account, again = Account("a.b"), Account("a.b")
    for at, item in enumerate(items):
        account.customers.write(tuple(item), {**item, "city": str(at)})
    for kind, payload in changes_of(account):
        CHANGES[kind](again, json.loads(json.dumps(payload)), 0)
    assert [*changes_of(again)] == [*changes_of(account)]
    assert again.customers.index == {
        kind: {value: again.customers.by_number[each.number] for value, each in index.items()}
        for kind, index in account.customers.index.items()
    }


def passthrough(kind: str, value: str, action: str, ts: Any, audience: str = "lytics_x") -> dict[str, Any]:
    data = {"audience_id": audience, "ts": ts}
    return {"type": "passthrough", "action": action, "identifiers": {kind: value}, "data": data}


class TestEvents:
    @pytest.mark.parametrize(
        ("event", "why"),
        [
            ({"identifiers": {"fs_user_id": "u1"}}, "missing 'type' field"),
            ({"type": "", "identifiers": {"fs_user_id": "u1"}}, "missing 'type' field"),
            ({"type": "page"}, "identifiers must be an object"),
            ({"type": "page", "identifiers": {}}, "at least one known identifier"),
            ({"type": "page", "identifiers": {"shoe_size": "44"}}, "unknown identifier shoe_size"),
            ({"type": "page", "identifiers": {"fs_user_id": "u1"}, "data": []}, "data must be an object"),
            ({"type": "page", "identifiers": {"fs_user_id": "u1"}, "data": {"a": "x" * 1025}}, "longer than 1024"),
            ({"type": "page", "identifiers": {"fs_user_id": "u1"}, "data": {"ts": "now"}}, "ts must be epoch seconds"),
            (passthrough("vuid", VUID, "qualify", 1), "of high confidence"),
            (passthrough("fs_user_id", "u1", "enter", 1), "qualify or disqualify"),
            (passthrough("fs_user_id", "u1", "qualify", 1_700_000_000_000), "whole epoch seconds"),
            (passthrough("fs_user_id", "u1", "qualify", 1.5), "whole epoch seconds"),
            (passthrough("fs_user_id", "u1", "qualify", None), "whole epoch seconds"),
            (passthrough("fs_user_id", "u1", "qualify", 1, audience=""), "audience_id is required"),
            (
                passthrough("fs_user_id", "u1", "qualify", 1) | {"identifiers": {"fs_user_id": "u1", "email": "a@b.c"}},
                "exactly one identifier",
            ),
        ],
    )
    def test_it_names_the_bad_event_by_its_position(self, odp: ThreadedSandbox, event: Any, why: str) -> None:
        good = {"type": "page", "action": "view", "identifiers": {"fs_user_id": "good"}}
        status, answer = odp.odp("POST", "/v3/events", [good, event])
        (invalid,) = answer["detail"]["invalids"]
        assert (status, invalid["event"]) == (400, 1)
        assert why in invalid["message"]
        assert odp.customer("good")["known"] is False

    def test_whether_an_event_needs_an_action_is_a_switch(self, odp: ThreadedSandbox) -> None:
        event = {"type": "page", "identifiers": {"fs_user_id": "u1"}}
        assert odp.odp("POST", "/v3/events", event)[0] == 202
        odp.assume(event_action="required")
        assert odp.odp("POST", "/v3/events", event)[0] == 400

    def test_an_event_makes_a_customer_known(self, odp: ThreadedSandbox) -> None:
        odp.odp("POST", "/v3/events", {"type": "page", "identifiers": {"fs_user_id": "u1"}})
        assert audiences(odp, "u1") == []


class TestPassthrough:
    def install(self, odp: ThreadedSandbox, **inner: str) -> tuple[int, Any]:
        return odp.odp("PUT", "/v3/segments/lytics_x", {"description": "X", "definition": {"passthrough": inner}})

    def send(self, odp: ThreadedSandbox, *events: dict[str, Any]) -> None:
        assert odp.odp("POST", "/v3/events", list(events))[0] == 202

    def test_the_newest_ts_decides_in_any_order_of_arrival(self, odp: ThreadedSandbox) -> None:
        self.install(odp)
        self.send(odp, passthrough("fs_user_id", "u1", "qualify", 200))
        self.send(odp, passthrough("fs_user_id", "u1", "disqualify", 100))
        assert audiences(odp, "u1", "lytics_x") == ["lytics_x"]
        self.send(odp, passthrough("fs_user_id", "u1", "disqualify", 200))
        assert audiences(odp, "u1", "lytics_x") == []

    def test_arrival_may_decide_instead(self, odp: ThreadedSandbox) -> None:
        odp.assume(passthrough_order="arrival")
        self.install(odp)
        self.send(
            odp, passthrough("fs_user_id", "u1", "qualify", 200), passthrough("fs_user_id", "u1", "disqualify", 1)
        )
        assert audiences(odp, "u1", "lytics_x") == []

    def test_no_identity_is_resolved(self, odp: ThreadedSandbox) -> None:
        self.install(odp)
        write(odp, {"fs_user_id": "u1", "web_user_id": "u1"})
        self.send(odp, passthrough("fs_user_id", "u1", "qualify", 1))
        assert audiences(odp, "u1", "lytics_x", by="web_user_id") == []
        assert odp.members("lytics_x", by="web_user_id") == []
        assert odp.members("lytics_x") == ["u1"]

    def test_it_is_not_visible_before_the_audience_is_created(self, odp: ThreadedSandbox) -> None:
        self.send(odp, passthrough("fs_user_id", "u1", "qualify", 1, audience="ext-1"))
        assert audiences(odp, "u1", "lytics_x") == []
        self.install(odp, audience_id="ext-1")
        assert audiences(odp, "u1", "lytics_x") == ["lytics_x"]

    def test_an_account_without_the_feature_rejects_both_halves(self, odp: ThreadedSandbox) -> None:
        odp.settings(passthrough=False)
        assert self.install(odp)[0] == 400
        assert odp.odp("POST", "/v3/events", passthrough("fs_user_id", "u1", "qualify", 1))[0] == 400

    def test_a_switch_decides_whether_a_segment_is_passthrough(self, odp: ThreadedSandbox) -> None:
        odp.assume(passthrough_key="external_audience")
        assert self.install(odp)[0] == 400
        made = odp.odp("PUT", "/v3/segments/lytics_x", {"definition": {"external_audience": {"source": "x"}}})
        assert made[0] == 201

    def test_population_counts_identifiers(self, odp: ThreadedSandbox) -> None:
        self.install(odp)
        self.send(odp, passthrough("fs_user_id", "u1", "qualify", 1), passthrough("fs_user_id", "u2", "disqualify", 1))
        body = query(odp, '{audience(name: "lytics_x") {population_estimate {estimated_upper_bound}}}')
        assert body["data"]["audience"]["population_estimate"] == {"estimated_upper_bound": 1}


class TestLists:
    def subscribe(self, odp: ThreadedSandbox, subscribed: Any = True, **more: Any) -> tuple[int, Any]:
        item = {"list_id": "lytics_x", "fs_user_id": "u1", "subscribed": subscribed, **more}
        return odp.odp("POST", "/v3/lists/subscriptions", [item])

    def make(self, odp: ThreadedSandbox, name: str = "lytics_x") -> None:
        assert odp.odp("POST", "/v3/lists", {"name": name})[0] == 202
        make_segment(odp, name, customer_segment({"is_list_member": {"list": name}}))

    def test_its_id_comes_from_its_name(self, odp: ThreadedSandbox) -> None:
        _, answer = odp.odp("POST", "/v3/lists", {"name": "Lytics - Big Ö"})
        assert (answer["created"]["list_id"], answer["created"]["name"]) == ("lytics___big__", "Lytics - Big Ö")
        odp.assume(list_created_body="flat")
        assert odp.odp("POST", "/v3/lists", {"name": "flat"})[1]["list_id"] == "flat"
        assert [each["list_id"] for each in odp.odp("GET", "/v3/lists")[1]["lists"]] == ["lytics___big__", "flat"]

    def test_a_second_list_with_the_same_id_is_rejected(self, odp: ThreadedSandbox) -> None:
        odp.odp("POST", "/v3/lists", {"name": "lytics_x"})
        status, answer = odp.odp("POST", "/v3/lists", {"name": "LYTICS X"})
        assert status == 400
        assert "already used" in answer["detail"]["invalids"][0]["reason"]
        assert odp.odp("POST", "/v3/lists", {"name": " "})[0] == 400

    def test_members_qualify_and_leave(self, odp: ThreadedSandbox) -> None:
        self.make(odp)
        status, answer = self.subscribe(odp, web_user_id="u1")
        assert status == 202
        assert answer["updates"][0] == {
            "list_id": "lytics_x",
            "fs_user_id": "u1",
            "web_user_id": "u1",
            "subscribed": True,
        }
        assert audiences(odp, "u1", "lytics_x", by="web_user_id") == ["lytics_x"]
        self.subscribe(odp, subscribed=False)
        assert audiences(odp, "u1", "lytics_x") == []

    def test_it_lists_the_subscriptions_of_a_customer(self, odp: ThreadedSandbox) -> None:
        self.make(odp)
        self.subscribe(odp)
        status, answer = odp.odp("GET", "/v3/lists/subscriptions?fs_user_id=u1")
        assert (status, answer["customer"], answer["opted_in"]) == (200, {"fs_user_id": "u1"}, True)
        (subscription,) = answer["subscriptions"]
        assert (subscription["list_id"], subscription["subscribed"]) == ("lytics_x", True)
        assert odp.odp("GET", "/v3/lists/subscriptions?fs_user_id=u2")[0] == 404

    @pytest.mark.parametrize(
        ("more", "why"),
        [
            ({"list_id": "none"}, "is not a list"),
            ({"subscribed": "yes"}, "subscribed must be a boolean"),
            ({"fs_user_id": ""}, "at least one known identifier"),
            ({"shoe_size": "44"}, "unknown field shoe_size"),
        ],
    )
    def test_it_names_a_bad_subscription(self, odp: ThreadedSandbox, more: Any, why: str) -> None:
        self.make(odp)
        item = {"list_id": "lytics_x", "fs_user_id": "u1", "subscribed": True, **more}
        status, answer = odp.odp("POST", "/v3/lists/subscriptions", [item])
        assert status == 400
        assert why in answer["detail"]["invalids"][0]["message"]

    def test_only_messaging_identifiers_may_be_accepted(self, odp: ThreadedSandbox) -> None:
        self.make(odp)
        odp.assume(list_identifiers="messaging")
        assert self.subscribe(odp)[0] == 400
        assert self.subscribe(odp, email="a@b.c")[0] == 202

    def test_opted_out_is_accepted_and_never_qualifies(self, odp: ThreadedSandbox) -> None:
        self.make(odp)
        odp.settings(consent="opted_out")
        assert self.subscribe(odp)[0] == 202
        assert audiences(odp, "u1", "lytics_x") == []
        assert query(odp, '{customer(fs_user_id: "u1") {list_member(list_id: "lytics_x") {subscribed}}}')["data"] == {
            "customer": {"list_member": {"subscribed": False}}
        }
        make_audience(odp, "by_field")
        write(odp, {"fs_user_id": "u1", "by_field": True})
        assert audiences(odp, "u1", "by_field") == ["by_field"]

    def test_opted_out_may_disable_all_effects(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)
        odp.settings(consent="opted_out")
        odp.assume(consent_effect="everything")
        assert write(odp, {"fs_user_id": "u1", "lytics_x": True})[0] == 202
        assert odp.customer("u1")["known"] is False
        odp.settings(consent="opted_in")
        write(odp, {"fs_user_id": "u1", "lytics_x": True})
        assert odp.members("lytics_x") == ["u1"]


class TestSchema:
    def test_it_makes_and_shows_a_field(self, odp: ThreadedSandbox) -> None:
        body = {"name": "lytics_x", "display_name": "Lytics - x", "type": "boolean", "description": "d"}
        assert odp.odp("POST", FIELDS, body) == (200, {**body, "public_read": False})
        assert odp.odp("GET", f"{FIELDS}/lytics_x") == (200, {**body, "public_read": False})
        assert odp.odp("GET", f"{FIELDS}/none")[0] == 404
        names = [each["name"] for each in odp.odp("GET", FIELDS)[1]]
        assert {"email", "fs_user_id", "web_user_id", "vuid", "lytics_x"} <= set(names)
        assert [each["name"] for each in odp.odp("GET", "/v3/schema/objects/customers")[1]["fields"]] == names

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"name": "Lytics"}, "name"),
            ({"name": "1st"}, "name"),
            ({"name": None}, "name"),
            ({"name": "email"}, "name"),
            ({"display_name": " "}, "display_name"),
            ({"display_name": "Email"}, "display_name"),
            ({"type": "bool"}, "type"),
            ({"public_read": "yes"}, "public_read"),
        ],
    )
    def test_it_reports_the_error_in_a_field(self, odp: ThreadedSandbox, change: Any, field: str) -> None:
        body = {"name": "lytics_x", "display_name": "Lytics - x", "type": "boolean", **change}
        status, answer = odp.odp("POST", FIELDS, body)
        assert status == 400
        assert [each["field"] for each in answer["detail"]["invalids"]] == [field]

    def test_a_second_field_of_that_name_is_already_used(self, odp: ThreadedSandbox) -> None:
        make_field(odp, "lytics_x")
        status, answer = odp.odp("POST", FIELDS, {"name": "lytics_x", "display_name": "Other", "type": "boolean"})
        assert (status, answer["detail"]["invalids"][0]["field"]) == (400, "name")
        assert "already used" in str(answer["detail"]["invalids"][0]["reason"])

    def test_an_account_may_have_room_for_no_more_fields(self, odp: ThreadedSandbox) -> None:
        odp.assume(field_limit=1)
        make_field(odp, "one")
        assert odp.odp("POST", FIELDS, {"name": "two", "display_name": "Two", "type": "boolean"})[0] == 400

    def test_a_new_identifier_can_be_written_queried_and_merged_by(self, odp: ThreadedSandbox) -> None:
        body = {"name": "loyalty_number", "display_name": "Loyalty Number", "merge_confidence": "high"}
        status, answer = odp.odp("POST", "/v3/schema/identifiers", body)
        assert status == 201
        assert answer["events"][0]["display_name"] == "Last Seen Loyalty Number"
        write(odp, {"loyalty_number": "7"}, {"fs_user_id": "u1"}, {"loyalty_number": "7", "fs_user_id": "u1"})
        assert audiences(odp, "7", by="loyalty_number") == []
        assert odp.summary()["accounts"]["sandbox-public"]["customers"] == 1

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"name": "loyalty"}, "name"),
            ({"display_name": "Loyalty"}, "display_name"),
            ({"merge_confidence": "medium"}, "merge_confidence"),
            ({"name": "customer_id", "display_name": "Another ID"}, "customers.name"),
        ],
    )
    def test_it_reports_the_error_in_an_identifier(self, odp: ThreadedSandbox, change: Any, field: str) -> None:
        body = {"name": "loyalty_id", "display_name": "Loyalty ID", "merge_confidence": "high", **change}
        status, answer = odp.odp("POST", "/v3/schema/identifiers", body)
        assert status == 400
        assert [each["field"] for each in answer["detail"]["invalids"]] == [field]


class TestObjectsAndConsent:
    def test_rows_of_an_object_need_their_key(self, odp: ThreadedSandbox) -> None:
        assert odp.odp("POST", "/v3/objects/products", [{"product_id": "p1", "name": "Shoe"}])[0] == 202
        assert odp.odp("POST", "/v3/objects/products", [{"name": "Shoe"}])[0] == 400

    def test_consent_is_kept_for_each_identifier(self, odp: ThreadedSandbox) -> None:
        update = {"identifier_field_name": "email", "identifier_value": "a@b.c", "consent": False}
        assert odp.odp("POST", "/v3/consent", [update])[0] == 202
        status, answer = odp.odp("GET", "/v3/consent/email?id=a%40b.c")
        assert (status, answer["consent"]) == (200, False)
        assert odp.odp("GET", "/v3/consent/email?id=x")[0] == 404
        assert odp.odp("POST", "/v3/consent", [update | {"consent": "no"}])[0] == 400


class TestGraphQL:
    def test_it_accepts_aliases_fragments_and_inline_literals(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)
        write(odp, {"fs_user_id": "u1", "lytics_x": True}, {"fs_user_id": "u2"})
        body = query(
            odp,
            """
            query Both { a: customer(fs_user_id: "u1") { ...in_x } b: customer(fs_user_id: "u2") { ...in_x } }
            fragment in_x on Customer {
              lytics_x: audiences(subset: ["lytics_x"]) { edges { node { id: name description is_ready state } } }
            }
            """,
        )
        node = {"id": "lytics_x", "description": "Lytics - x", "is_ready": True, "state": "qualified"}
        assert body["data"] == {
            "a": {"lytics_x": {"edges": [{"node": node}]}},
            "b": {"lytics_x": {"edges": []}},
        }

    def test_an_unknown_identifier_has_the_error_that_the_SDKs_look_for(self, odp: ThreadedSandbox) -> None:
        body = query(odp, '{who: customer(fs_user_id: "nobody") {zaius_id}}')
        (error,) = body["errors"]
        assert body["data"] == {"who": None}
        assert error["path"] == ["who"]
        assert error["extensions"] == {
            "code": "INVALID_IDENTIFIER_EXCEPTION",
            "classification": "DataFetchingException",
        }

    def test_a_query_against_the_schema_is_answered_with_a_validation_error(self, odp: ThreadedSandbox) -> None:
        assert "errors" in odp.odp("POST", "/v3/graphql", {"query": "{audience}", "variables": [1]})[1]
        for text in ('{customer(shoe_size: "44") {zaius_id}}', '{customer(fs_user_id: "u1") {nothing}}'):
            assert query(odp, text)["errors"][0]["extensions"]["classification"] == "ValidationError"
        assert query(odp, "{customer(")["errors"][0]["extensions"]["classification"] == "InvalidSyntax"

    def test_only_requested_audiences_come_back(self, odp: ThreadedSandbox) -> None:
        for name in ("one", "two"):
            make_audience(odp, name)
        write(odp, {"fs_user_id": "u1", "one": True, "two": True})
        assert audiences(odp, "u1", "two") == ["two"]
        assert audiences(odp, "u1") == []

    def test_an_unknown_audience_is_ignored_or_an_error(self, odp: ThreadedSandbox) -> None:
        write(odp, {"fs_user_id": "u1"})
        assert audiences(odp, "u1", "none") == []
        odp.assume(unknown_segment="error")
        asked = '{customer(fs_user_id: "u1") {audiences(subset: ["none"]) {edges {node {name}}}}}'
        assert query(odp, asked)["errors"][0]["extensions"]["classification"] == "DataFetchingException"

    def test_a_new_field_is_visible_at_once(self, odp: ThreadedSandbox) -> None:
        asked = '{customer(fs_user_id: "u1") {lytics_x}}'
        write(odp, {"fs_user_id": "u1"})
        assert "errors" in query(odp, asked)
        make_field(odp, "lytics_x")
        assert query(odp, asked)["data"] == {"customer": {"lytics_x": None}}

    def test_attributes_come_as_strings_or_by_their_type(self, odp: ThreadedSandbox) -> None:
        make_field(odp, "flag")
        make_field(odp, "age", "number")
        write(odp, {"fs_user_id": "u1", "flag": True, "age": 7, "city": "Rome"})
        asked = '{customer(fs_user_id: "u1") {flag age city fs_user_id}}'
        assert query(odp, asked)["data"]["customer"] == {"flag": "true", "age": "7", "city": "Rome", "fs_user_id": "u1"}
        odp.assume(graphql_scalars="typed")
        assert query(odp, asked)["data"]["customer"] == {"flag": True, "age": 7, "city": "Rome", "fs_user_id": "u1"}

    def test_the_public_key_reads_only_public_fields(self, odp: ThreadedSandbox) -> None:
        make_field(odp, "shown", public_read=True)
        make_field(odp, "hidden")
        write(odp, {"fs_user_id": "u1", "shown": True, "hidden": True})
        asked = '{customer(fs_user_id: "u1") {shown hidden}}'
        assert query(odp, asked, key=odp.public_key)["data"]["customer"] == {"shown": "true", "hidden": None}
        odp.assume(private_fields="error")
        assert "hidden" in query(odp, asked, key=odp.public_key)["errors"][0]["message"]

    def test_graphql_may_want_the_private_key(self, odp: ThreadedSandbox) -> None:
        odp.assume(graphql_key="private")
        assert (
            odp.odp("POST", "/v3/graphql", {"query": "{audiences {edges {node {name}}}}"}, key=odp.public_key)[0] == 403
        )

    def test_the_picker_lists_every_audience_in_pages(self, odp: ThreadedSandbox) -> None:
        for name in ("a", "b", "c"):
            make_audience(odp, name)
        page = query(odp, "{audiences(first: 2) {edges {node {name description}} pageInfo {hasNextPage endCursor}}}")
        assert [edge["node"]["name"] for edge in page["data"]["audiences"]["edges"]] == ["a", "b"]
        assert page["data"]["audiences"]["pageInfo"] == {"hasNextPage": True, "endCursor": "2"}
        rest = query(odp, '{audiences(first: 2, after: "2") {edges {node {name}} pageInfo {hasNextPage}}}')
        assert [edge["node"]["name"] for edge in rest["data"]["audiences"]["edges"]] == ["c"]
        assert "errors" in query(odp, "{audiences(first: 1001) {edges {node {name}}}}")

    def test_it_estimates_a_population(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)
        write(odp, *({"fs_user_id": f"u{at}", "lytics_x": at < 20} for at in range(30)))
        bounds = "population_estimate(percent_error: 10) {estimated_lower_bound estimated_upper_bound}"
        asked = f'{{audience(name: "lytics_x") {{name {bounds}}}}}'
        assert query(odp, asked)["data"]["audience"] == {
            "name": "lytics_x",
            "population_estimate": {"estimated_lower_bound": 18, "estimated_upper_bound": 22},
        }
        assert query(odp, '{audience(name: "none") {name}}')["data"] == {"audience": None}

    def test_list_membership_is_null_when_never_subscribed(self, odp: ThreadedSandbox) -> None:
        odp.odp("POST", "/v3/lists", {"name": "news"})
        write(odp, {"fs_user_id": "u1"})
        asked = '{customer(fs_user_id: "u1") {list_member(list_id: "news") {subscribed}}}'
        assert query(odp, asked)["data"]["customer"] == {"list_member": None}
        odp.odp("POST", "/v3/lists/subscriptions", {"list_id": "news", "fs_user_id": "u1", "subscribed": True})
        assert query(odp, asked)["data"]["customer"] == {"list_member": {"subscribed": True}}

    def test_a_customer_is_found_by_one_identifier(self, odp: ThreadedSandbox) -> None:
        write(odp, {"fs_user_id": "u1"})
        own_id = query(odp, '{customer(fs_user_id: "u1") {zaius_id}}')["data"]["customer"]["zaius_id"]
        assert query(odp, f'{{customer(zaius_id: "{own_id}") {{fs_user_id}}}}')["data"]["customer"] == {
            "fs_user_id": "u1"
        }
        assert "errors" in query(odp, '{customer(zaius_id: "x") {fs_user_id}}')
        assert "errors" in query(odp, "{customer {fs_user_id}}")
        assert "errors" in query(odp, '{customer(fs_user_id: "u1", email: "a@b.c") {fs_user_id}}')


class TestLimits:
    def test_profiles_and_lists_are_limited_and_events_are_not(self) -> None:
        with ThreadedSandbox() as odp:
            statuses = [write(odp, {"fs_user_id": "u1"})[0] for _ in range(60)]
            assert statuses[:10] == [202] * 10
            assert 429 in statuses
            assert 429 in [odp.odp("GET", "/v3/lists")[0] for _ in range(60)]
            event = {"type": "page", "identifiers": {"fs_user_id": "u1"}}
            assert {odp.odp("POST", "/v3/events", event)[0] for _ in range(30)} == {202}
            assert {odp.odp("GET", "/v3/segments")[0] for _ in range(30)} == {200}

    def test_a_429_says_little(self, odp: ThreadedSandbox) -> None:
        odp.settings(rates={"profiles": 1})
        assert write(odp, {"fs_user_id": "u1"})[0] == 202
        body = json.dumps({"attributes": {"fs_user_id": "u1"}}).encode()
        status, headers, answer = raw(odp, "POST", "/v3/profiles", body)
        assert (status, json.loads(answer), "retry-after" in headers) == (429, {"message": "Too Many Requests"}, False)
        odp.assume(retry_after="on")
        assert raw(odp, "POST", "/v3/profiles", body)[1]["retry-after"] == "1"

    def test_a_strict_second_lets_no_burst_through(self, odp: ThreadedSandbox) -> None:
        odp.settings(rates={"profiles": 5})
        odp.assume(rate_limiter="window")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            write(odp, {"fs_user_id": "u1"})
            time.sleep(0.01)
        taken = [each["arrived"] for each in odp.requests() if each["status"] == 202]
        assert all(sum(at <= other < at + 0.8 for other in taken) <= 5 for at in taken)
        assert 6 <= len(taken) <= 10

    def test_the_bucket_refills(self, odp: ThreadedSandbox) -> None:
        odp.settings(rates={"lists": 20})
        assert 429 in [odp.odp("GET", "/v3/lists")[0] for _ in range(150)]
        time.sleep(0.2)
        assert odp.odp("GET", "/v3/lists")[0] == 200


def raw(odp: ControlledSandbox, method: str, where: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    host = odp.url.removeprefix("http://")
    connection = HTTPConnection(host, timeout=10)
    connection.request(method, where, body, {"x-api-key": odp.private_key})
    reply = connection.getresponse()
    found = reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
    connection.close()
    return found


class TestFaults:
    def test_it_answers_a_scripted_status_with_headers_and_body_the_scripted_number_of_times(
        self, odp: ThreadedSandbox
    ) -> None:
        odp.fault({"path": "/v3/profiles", "times": 2}, {"status": 429, "headers": {"Retry-After": "2"}})
        odp.fault({"path": "/v3/lists"}, {"status": 400, "body": {"detail": {"message": "no"}}})
        status, headers, _ = raw(odp, "POST", "/v3/profiles", b"{}")
        assert (status, headers["retry-after"]) == (429, "2")
        assert write(odp, {"fs_user_id": "u1"})[0] == 429
        assert write(odp, {"fs_user_id": "u1"})[0] == 202
        assert odp.odp("GET", "/v3/lists") == (400, {"detail": {"message": "no"}})
        odp.clear_faults()
        assert odp.odp("GET", "/v3/lists")[0] == 200

    def test_it_answers_the_page_of_a_gateway(self, odp: ThreadedSandbox) -> None:
        odp.fault({}, {"status": 502, "html": True})
        status, headers, page = raw(odp, "GET", "/v3/segments")
        assert (status, headers["content-type"]) == (502, "text/html; charset=utf-8")
        assert b"<h1>502 Bad Gateway</h1>" in page

    @pytest.mark.parametrize(
        ("status", "keys"), [(403, {"message"}), (429, {"message"}), (500, {"title", "status", "timestamp", "detail"})]
    )
    def test_a_status_without_a_body_gets_the_usual_one(
        self, odp: ThreadedSandbox, status: int, keys: set[str]
    ) -> None:
        odp.fault({}, {"status": status})
        found, answer = odp.odp("GET", "/v3/segments")
        assert (found, set(answer)) == (status, keys)

    def test_it_strikes_the_nth_request_only(self, odp: ThreadedSandbox) -> None:
        odp.fault({"path": "/v3/profiles", "nth": 2}, {"status": 500})
        assert [write(odp, {"fs_user_id": "u1"})[0] for _ in range(4)] == [202, 500, 202, 202]

    def test_it_strikes_after_some_went_well(self, odp: ThreadedSandbox) -> None:
        odp.fault({"path": "/v3/profiles", "after": 2}, {"status": 500})
        assert [write(odp, {"fs_user_id": "u1"})[0] for _ in range(4)] == [202, 202, 500, 500]

    def test_it_matches_faults_by_method_and_body(self, odp: ThreadedSandbox) -> None:
        odp.fault({"method": "POST", "body_contains": "u2"}, {"status": 500})
        assert write(odp, {"fs_user_id": "u1"})[0] == 202
        assert write(odp, {"fs_user_id": "u2"})[0] == 500
        assert odp.odp("GET", "/v3/segments")[0] == 200

    def test_chance_is_repeatable(self, odp: ThreadedSandbox) -> None:
        def struck() -> list[int]:
            odp.clear_faults()
            odp.fault({"probability": 0.5, "seed": 7}, {"status": 503})
            return [odp.odp("GET", "/v3/segments")[0] for _ in range(30)]

        first = struck()
        assert {200, 503} == set(first)
        assert struck() == first

    def test_it_can_apply_a_write_and_still_answer_an_error(self, odp: ThreadedSandbox) -> None:
        odp.fault({"path": "/v3/profiles"}, {"status": 500, "apply": True})
        assert write(odp, {"fs_user_id": "u1"})[0] == 500
        assert odp.customer("u1")["known"] is True

    @pytest.mark.parametrize(("when", "known"), [("before", False), ("after", True)])
    def test_it_hangs_up_before_or_after_applying(self, odp: ThreadedSandbox, when: str, known: bool) -> None:
        odp.fault({"path": "/v3/profiles", "times": 1}, {"close": when})
        with pytest.raises(ConnectionError):
            write(odp, {"fs_user_id": "u1"})
        assert odp.customer("u1")["known"] is known
        assert odp.requests()[-1]["status"] is None
        assert odp.summary()["endpoints"]["POST /v3/profiles"]["statuses"] == {"0": 1}
        assert write(odp, {"fs_user_id": "u1"})[0] == 202

    def test_it_hangs_up_in_the_middle_of_its_answer(self, odp: ThreadedSandbox) -> None:
        odp.fault({"path": "/v3/profiles", "times": 1}, {"close": "halfway"})
        with pytest.raises(IncompleteRead):
            write(odp, {"fs_user_id": "u1"})
        assert odp.customer("u1")["known"] is True
        assert odp.requests()[-1]["status"] is None

    def test_it_answers_late(self, odp: ThreadedSandbox) -> None:
        odp.fault({}, {"delay_seconds": 0.3})
        started = time.monotonic()
        assert odp.odp("GET", "/v3/segments")[0] == 200
        assert time.monotonic() - started >= 0.3

    def test_it_answers_drop_by_drop(self, odp: ThreadedSandbox) -> None:
        odp.fault({}, {"drip_seconds": 0.3})
        started = time.monotonic()
        assert odp.odp("GET", "/v3/segments") == (200, {"segment_ids": []})
        assert time.monotonic() - started >= 0.3

    def test_it_rejects_scripted_customers_by_name(self, odp: ThreadedSandbox) -> None:
        odp.fault({"path": "/v3/profiles"}, {"refuse_items": {"identifier_contains": "bad", "message": "not this one"}})
        status, answer = write(odp, {"fs_user_id": "u1"}, {"fs_user_id": "bad-2"}, {"fs_user_id": "bad-3"})
        assert (status, answer["detail"]["invalids"]) == (
            400,
            [{"event": 1, "message": "not this one"}, {"event": 2, "message": "not this one"}],
        )
        assert odp.customer("u1")["known"] is False
        assert write(odp, {"fs_user_id": "u1"})[0] == 202

    def test_it_rejects_scripted_customers_without_naming_them(self, odp: ThreadedSandbox) -> None:
        odp.fault({"path": "/v3/"}, {"refuse_items": {"identifiers": ["u2"], "named": False}})
        status, answer = write(odp, {"fs_user_id": "u1"}, {"fs_user_id": "u2"})
        assert (status, set(answer["detail"])) == (400, {"message"})
        assert odp.odp("POST", "/v3/events", {"type": "x", "identifiers": {"fs_user_id": "u2"}})[0] == 400

    def test_it_rejects_a_scripted_field_list_or_audience(self, odp: ThreadedSandbox) -> None:
        make_field(odp, "lytics_x")
        odp.odp("POST", "/v3/lists", {"name": "lytics_x"})
        odp.fault({}, {"refuse_field": "lytics_x"})
        assert write(odp, {"fs_user_id": "u1"})[0] == 202
        assert write(odp, {"fs_user_id": "u1", "lytics_x": True})[0] == 400
        subscription = {"list_id": "lytics_x", "fs_user_id": "u1", "subscribed": True}
        assert odp.odp("POST", "/v3/lists/subscriptions", subscription)[0] == 400
        assert odp.odp("POST", "/v3/events", passthrough("fs_user_id", "u1", "qualify", 1))[0] == 400

    def test_it_lists_the_faults_that_applied(self, odp: ThreadedSandbox) -> None:
        number = odp.fault({"path": "/v3/segments"}, {"status": 500})
        odp.odp("GET", "/v3/segments")
        odp.odp("GET", "/v3/lists")
        assert [(each["fault"], each["status"]) for each in odp.requests()] == [(number, 500), (None, 200)]
        (fault,) = odp.control("/sandbox/faults")["faults"]
        assert (fault["id"], fault["met"], fault["struck"]) == (number, 1, 1)

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"then": {}},
            {"then": {"statsu": 500}},
            {"when": {"pth": "/"}, "then": {"status": 500}},
            {"then": {"close": "during"}},
            {"then": {"refuse_items": {"ids": []}}},
            {"what": 1, "then": {"status": 500}},
        ],
    )
    def test_a_misspelt_fault_is_an_error(self, odp: ThreadedSandbox, body: Any) -> None:
        with pytest.raises(ValueError, match="400"):
            odp.control("/sandbox/faults", body)


class TestVisibility:
    def test_a_write_is_accepted_now_and_seen_later(self) -> None:
        with ThreadedSandbox(Options(delay=(60, 60))) as odp:
            make_audience(odp)
            assert write(odp, {"fs_user_id": "u1", "lytics_x": True})[0] == 202
            assert audiences(odp, "u1", "lytics_x") is None
            assert odp.summary()["pending_writes"] == 1
            odp.advance(61)
            assert eventually(lambda: audiences(odp, "u1", "lytics_x") == ["lytics_x"])

    def test_it_becomes_visible_after_the_delay(self) -> None:
        with ThreadedSandbox(Options(delay=(0.4, 0.5))) as odp:
            write(odp, {"fs_user_id": "u1"})
            assert odp.customer("u1")["known"] is False
            assert eventually(lambda: bool(odp.customer("u1")["known"]))

    def test_pending_writes_can_be_hurried(self) -> None:
        with ThreadedSandbox(Options(delay=(60, 60))) as odp:
            write(odp, {"fs_user_id": "u1"})
            assert odp.control("/sandbox/clock", {"apply_pending": True})["pending_writes"] == 0
            assert odp.customer("u1")["known"] is True

    def test_writes_are_seen_in_the_order_they_were_accepted(self) -> None:
        with ThreadedSandbox(Options(delay=(50, 100), settings=UNLIMITED)) as odp:
            make_field(odp, "age", "number")
            seen = []
            for at in range(80):
                write(odp, {"fs_user_id": "u1", "age": at})
                odp.advance(3)
                seen.append(odp.customer("u1")["attributes"].get("age", -1))
            assert seen == sorted(seen)
            assert -1 < seen[-1] < 79
            odp.advance(100)
            assert eventually(lambda: odp.summary()["pending_writes"] == 0)
            assert odp.customer("u1")["attributes"]["age"] == 79

    def test_shuffled_swaps_requests_that_overlap(self) -> None:
        with ThreadedSandbox(Options(shuffled=True, settings=UNLIMITED)) as odp:
            make_field(odp, "age", "number")
            odp.fault({"path": "/v3/profiles", "body_contains": "slow"}, {"delay_seconds": 0.05})
            results = set()
            for at in range(12):
                with ThreadPoolExecutor(2) as pool:
                    early = pool.submit(write, odp, {"fs_user_id": f"u{at}", "age": 1, "city": "slow"})
                    time.sleep(0.01)
                    late = pool.submit(write, odp, {"fs_user_id": f"u{at}", "age": 2, "city": "slow"})
                    assert (early.result()[0], late.result()[0]) == (202, 202)
                assert eventually(lambda: odp.summary()["pending_writes"] == 0)
                results.add(odp.customer(f"u{at}")["attributes"]["age"])
            assert results == {1, 2}

    def test_shuffled_keeps_the_order_of_a_client_that_waits(self) -> None:
        with ThreadedSandbox(Options(shuffled=True, settings=UNLIMITED)) as odp:
            make_field(odp, "age", "number")
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda user: [write(odp, {"fs_user_id": user, "age": at}) for at in range(20)], "abcd"))
            assert eventually(lambda: odp.summary()["pending_writes"] == 0)
            assert {odp.customer(user)["attributes"]["age"] for user in "abcd"} == {19}


class TestObservation:
    def test_requests_are_listed_in_order_of_arrival(self, odp: ThreadedSandbox) -> None:
        make_field(odp, "lytics_x")
        before = odp.requests()[-1]["number"]
        write(odp, {"fs_user_id": "u1", "lytics_x": True}, {"fs_user_id": "u2", "lytics_x": False})
        odp.odp("GET", "/v3/segments?x=1")
        first, second = odp.requests(since=before, bodies=True)
        assert (first["endpoint"], first["status"], first["items"], first["fields"]) == (
            "POST /v3/profiles",
            202,
            2,
            ["lytics_x"],
        )
        assert first["arrived"] < first["ended"] <= second["arrived"] < time.monotonic()
        assert len(first["body"]) == first["size"]
        assert (second["path"], second["body"]) == ("/v3/segments?x=1", None)

    def test_it_never_shows_the_secret_half_of_a_key(self, odp: ThreadedSandbox) -> None:
        odp.odp("GET", "/v3/segments")
        told = odp.requests()[-1]
        assert (told["headers"]["x-api-key"], told["account"], told["key"]) == (
            "sandbox-public.***",
            "sandbox-public",
            "private",
        )
        assert "sandbox-private" not in json.dumps(told)

    def test_it_shows_which_key_wrote_what_about_a_customer(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)
        write(odp, {"fs_user_id": "u1", "web_user_id": "w1", "lytics_x": True}, {"fs_user_id": "u2"})
        write(odp, {"fs_user_id": "u1", "nobody": 1})
        odp.fault({"path": "/v3/profiles", "times": 1}, {"status": 500})
        write(odp, {"web_user_id": "w1", "lytics_x": False})
        write(odp, {"web_user_id": "w1", "lytics_x": False})
        told = odp.customer("u1")
        assert [(each["status"], each["applied"]) for each in told["writes"]] == [
            (202, True),
            (400, False),
            (500, False),
            (202, True),
        ]
        assert told["writes"][3]["item"] == {"attributes": {"web_user_id": "w1", "lytics_x": False}}
        assert (told["segments"], told["complete"], told["attributes"]["lytics_x"]) == ([], True, False)
        assert odp.customer("nobody") == {
            "identifier": "nobody",
            "known": False,
            "zaius_id": None,
            "attributes": {},
            "identifiers": {},
            "lists": {},
            "segments": [],
            "writes": [],
            "complete": True,
        }

    def test_it_finds_identifiers_that_json_escapes(self, odp: ThreadedSandbox) -> None:
        user = 'Zoë "Ü" \\ /x'
        write(odp, {"fs_user_id": user})
        body = json.dumps([{"attributes": {"fs_user_id": user}}], ensure_ascii=False).encode()
        assert raw(odp, "POST", "/v3/profiles", body)[0] == 202
        assert len(odp.customer(user)["writes"]) == 2

    def test_it_counts_per_endpoint(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)
        write(odp, {"fs_user_id": "u1"}, {"fs_user_id": "u2"})
        write(odp, {"nobody": 1})
        told = odp.summary()["endpoints"]
        assert told["POST /v3/profiles"]["statuses"] == {"202": 1, "400": 1}
        assert told["POST /v3/profiles"]["items_accepted"] == 2
        assert told["PUT /v3/segments/{segment_id}"]["requests"] == 1
        assert odp.summary()["unknown_fields"] == {"nobody": 1}

    def test_it_reports_the_highest_rate_and_concurrency(self, odp: ThreadedSandbox) -> None:
        make_field(odp, "a")
        make_field(odp, "b")
        odp.fault({"path": "/v3/profiles"}, {"delay_seconds": 0.4})
        with ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(write, odp, {"fs_user_id": "u1", name: True}) for name in ("a", "a", "b")]
            assert [job.result()[0] for job in jobs] == [202] * 3
        write(odp, {"fs_user_id": "u1", "b": True})
        told = odp.summary()
        assert told["peak_concurrency_per_field"] == {"a": 2, "b": 1}
        assert told["peak_concurrency"] == 3
        assert told["endpoints"]["POST /v3/profiles"]["peak_per_second"] in (3, 4)
        assert told["in_flight"] == 0

    def test_a_caller_that_gives_up_is_no_longer_in_flight(self, odp: ThreadedSandbox) -> None:
        odp.fault({"path": "/v3/profiles"}, {"delay_seconds": 1.5})
        body = b'{"attributes": {"fs_user_id": "u1"}}'
        heads = ["POST /v3/profiles HTTP/1.1", f"x-api-key: {odp.private_key}", f"Content-Length: {len(body)}", "", ""]
        with socket.create_connection(("127.0.0.1", int(odp.url.rpartition(":")[2]))) as line:
            line.sendall("\r\n".join(heads).encode() + body)
            assert eventually(lambda: odp.summary()["in_flight"] == 1)
        assert eventually(lambda: odp.summary()["in_flight"] == 0, 1)
        assert odp.requests()[-1]["client_gone"] is not None
        assert eventually(lambda: bool(odp.customer("u1")["known"]))

    def test_its_memory_is_bounded(self) -> None:
        with ThreadedSandbox(Options(keep_requests=5, keep_body_bytes=200, settings=UNLIMITED)) as odp:
            for at in range(10):
                write(odp, {"fs_user_id": f"user-{at}", "city": "Rome"})
            assert [each["number"] for each in odp.requests()] == [6, 7, 8, 9, 10]
            assert odp.summary()["requests"] == 10
            assert odp.customer("user-9")["writes"]
            assert (odp.customer("user-0")["writes"], odp.customer("user-0")["complete"]) == ([], False)

    def test_memberships_are_of_known_segments(self, odp: ThreadedSandbox) -> None:
        with pytest.raises(ValueError, match="404"):
            odp.members("none")

    def test_reset_forgets_everything_or_customers_only(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)
        write(odp, {"fs_user_id": "u1", "lytics_x": True})
        odp.fault({}, {"status": 500})
        odp.reset(keep_schema=True)
        assert odp.requests() == []
        assert odp.members("lytics_x") == []
        write(odp, {"fs_user_id": "u1", "lytics_x": True})
        assert odp.members("lytics_x") == ["u1"]
        odp.reset()
        assert odp.odp("GET", "/v3/segments")[1] == {"segment_ids": []}
        assert odp.odp("GET", f"{FIELDS}/lytics_x")[0] == 404

    def test_ready_lists_the_accounts(self, odp: ThreadedSandbox) -> None:
        (account,) = odp.control("/sandbox/ready")["accounts"]
        assert (account["public_key"], account["region"], account["consent"]) == ("sandbox-public", "us", "opted_in")

    @pytest.mark.parametrize(
        ("where", "body"),
        [
            ("/sandbox/nothing", None),
            ("/sandbox/accounts", {"consent": "maybe"}),
            ("/sandbox/accounts", {"concent": "opted_in"}),
            ("/sandbox/accounts", {"rates": {"segments": 1}}),
            ("/sandbox/accounts", {"assumptions": {"nothing": 1}}),
            ("/sandbox/accounts", {"assumptions": {"batch_rejection": "sometimes"}}),
            ("/sandbox/accounts", {"private_key": "no-dot"}),
            ("/sandbox/keys/revoke", {"key": "sandbox-public.other"}),
            ("/sandbox/keys/shred", {}),
            ("/sandbox/clock", ["x"]),
        ],
    )
    def test_a_misspelt_control_is_an_error(self, odp: ThreadedSandbox, where: str, body: Any) -> None:
        with pytest.raises(ValueError, match=r"40[04]"):
            odp.control(where, body)


class TestHTTP:
    def test_a_connection_is_kept_alive(self, odp: ThreadedSandbox) -> None:
        connection = HTTPConnection(odp.url.removeprefix("http://"), timeout=5)
        for status, key in ((200, odp.private_key), (403, "x"), (200, odp.private_key)):
            connection.request("GET", "/v3/segments", headers={"x-api-key": key})
            ours = connection.sock
            reply = connection.getresponse()
            reply.read()
            assert (reply.status, connection.sock) == (status, ours)
        connection.close()

    def test_it_reads_a_chunked_body(self, odp: ThreadedSandbox) -> None:
        connection = HTTPConnection(odp.url.removeprefix("http://"), timeout=5)
        parts = iter([b'{"attributes": ', b'{"fs_user_id": "u1"}}'])
        connection.request("POST", "/v3/profiles", parts, {"x-api-key": odp.private_key}, encode_chunked=True)
        assert connection.getresponse().status == 202
        connection.close()
        assert odp.customer("u1")["known"] is True

    @pytest.mark.parametrize(("method", "where"), [("GET", "/v3/nothing"), ("DELETE", "/v3/profiles"), ("GET", "/")])
    def test_a_missing_object_is_a_404_with_a_title(self, odp: ThreadedSandbox, method: str, where: str) -> None:
        status, answer = odp.odp(method, where)
        assert (status, answer["title"]) == (404, "Not Found")

    def test_many_callers_at_once_lose_nothing(self, odp: ThreadedSandbox) -> None:
        make_audience(odp)

        def send(at: int) -> int:
            return write(odp, *({"fs_user_id": f"u{at}-{n}", "lytics_x": True} for n in range(100)))[0]

        with ThreadPoolExecutor(20) as pool:
            assert set(pool.map(send, range(60))) == {202}
        assert len(odp.members("lytics_x")) == 6000


class TestProcess:
    def test_it_keeps_everything_across_a_restart(self, tmp_path: Path) -> None:
        odp = RunningSandbox("--state", str(tmp_path / "odp.state"), "--rate-profiles", "0", "--rate-lists", "0")
        with odp:
            make_audience(odp)
            odp.odp("POST", "/v3/lists", {"name": "news"})
            odp.odp("PUT", "/v3/segments/ext", {"definition": {"passthrough": {}}})
            identifier = {"name": "loyalty_id", "display_name": "Loyalty ID", "merge_confidence": "low"}
            odp.odp("POST", "/v3/schema/identifiers", identifier)
            write(
                odp, {"fs_user_id": "u1", "loyalty_id": "7", "lytics_x": True}, {"fs_user_id": "u2", "email": "a@b.c"}
            )
            write(odp, {"fs_user_id": "u3", "email": "a@b.c"})
            odp.odp("POST", "/v3/lists/subscriptions", {"list_id": "news", "fs_user_id": "u1", "subscribed": True})
            odp.odp("POST", "/v3/events", passthrough("fs_user_id", "u9", "qualify", 5, audience="ext"))
            odp.assume(batch_rejection="partial")
            before = [odp.customer(user) | {"writes": []} for user in ("u1", "u2", "7")]
            odp.stop()
            assert (tmp_path / "odp.state").stat().st_mode & 0o777 == 0o600
            odp.start()
            assert [odp.customer(user) | {"writes": []} for user in ("u1", "u2", "7")] == before
            assert (odp.members("lytics_x"), odp.members("ext")) == (["u1"], ["u9"])
            assert odp.odp("GET", "/v3/segments/lytics_x")[1]["revision"] == 1
            assert write(odp, {"nobody": 1}, {"fs_user_id": "u4"})[0] == 400
            assert odp.customer("u4")["known"] is True

    def test_accepted_writes_survive_a_kill(self, tmp_path: Path) -> None:
        odp = RunningSandbox("--state", str(tmp_path / "odp.state"), "--delay", "60")
        with odp:
            make_audience(odp)
            write(odp, {"fs_user_id": "u1", "lytics_x": True})
            write(odp, {"fs_user_id": "u1", "lytics_x": False}, {"fs_user_id": "u2", "lytics_x": True})
            odp.kill()
            odp.start()
            assert odp.members("lytics_x") == ["u2"]

    def test_a_line_cut_short_by_a_kill_is_left_out(self, tmp_path: Path) -> None:
        state = tmp_path / "odp.state"
        odp = RunningSandbox("--state", str(state))
        with odp:
            write(odp, {"fs_user_id": "u1"})
            odp.kill()
            with state.open("ab") as file:
                file.write(b'["profiles", "sandbox-public", 0, [{"attr')
            odp.start()
            assert odp.customer("u1")["known"] is True

    def test_it_reads_customers_that_an_earlier_version_saved_with_their_events(self, tmp_path: Path) -> None:
        state = tmp_path / "odp.state"
        saved = [7, {"fs_user_id": "u1"}, None, {"news": [True, 5, True]}, [{"type": "page", "ts": 5}], 3]
        lines = [
            ["account", "sandbox-public", 5, "sandbox-public.sandbox-private"],
            ["customer", "sandbox-public", 5, saved],
        ]
        state.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        with RunningSandbox("--state", str(state)) as odp:
            customer = odp.customer("u1")
        assert (customer["zaius_id"][-1], customer["lists"]) == ("7", {"news": True})

    def test_a_saved_segment_that_is_not_modelled_is_one_clear_sentence(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        state = tmp_path / "odp.state"
        definition: dict[str, Any] = {"root_condition": {"sequence_condition": {}}}
        segment = {"id": "x", "revision": 1, "description": "", "metadata": {}, "definition": definition}
        lines = [
            ["account", "sandbox-public", 5, "sandbox-public.sandbox-private"],
            ["segment", "sandbox-public", 5, segment],
        ]
        state.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        with pytest.raises(RuntimeError, match="did not start"):
            RunningSandbox("--state", str(state)).start()
        assert "'sequence_condition' is not modelled" in capfd.readouterr().err

    def test_a_reset_is_kept_too(self, tmp_path: Path) -> None:
        odp = RunningSandbox("--state", str(tmp_path / "odp.state"))
        with odp:
            write(odp, {"fs_user_id": "u1"})
            odp.reset()
            odp.kill()
            odp.start()
            assert odp.customer("u1")["known"] is False

    def test_two_do_not_share_a_state_file(self, tmp_path: Path) -> None:
        flags = ("--state", str(tmp_path / "odp.state"))
        with RunningSandbox(*flags), pytest.raises(RuntimeError, match="did not start"):
            RunningSandbox(*flags).start()

    def test_a_port_in_use_is_one_clear_sentence(self, capfd: pytest.CaptureFixture[str]) -> None:
        with RunningSandbox() as odp, pytest.raises(RuntimeError, match="did not start"):
            RunningSandbox(port=odp.port).start()
        assert capfd.readouterr().err.startswith("The sandbox can't start: ")

    def test_a_port_that_is_none_is_one_clear_sentence(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        assert main(["--port", "99999"]) == 1
        assert capsys.readouterr().err.startswith("The sandbox can't start: ")

    def test_it_ends_with_its_parent_process(self) -> None:
        odp = RunningSandbox()
        odp.start()
        process = odp._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=10) == 0
        assert process.stdout is not None
        process.stdout.close()

    def test_its_flags_set_the_account_up(self) -> None:
        flags = [
            "--private-key",
            "acme-au1.s3cret",
            "--region",
            "au1",
            "--consent",
            "opted_out",
            "--passthrough",
            "off",
        ]
        flags += [
            "--lenient-schema",
            "--rate-profiles",
            "3",
            "--assume",
            "too_many_items=413",
            "--profile",
            "realistic",
        ]
        with RunningSandbox(*flags) as odp:
            (account,) = odp.control("/sandbox/ready")["accounts"]
            assert account == {
                "public_key": "acme-au1",
                "private_key": "acme-au1.s3cret",
                "region": "au1",
                "consent": "opted_out",
                "passthrough": False,
                "rates": {"profiles": 3, "lists": 10, "graphql": 500},
            }
            assert write(odp, {"fs_user_id": "u1", "nobody": 1})[0] == 202
            assert odp.summary()["pending_writes"] == 1


class TestREADME:
    def test_it_lists_every_assumption_with_its_values(self) -> None:
        readme = (ROOT / "sandbox" / "README.md").read_text()
        for each in fields(Assumptions):
            values = each.metadata["choices"] or (each.default,)
            shown = ", ".join(f"**{value}**" if at == 0 else str(value) for at, value in enumerate(values))
            assert f"| `{each.name}` | {shown} | {each.metadata['says']} |" in readme, each.name

    def test_it_mentions_every_flag_and_control(self) -> None:
        from sandbox.odp.__main__ import arguments
        from sandbox.odp.control import CONTROLS

        readme = (ROOT / "sandbox" / "README.md").read_text()
        flags = [flag for action in arguments()._actions for flag in action.option_strings if flag.startswith("--")]
        assert [flag for flag in flags if flag not in readme and flag != "--help"] == []
        assert [name for method, name in CONTROLS if f"{method} /sandbox/{name}" not in readme] == []


# The folders of the sandbox ODP; "" is for the modules that are in none.
FLOORS = {"wire": 0, "account": 0, "world": 1, "api": 2, "": 3}


def sandbox_imports() -> dict[str, set[str]]:
    """For each module of the sandbox ODP, the ones that it imports, for types too."""
    files = (ROOT / "sandbox" / "odp").rglob("*.py")
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    found: dict[str, set[str]] = {}
    for module, file in modules.items():
        named = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        pairs = [(node.module or "", alias.name) for node in named for alias in node.names]
        found[module] = {f"{of}.{name}" if f"{of}.{name}" in modules else of for of, name in pairs if of in modules}
    return found


def folder(module: str) -> str:
    name = module.removeprefix("sandbox.odp").removeprefix(".").partition(".")[0]
    return name if name in FLOORS else ""


def test_no_import_of_the_sandbox_is_circular() -> None:
    order = [*TopologicalSorter(sandbox_imports()).static_order()]
    assert order[-1] in {"sandbox.odp.__main__", "sandbox.odp.testing"}


def test_folders_of_the_sandbox_import_one_way() -> None:
    upward = {
        (module, other)
        for module, others in sandbox_imports().items()
        for other in others
        if folder(other) != folder(module) and FLOORS[folder(other)] >= FLOORS[folder(module)]
    }
    assert upward == set()


def test_the_sandbox_imports_nothing_of_ours() -> None:
    ours = re.compile(r"^\s*(from|import) (lytics|lytics_sync|audiences|workers|odp|django)\b", re.MULTILINE)
    assert [file.name for file in (ROOT / "sandbox" / "odp").rglob("*.py") if ours.search(file.read_text())] == []


def test_threads_end_with_their_sandbox() -> None:
    before = threading.active_count()
    for _ in range(5):
        with ThreadedSandbox() as odp:
            odp.control("/sandbox/ready")
    assert eventually(lambda: threading.active_count() <= before)
