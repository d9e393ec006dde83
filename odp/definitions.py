"""Definitions of ODP's real-time audiences: the two that we write, and the comparison with what ODP shows.

ODP doesn't document how it returns a definition. The comparison therefore ignores what doesn't change the meaning: the
case of names, fields without a value, prefixes of enumeration names, the order of the two sides of an equality, a
combination around a single condition, and whether a boolean field is compared with true or stands alone.
See docs/decisions/0017-mechanism.md.
"""

import hashlib
import json
import re
from typing import Any

from odp.outcomes import readable

# Characters of a definition that are quoted in a reason.
LONGEST_WORDS = 400
# Levels of nesting that are compared; deeper ones are cut off, because each level is a call on the stack. Our
# definitions have six.
DEEPEST = 40

_HUMP = re.compile(r"(?<=[a-z0-9])([A-Z])")


def field_is_true(field: str) -> dict[str, Any]:
    return {
        "comparison": {
            "lhs": {"path_reference": {"value": f"customer.{field}"}},
            "comparator": "EQUAL",
            "rhs": {"boolean_literal": {"value": True}},
        }
    }


def is_list_member(name: str) -> dict[str, Any]:
    return {"is_list_member": {"list": name}}


def over(condition: dict[str, Any]) -> dict[str, Any]:
    """The definition of the audience of all customers for whom ``condition`` is true."""
    return {"root_condition": {"customer_condition": {"customer_filter": condition}}}


def same(ours: Any, found: Any) -> bool:
    return bool(_plain(ours) == _plain(found))


def digest(definition: Any) -> str:
    return hashlib.sha256(_text(_plain(definition)).encode()).hexdigest()


def in_words(definition: Any) -> str:
    """A definition in a sentence: the condition alone when we could have written it, else the JSON, cut off."""
    plain = _plain(definition)
    while isinstance(plain, dict) and len(plain) == 1 and (inner := set(plain) & _WRAPPERS):
        plain = plain[inner.pop()]
    field, name = _inner(plain, "path_reference", "value"), _inner(plain, "is_list_member", "list")
    if field:
        return f"{readable(field)[:LONGEST_WORDS]} = true"
    if name:
        return f"member of the list {readable(name)[:LONGEST_WORDS]}"
    text = _text(plain)
    return text if len(text) <= LONGEST_WORDS else f"{text[:LONGEST_WORDS]}…"


_WRAPPERS = {"root_condition", "customer_condition", "customer_filter"}


def _inner(node: Any, kind: str, name: str) -> str:
    inner = node.get(kind) if isinstance(node, dict) and len(node) == 1 else None
    value = inner.get(name) if isinstance(inner, dict) else None
    return value if isinstance(value, str) else ""


def _text(node: Any) -> str:
    return json.dumps(node, sort_keys=True)


def _plain(node: Any, depth: int = 0) -> Any:
    """A definition in its normal form, in which equal meanings are equal values."""
    if depth > DEEPEST:
        return "…"
    if isinstance(node, list):
        return [_plain(each, depth + 1) for each in node]
    if not isinstance(node, dict):
        return node
    plain = {_HUMP.sub(r"_\1", name).lower(): _plain(each, depth + 1) for name, each in node.items()}
    return _unwrapped({name: each for name, each in plain.items() if each not in (None, "", [], {})})


def _unwrapped(node: dict[str, Any]) -> Any:
    match node:
        case {"comparison": {"lhs": left, "comparator": str(comparator), "rhs": right, **rest}} if (
            len(node) == 1 and not rest
        ):
            return _comparison(left, comparator.upper().removeprefix("COMPARATOR_"), right)
        case {"combination": {"conditions": [only], **rest}} if len(node) == 1 and rest.keys() <= {"conjunction"}:
            return only
        case {"boolean_literal": {"value": str(value)}} if value.lower() in ("true", "false"):
            return {"boolean_literal": {"value": value.lower() == "true"}}
    return node


_TRUE = {"boolean_literal": {"value": True}}


def _comparison(left: Any, comparator: str, right: Any) -> Any:
    if comparator == "EQUAL":
        if left == _TRUE or (right != _TRUE and _text(left) > _text(right)):
            left, right = right, left
        if right == _TRUE and isinstance(left, dict) and left.keys() == {"path_reference"}:
            return left
    return {"comparison": {"lhs": left, "comparator": comparator, "rhs": right}}
