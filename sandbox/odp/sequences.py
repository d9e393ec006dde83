"""Sequence conditions: how many entry events of the last days have reached their goal and met no disqualifier.

Nested sequences and timeouts are refused at installation rather than evaluated wrongly.
"""

from collections.abc import Callable
from typing import Any

from sandbox.odp.customers import Customer
from sandbox.odp.expressions import (
    ANYTHING,
    Evaluate,
    Invalid,
    Scope,
    compile_expression,
    compile_filter,
    joined,
    not_empty,
    only_member,
    take,
)

LONGEST_AGE_SECONDS = 2_419_200

EVENT_SCOPE = Scope(
    root="event",
    type_of=lambda name: ANYTHING,
    read=lambda name: lambda event: event.get(name),
)

Events = list[dict[str, Any]]


def compile_sequence_condition(body: Any, where: str, now: Callable[[], float]) -> Evaluate:
    take(body, where, ("sequence",), ("min_count", "max_count"))
    low, high = _counts(body, where)
    entries = _compile_sequence(body["sequence"], f"{where}.sequence", now)

    def evaluate(customer: Customer) -> bool:
        count = entries(sorted(customer.events or (), key=lambda event: float(event["ts"])))
        return low <= count <= high

    return evaluate


def _counts(body: dict[str, Any], where: str) -> tuple[float, float]:
    given = {name: body[name] for name in ("min_count", "max_count") if name in body}
    if not given:
        raise Invalid(where, "at least one of min_count and max_count is required")
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in given.values()):
        raise Invalid(where, "a count is a whole number from 0")
    low, high = given.get("min_count", 0), given.get("max_count", float("inf"))
    if high < low:
        raise Invalid(where, "max_count cannot be less than min_count")
    return low, high


def _compile_sequence(body: Any, where: str, now: Callable[[], float]) -> Callable[[Events], int]:
    optional = ("unique_key_sources", "tracked_data", "goal", "disqualifier")
    take(body, where, ("entry_event_filter", "max_age_seconds"), optional)
    age = body["max_age_seconds"]
    if isinstance(age, bool) or not isinstance(age, int) or not 1 <= age <= LONGEST_AGE_SECONDS:
        raise Invalid(f"{where}.max_age_seconds", f"must be between 1 and {LONGEST_AGE_SECONDS}")
    enters = compile_filter(body["entry_event_filter"], f"{where}.entry_event_filter", EVENT_SCOPE)
    reaches = _compile_continuation(body["goal"], f"{where}.goal") if "goal" in body else None
    leaves = _compile_continuation(body["disqualifier"], f"{where}.disqualifier") if "disqualifier" in body else None
    keys = [
        compile_expression(each, f"{where}.unique_key_sources[{at}]", EVENT_SCOPE).evaluate
        for at, each in enumerate(_array(body, "unique_key_sources", where))
    ]

    def count(events: Events) -> int:
        oldest = now() - age
        alive: set[Any] = set()
        for at, event in enumerate(events):
            if event["ts"] < oldest or enters(event) is not True:
                continue
            after = events[at + 1 :]
            if (reaches is None or reaches(after)) and not (leaves and leaves(after)):
                alive.add(tuple(str(key(event)) for key in keys) if keys else at)
        return len(alive)

    return count


def _array(body: dict[str, Any], name: str, where: str) -> list[Any]:
    found = body.get(name, [])
    if not isinstance(found, list):
        raise Invalid(f"{where}.{name}", "must be an array")
    return found


def _compile_continuation(body: Any, where: str) -> Callable[[Events], bool]:
    name, value = only_member(body, where, ("event_filter", "combination", "sequence_condition", "timeout_source"))
    if name == "event_filter":
        matches = compile_filter(value, f"{where}.event_filter", EVENT_SCOPE)
        return lambda events: any(matches(event) is True for event in events)
    if name == "combination":
        take(value, f"{where}.combination", ("conjunction", "continuations"))
        parts = not_empty(value["continuations"], f"{where}.combination.continuations")
        inner = [_compile_continuation(each, f"{where}.combination[{at}]") for at, each in enumerate(parts)]
        whole = joined(value["conjunction"], list(inner), f"{where}.combination")
        return lambda events: whole(events) is True
    raise Invalid(where, f"the sandbox does not evaluate {name} inside a sequence; ODP may")
