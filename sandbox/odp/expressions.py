"""Expressions of the segment definition language: checked once when a segment is installed, then called per customer.

Each is compiled to a function of its subject. As in SQL, a missing value makes a comparison neither true nor false:
the answer is None.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

ANYTHING = "anything"  # the type of an event's field: events have no schema here
UNIT_SECONDS = {"SECOND": 1, "MINUTE": 60, "HOUR": 3600, "DAY": 86400}

Value = Any
Evaluate = Callable[[Any], Value]


class Invalid(Exception):
    """Why a definition is refused, and where in it."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")


@dataclass(frozen=True, slots=True)
class Expression:
    type: str
    evaluate: Evaluate


@dataclass(frozen=True, slots=True)
class Scope:
    """What a path may be rooted at, the types of the fields below it, and how a subject answers for one."""

    root: str
    type_of: Callable[[str], str | None]
    read: Callable[[str], Evaluate]
    has_list: Callable[[str], bool] | None = None
    is_member: Callable[[str], Evaluate] | None = None


def only_member(body: Any, where: str, known: Iterable[str]) -> tuple[str, Any]:
    """Protobuf's oneof: exactly one member, and one that exists."""
    known = tuple(known)
    if not isinstance(body, dict) or len(body) != 1:
        raise Invalid(where, f"must have exactly one member of {', '.join(known)}")
    name, value = next(iter(body.items()))
    if name not in known:
        raise Invalid(where, f"{name!r} is not one of {', '.join(known)}")
    return name, value


def take(body: Any, where: str, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """An object with all of the required members and no unknown one."""
    if not isinstance(body, dict):
        raise Invalid(where, "must be an object")
    for name in required:
        if name not in body:
            raise Invalid(where, f"{name} is required")
    for name in body:
        if name not in (*required, *optional):
            raise Invalid(where, f"unknown member {name!r}")
    return body


def compile_filter(body: Any, where: str, scope: Scope) -> Evaluate:
    expression = compile_expression(body, where, scope)
    if expression.type not in ("boolean", ANYTHING):
        raise Invalid(where, f"must evaluate to boolean, not {expression.type}")
    return expression.evaluate


def compile_expression(body: Any, where: str, scope: Scope) -> Expression:
    name, value = only_member(body, where, COMPILERS)
    return COMPILERS[name](value, f"{where}.{name}", scope)


def _typed(body: Any, where: str, scope: Scope, wanted: str) -> Evaluate:
    expression = compile_expression(body, where, scope)
    if expression.type not in (wanted, ANYTHING):
        raise Invalid(where, f"must evaluate to {wanted}, not {expression.type}")
    return expression.evaluate


def _combination(body: Any, where: str, scope: Scope) -> Expression:
    take(body, where, ("conjunction", "expressions"))
    parts = [
        compile_filter(each, f"{where}.expressions[{position}]", scope)
        for position, each in enumerate(not_empty(body["expressions"], f"{where}.expressions"))
    ]
    return Expression("boolean", joined(body["conjunction"], parts, where))


def not_empty(items: Any, where: str) -> list[Any]:
    if not isinstance(items, list) or not items:
        raise Invalid(where, "cannot be empty")
    return items


def joined(conjunction: Any, parts: list[Evaluate], where: str) -> Evaluate:
    """AND and OR of SQL's three values: the deciding value wins, otherwise an unknown stays unknown."""
    if conjunction not in ("AND", "OR"):
        raise Invalid(f"{where}.conjunction", "must be AND or OR")
    deciding = conjunction == "OR"

    def evaluate(subject: Any) -> Value:
        result: bool | None = not deciding
        for part in parts:
            value = part(subject)
            if value is deciding:
                return deciding
            if value is None:
                result = None
        return result

    return evaluate


def _like(value: str, pattern: str) -> bool:
    quoted = "".join(".*" if each == "%" else "." if each == "_" else re.escape(each) for each in pattern)
    return re.fullmatch(quoted, value, re.DOTALL) is not None


COMPARATORS: dict[str, Callable[[Any, Any], bool]] = {
    "EQUAL": lambda left, right: bool(left == right),
    "NOT_EQUAL": lambda left, right: bool(left != right),
    "LESS_THAN": lambda left, right: bool(left < right),
    "LESS_THAN_OR_EQUAL": lambda left, right: bool(left <= right),
    "GREATER_THAN": lambda left, right: bool(left > right),
    "GREATER_THAN_OR_EQUAL": lambda left, right: bool(left >= right),
    "LIKE": _like,
    "NOT_LIKE": lambda left, right: not _like(left, right),
}


def _comparison(body: Any, where: str, scope: Scope) -> Expression:
    take(body, where, ("lhs", "comparator", "rhs"))
    left = compile_expression(body["lhs"], f"{where}.lhs", scope)
    right = compile_expression(body["rhs"], f"{where}.rhs", scope)
    comparator = str(body["comparator"])
    if comparator not in COMPARATORS:
        raise Invalid(f"{where}.comparator", f"must be one of {', '.join(COMPARATORS)}")
    if ANYTHING not in (left.type, right.type) and left.type != right.type:
        raise Invalid(where, f"cannot compare {left.type} with {right.type}")
    if comparator.endswith("LIKE") and {left.type, right.type} - {"string", ANYTHING}:
        raise Invalid(where, f"{comparator} compares strings")
    return Expression("boolean", _compared(left.evaluate, COMPARATORS[comparator], right.evaluate))


def _compared(left: Evaluate, compare: Callable[[Any, Any], bool], right: Evaluate) -> Evaluate:
    def evaluate(subject: Any) -> Value:
        one, other = left(subject), right(subject)
        if one is None or other is None:
            return None
        try:
            return compare(one, other)
        except TypeError:  # an event's field held something of another type than the other side
            return None

    return evaluate


def _path_reference(body: Any, where: str, scope: Scope) -> Expression:
    path = take(body, where, ("value",))["value"]
    root, _, name = str(path).partition(".")
    if root != scope.root or not name:
        raise Invalid(where, f"path {path!r} must be rooted at {scope.root}")
    kind = scope.type_of(name)
    if kind is None:
        hint = "; the sandbox follows no relations" if "." in name else ""
        raise Invalid(where, f"no field {name!r} on {scope.root}{hint}")
    return Expression("number" if kind == "timestamp" else kind, scope.read(name))


def _string_literal(body: Any, where: str, scope: Scope) -> Expression:
    return _constant("string", take(body, where, ("value",))["value"], where, str)


def _boolean_literal(body: Any, where: str, scope: Scope) -> Expression:
    return _constant("boolean", take(body, where, ("value",))["value"], where, bool)


def _number_literal(body: Any, where: str, scope: Scope) -> Expression:
    return _constant("number", _number(take(body, where, ("value",))["value"], where), where, float)


def _constant(kind: str, value: Any, where: str, wanted: type) -> Expression:
    if not isinstance(value, wanted):
        raise Invalid(where, f"value must be a {kind}")
    return Expression(kind, lambda subject: value)


def _number(text: Any, where: str) -> float:
    if not isinstance(text, str):
        raise Invalid(where, "a number is written as a string")
    try:
        return float(text)
    except ValueError as bad:
        raise Invalid(where, f"{text!r} is not a number") from bad


def _about_missing(judge: Callable[[Value], bool], wanted: str | None) -> "Compiler":
    def compiler(body: Any, where: str, scope: Scope) -> Expression:
        source = take(body, where, ("source",))["source"]
        inner = f"{where}.source"
        read = _typed(source, inner, scope, wanted) if wanted else compile_expression(source, inner, scope).evaluate
        return Expression("boolean", lambda subject: judge(read(subject)))

    return compiler


def _coalesce(body: Any, where: str, scope: Scope) -> Expression:
    sources = not_empty(take(body, where, ("sources",))["sources"], f"{where}.sources")
    parts = [compile_expression(each, f"{where}.sources[{at}]", scope) for at, each in enumerate(sources)]
    if len({part.type for part in parts} - {ANYTHING}) > 1:
        raise Invalid(where, "sources must all evaluate to the same type")

    def evaluate(subject: Any) -> Value:
        return next((value for part in parts if (value := part.evaluate(subject)) is not None), None)

    return Expression(parts[0].type, evaluate)


def _membership(element: str, *, wanted: bool, like: bool = False) -> "Compiler":
    def compiler(body: Any, where: str, scope: Scope) -> Expression:
        take(body, where, ("needle", "haystack"))
        needle = _typed(body["needle"], f"{where}.needle", scope, element)
        haystack = [_straw(each, where, element) for each in not_empty(body["haystack"], f"{where}.haystack")]

        def evaluate(subject: Any) -> Value:
            value = needle(subject)
            if value is None:
                return None
            found = any(_like(str(value), straw) for straw in haystack) if like else value in haystack
            return found is wanted

        return Expression("boolean", evaluate)

    return compiler


def _straw(value: Any, where: str, element: str) -> Any:
    if not isinstance(value, str):
        raise Invalid(f"{where}.haystack", "holds strings")
    return _number(value, f"{where}.haystack") if element == "number" else value


def _list_member(*, wanted: bool) -> "Compiler":
    def compiler(body: Any, where: str, scope: Scope) -> Expression:
        name = take(body, where, ("list",))["list"]
        if scope.has_list is None or scope.is_member is None:
            raise Invalid(where, "list membership can only be asked of a customer")
        if not isinstance(name, str) or not scope.has_list(name):
            raise Invalid(where, f"no list {name!r}")
        member = scope.is_member(name)
        return Expression("boolean", lambda subject: member(subject) is wanted)

    return compiler


def _zone(body: dict[str, Any], where: str, scope: Scope) -> Evaluate:
    if "timezone" not in body:
        return lambda subject: "UTC"
    return _typed(body["timezone"], f"{where}.timezone", scope, "string")


def _unit(body: dict[str, Any], where: str) -> str:
    if str(body["unit"]) not in UNIT_SECONDS:
        raise Invalid(f"{where}.unit", f"must be one of {', '.join(UNIT_SECONDS)}")
    return str(body["unit"])


def _local(seconds: Value, zone: Value) -> datetime | None:
    if seconds is None or zone is None:
        return None
    return datetime.fromtimestamp(seconds, ZoneInfo(zone))


def _if_possible(compute: Evaluate) -> Evaluate:
    """A moment beyond the calendar, or in no known timezone, is a missing value."""

    def evaluate(subject: Any) -> Value:
        try:
            return compute(subject)
        except (ZoneInfoNotFoundError, ValueError, OverflowError, OSError):
            return None

    return evaluate


TRUNCATED: dict[str, Callable[[datetime], datetime]] = {
    "SECOND": lambda moment: moment.replace(microsecond=0),
    "MINUTE": lambda moment: moment.replace(microsecond=0, second=0),
    "HOUR": lambda moment: moment.replace(microsecond=0, second=0, minute=0),
    "DAY": lambda moment: moment.replace(microsecond=0, second=0, minute=0, hour=0),
}


def _truncate_time(body: Any, where: str, scope: Scope) -> Expression:
    take(body, where, ("source", "unit"), ("timezone",))
    source = _typed(body["source"], f"{where}.source", scope, "number")
    zone, unit = _zone(body, where, scope), _unit(body, where)
    cleared = TRUNCATED[unit]

    def evaluate(subject: Any) -> Value:
        moment = _local(source(subject), zone(subject))
        return None if moment is None else cleared(moment).timestamp()

    return Expression("number", _if_possible(evaluate))


def _shift_time(body: Any, where: str, scope: Scope) -> Expression:
    take(body, where, ("source", "amount", "unit"), ("timezone",))
    source = _typed(body["source"], f"{where}.source", scope, "number")
    amount = _typed(body["amount"], f"{where}.amount", scope, "number")
    zone, unit = _zone(body, where, scope), _unit(body, where)

    def evaluate(subject: Any) -> Value:
        moment, by = _local(source(subject), zone(subject)), amount(subject)
        if moment is None or by is None:
            return None
        if unit == "DAY":  # a day on the wall clock, which daylight saving makes longer or shorter
            return (moment + timedelta(days=by)).timestamp()
        return moment.timestamp() + by * UNIT_SECONDS[unit]

    return Expression("number", _if_possible(evaluate))


Compiler = Callable[[Any, str, Scope], Expression]

COMPILERS: dict[str, Compiler] = {
    "combination": _combination,
    "comparison": _comparison,
    "path_reference": _path_reference,
    "string_literal": _string_literal,
    "number_literal": _number_literal,
    "boolean_literal": _boolean_literal,
    "is_missing": _about_missing(lambda value: value is None, None),
    "is_not_missing": _about_missing(lambda value: value is not None, None),
    "false_or_missing": _about_missing(lambda value: value is None or value is False, "boolean"),
    "true_or_missing": _about_missing(lambda value: value is None or value is True, "boolean"),
    "coalesce": _coalesce,
    "truncate_time": _truncate_time,
    "shift_time": _shift_time,
    "any_of_string": _membership("string", wanted=True),
    "none_of_string": _membership("string", wanted=False),
    "any_of_number": _membership("number", wanted=True),
    "none_of_number": _membership("number", wanted=False),
    "like_any_of_string": _membership("string", wanted=True, like=True),
    "like_none_of_string": _membership("string", wanted=False, like=True),
    "is_list_member": _list_member(wanted=True),
    "is_not_list_member": _list_member(wanted=False),
}
