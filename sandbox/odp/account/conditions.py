"""Conditions of real-time segments: the part of ODP's definition language that the bridge writes.

A condition is checked once, when its segment is installed, and compiled to a function of a customer. The language has
many more functions. The sandbox refuses them as not modelled instead of evaluating them wrongly.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sandbox.odp.account.customers import Customer

# None stands for a missing value. As in SQL, a comparison with a missing value is neither true nor false.
Evaluate = Callable[[Customer], bool | None]


class Invalid(ValueError):
    """A refused definition: the place of the error and the reason."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")


@dataclass(frozen=True, slots=True)
class Scope:
    """Names that a condition may refer to. `type_of` gives a customer field's type, or None for an unknown field."""

    type_of: Callable[[str], str | None]
    has_list: Callable[[str], bool]


def take(body: Any, where: str, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """Check that `body` is an object with all required members and no unknown one."""
    if not isinstance(body, dict):
        raise Invalid(where, "must be an object")
    for name in required:
        if name not in body:
            raise Invalid(where, f"{name} is required")
    for name in body:
        if name not in (*required, *optional):
            raise Invalid(where, f"unknown member {name!r}")
    return body


def compile_condition(body: Any, where: str, scope: Scope) -> Evaluate:
    """Compile `{"customer_condition": {"customer_filter": ...}}`."""
    name, value = _only_member(body, where, ("customer_condition",))
    customer_filter = take(value, f"{where}.{name}", ("customer_filter",))["customer_filter"]
    return _compile_filter(customer_filter, f"{where}.{name}.customer_filter", scope)


def _only_member(body: Any, where: str, modelled: Iterable[str]) -> tuple[str, Any]:
    """The name and value of the only member, as protobuf's oneof requires."""
    if not isinstance(body, dict) or len(body) != 1:
        raise Invalid(where, "must have exactly one member")
    name, value = next(iter(body.items()))
    if name not in modelled:
        raise Invalid(where, f"{name!r} is not modelled by the sandbox, only {', '.join(modelled)}; ODP may accept it")
    return name, value


def _compile_filter(body: Any, where: str, scope: Scope) -> Evaluate:
    name, value = _only_member(body, where, COMPILERS)
    return COMPILERS[name](value, f"{where}.{name}", scope)


def _comparison(body: Any, where: str, scope: Scope) -> Evaluate:
    take(body, where, ("lhs", "comparator", "rhs"))
    if body["comparator"] != "EQUAL":
        raise Invalid(where, f"comparator {body['comparator']!r} is not modelled by the sandbox; ODP may accept it")
    left = _compile_filter(body["lhs"], f"{where}.lhs", scope)
    right = _compile_filter(body["rhs"], f"{where}.rhs", scope)

    def evaluate(customer: Customer) -> bool | None:
        one, other = left(customer), right(customer)
        return None if one is None or other is None else one is other

    return evaluate


def _path_reference(body: Any, where: str, scope: Scope) -> Evaluate:
    path = take(body, where, ("value",))["value"]
    root, _, name = str(path).partition(".")
    if root != "customer" or not name:
        raise Invalid(where, f"path {path!r} must be rooted at customer")
    kind = scope.type_of(name)
    if kind is None:
        hint = "; the sandbox follows no relations" if "." in name else ""
        raise Invalid(where, f"no field {name!r} on customer{hint}")
    if kind != "boolean":
        raise Invalid(where, f"field {name!r} must be boolean, not {kind}; the sandbox models no other type here")
    return lambda customer: customer.record.get(name)


def _boolean_literal(body: Any, where: str, scope: Scope) -> Evaluate:
    value = take(body, where, ("value",))["value"]
    if not isinstance(value, bool):
        raise Invalid(where, "value must be a boolean")
    return lambda customer: value


def _is_list_member(body: Any, where: str, scope: Scope) -> Evaluate:
    name = take(body, where, ("list",))["list"]
    if not isinstance(name, str) or not scope.has_list(name):
        raise Invalid(where, f"no list {name!r}")

    def evaluate(customer: Customer) -> bool:
        subscribed, _, consented = (customer.lists or {}).get(name, (False, 0.0, False))
        return subscribed and consented

    return evaluate


COMPILERS: dict[str, Callable[[Any, str, Scope], Evaluate]] = {
    "comparison": _comparison,
    "path_reference": _path_reference,
    "boolean_literal": _boolean_literal,
    "is_list_member": _is_list_member,
}
