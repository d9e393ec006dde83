"""Whether a definition read from ODP equals the written one, in any form that ODP may return."""

from typing import Any

import pytest

from odp import definitions

FIELD = "lytics_gold"
PATH = {"path_reference": {"value": f"customer.{FIELD}"}}
TRUE = {"boolean_literal": {"value": True}}
OURS = definitions.over(definitions.field_is_true(FIELD))
LIST = definitions.over(definitions.is_list_member(FIELD))


def over(condition: Any) -> dict[str, Any]:
    return {"root_condition": {"customer_condition": {"customer_filter": condition}}}


def comparison(left: Any, how: Any, right: Any, **more: Any) -> dict[str, Any]:
    return over({"comparison": {"lhs": left, "comparator": how, "rhs": right, **more}})


@pytest.mark.parametrize(
    "found",
    [
        OURS,
        {**OURS, "collections": []},
        {**OURS, "collections": None},
        comparison(TRUE, "EQUAL", PATH),
        comparison(PATH, "COMPARATOR_EQUAL", TRUE),
        comparison(PATH, "equal", TRUE),
        comparison(PATH, "EQUAL", {"boolean_literal": {"value": "true"}}),
        over(PATH),
        over({"combination": {"conjunction": "AND", "conditions": [PATH]}}),
        {"root_condition": {"combination": {"conjunction": "OR", "conditions": [OURS["root_condition"]]}}},
        {"rootCondition": {"customerCondition": {"customerFilter": {"pathReference": PATH["path_reference"]}}}},
    ],
)
def test_another_way_of_writing_ours_is_ours(found: Any) -> None:
    assert definitions.same(OURS, found)
    assert definitions.digest(found) == definitions.digest(OURS)
    assert definitions.in_words(found) == "customer.lytics_gold = true"


@pytest.mark.parametrize(
    "found",
    [
        LIST,
        None,
        [],
        {},
        "customer.lytics_gold",
        over({"path_reference": {"value": "customer.lytics_golden"}}),
        comparison(PATH, "NOT_EQUAL", TRUE),
        comparison(PATH, "EQUAL", {"boolean_literal": {"value": False}}),
        comparison(PATH, "EQUAL", {"boolean_literal": {}}),
        comparison(PATH, "EQUAL", {"string_literal": {"value": "true"}}),
        over(
            {"combination": {"conjunction": "AND", "conditions": [PATH, {"path_reference": {"value": "customer.vip"}}]}}
        ),
        over({"combination": {"conjunction": "AND", "conditions": [PATH], "is_negated": True}}),
        over({"is_missing": {"source": PATH}}),
        {"passthrough": {"audience_id": FIELD}},
        {**OURS, "collections": [{"name": "orders"}]},
    ],
)
def test_a_definition_with_another_meaning_is_not_ours(found: Any) -> None:
    assert not definitions.same(OURS, found)
    assert definitions.digest(found) != definitions.digest(OURS)


def test_any_definition_can_be_said_and_stored() -> None:
    deep: Any = "x"
    for _ in range(400):
        deep = {"combination": {"conditions": [deep, deep]}} if isinstance(deep, str) else {"source": deep}
    for odd in (deep, {"value": "\x00\ud800" * 900}, over({"path_reference": {"value": "\x00\ud800" * 900}}), 1e400):
        words = definitions.in_words(odd)
        assert len(words) < 500
        assert "\x00" not in words
        words.encode()
        assert len(definitions.digest(odd)) == 64


def test_a_list_is_said_by_its_name() -> None:
    assert definitions.in_words(LIST) == "member of the list lytics_gold"
    assert definitions.same(
        LIST, {"rootCondition": {"customerCondition": {"customerFilter": {"isListMember": {"list": FIELD}}}}}
    )
