"""Scripted faults: the requests that they apply to (`when`), and their effect (`then`)."""

import random
import threading
from dataclasses import dataclass, field
from typing import Any

WHEN = {"path", "method", "nth", "after", "probability", "seed", "times", "body_contains"}
THEN = {
    "status",
    "headers",
    "body",
    "html",
    "apply",
    "delay_seconds",
    "drip_seconds",
    "close",
    "refuse_items",
    "refuse_field",
    "named",
    "message",
}
REFUSE_ITEMS = {"identifiers", "identifier_contains", "named", "message"}


@dataclass(slots=True)
class Fault:
    number: int
    when: dict[str, Any]
    then: dict[str, Any]
    met: int = 0
    struck: int = 0
    dice: random.Random = field(default_factory=random.Random)

    def strikes(self, *, method: str, path: str, body: bytes, items: list[Any]) -> bool:
        """Whether the fault applies. `nth`, `after` and `probability` concern only requests that meet all else."""
        if self.when.get("method", method) != method or not path.startswith(self.when.get("path", "/v3/")):
            return False
        if (text := self.when.get("body_contains")) and text.encode() not in body:
            return False
        if self.picks_items and not any(self.picks(item) for item in items):
            return False
        self.met += 1
        if self.met <= self.when.get("after", 0) or self.when.get("nth", self.met) != self.met:
            return False
        return self.dice.random() < float(self.when.get("probability", 1))

    @property
    def is_spent(self) -> bool:
        nth = self.when.get("nth")
        return self.struck >= self.when.get("times", float("inf")) or (nth is not None and self.met >= nth)

    @property
    def picks_items(self) -> bool:
        return "refuse_items" in self.then or "refuse_field" in self.then

    @property
    def names_items(self) -> bool:
        return bool(self.then.get("refuse_items", self.then).get("named", True))

    @property
    def message(self) -> str:
        message = self.then.get("refuse_items", self.then).get("message")
        return str(message or f"refused by fault {self.number}")

    def picks(self, item: Any) -> bool:
        """Whether an item has one of the scripted identifiers, or the scripted field, list or audience."""
        values = identifiers_of(item)
        refused = self.then.get("refuse_items", {})
        wanted, part = refused.get("identifiers", ()), refused.get("identifier_contains")
        by_value = any(value in wanted or (part is not None and part in value) for value in values)
        return by_value or self.then.get("refuse_field") in fields_of(item)

    def as_json(self) -> dict[str, Any]:
        return {"id": self.number, "when": self.when, "then": self.then, "met": self.met, "struck": self.struck}


def identifiers_of(item: Any) -> list[str]:
    if not isinstance(item, dict):
        return []
    named = item.get("attributes") or item.get("identifiers") or item
    return [value for value in named.values() if isinstance(value, str)] if isinstance(named, dict) else []


NOT_AUDIENCES = frozenset(("fs_user_id", "web_user_id", "email", "phone", "vuid", "customer_id"))


def fields_of(item: Any) -> frozenset[str]:
    """The audiences that an item names: customer fields, a list, or a passthrough audience."""
    if not isinstance(item, dict):
        return frozenset()
    if isinstance(attributes := item.get("attributes"), dict):
        return frozenset(attributes) - NOT_AUDIENCES
    if isinstance(data := item.get("data"), dict) and isinstance(data.get("audience_id"), str):
        return frozenset((data["audience_id"],))
    return frozenset((item["list_id"],)) if isinstance(item.get("list_id"), str) else frozenset()


class Faults:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._faults: list[Fault] = []

    def add(self, body: Any) -> Fault:
        """Raise ValueError for unknown names: a misspelt fault would never apply, and its test would pass."""
        when, then = _parts(body)
        with self._lock:
            self._number += 1
            fault = Fault(self._number, when, then, dice=random.Random(when.get("seed", self._number)))
            self._faults.append(fault)
            return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def all(self) -> list[dict[str, Any]]:
        with self._lock:
            return [fault.as_json() for fault in self._faults]

    def strike(self, *, method: str, path: str, body: bytes, items: list[Any]) -> Fault | None:
        """The first fault that applies to a request. At most one does."""
        if not self._faults:
            return None
        with self._lock:
            for fault in self._faults:
                if not fault.is_spent and fault.strikes(method=method, path=path, body=body, items=items):
                    fault.struck += 1
                    return fault
        return None


def _parts(body: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    if not isinstance(body, dict) or set(body) - {"when", "then"} or not isinstance(body.get("then"), dict):
        raise ValueError('a fault is {"when": {...}, "then": {...}}')
    when, then = body.get("when", {}), body["then"]
    for given, known in ((when, WHEN), (then, THEN), (then.get("refuse_items", {}), REFUSE_ITEMS)):
        if unknown := set(given) - known:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    if not then:
        raise ValueError(f"then says nothing; known: {', '.join(sorted(THEN))}")
    if then.get("close", "before") not in ("before", "after", "halfway"):
        raise ValueError("close is before, after or halfway")
    return when, then
