"""The customer schema of an account: fields, identifiers, and the checks of their values."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sandbox.odp.account.assumptions import Assumptions

FIELD_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
FIELD_TYPES = ("string", "number", "timestamp", "boolean", "vector")
LONGEST_TEXT = 1024
IDENTIFIER_SUFFIXES = {
    "_id": " ID",
    "_hash": " Hash",
    "_number": " Number",
    "_token": " Token",
    "_alias": " Alias",
    "_address": " Address",
    "_key": " Key",
}
VUID = re.compile(r"[0-9a-f]{32}\Z")

Invalids = list[dict[str, Any]]
# A bad item: its position in the request, and the reason.
Complaint = tuple[int, str]


@dataclass(slots=True)
class Field:
    name: str
    display_name: str
    type: str
    description: str = ""
    public_read: bool = False
    usable_at: float = 0.0
    built_in: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "display_name": self.display_name,
            "type": self.type,
            "description": self.description,
            "public_read": self.public_read,
        }


@dataclass(slots=True)
class Identifier:
    name: str
    confidence: str
    messaging: bool = False


def standard_fields() -> dict[str, Field]:
    texts = {
        "zaius_id": "ODP ID",
        "email": "Email",
        "phone": "Phone",
        "vuid": "VUID",
        "fs_user_id": "Feature Experimentation User ID",
        "web_user_id": "Web Experimentation User ID",
        "customer_id": "Customer ID",
        "name": "Name",
        "first_name": "First Name",
        "last_name": "Last Name",
        "gender": "Gender",
        "city": "City",
        "state": "State",
        "country": "Country",
        "timezone": "Timezone",
    }
    return {name: Field(name, label, "string", built_in=True) for name, label in texts.items()}


def standard_identifiers() -> dict[str, Identifier]:
    known = [
        Identifier("fs_user_id", "high"),
        Identifier("web_user_id", "high"),
        Identifier("email", "high", messaging=True),
        Identifier("phone", "high", messaging=True),
        Identifier("customer_id", "high"),
        Identifier("vuid", "low"),
    ]
    return {identifier.name: identifier for identifier in known}


@dataclass(slots=True)
class Plan:
    """How to check an item with exactly these field names. The items of a batch share few plans."""

    identifiers: tuple[str, ...] = ()
    checks: tuple[tuple[str, Callable[[Any], Any]], ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class CustomerSchema:
    assumptions: Assumptions
    fields: dict[str, Field] = field(default_factory=standard_fields)
    identifiers: dict[str, Identifier] = field(default_factory=standard_identifiers)
    version: int = 0
    _plans: dict[tuple[str, ...], Plan] = field(default_factory=dict)

    def changed(self) -> None:
        self.version += 1
        self._plans.clear()

    def is_high(self, name: str) -> bool:
        guess: str | None = getattr(self.assumptions, f"{name}_confidence", None)
        return (guess or self.identifiers[name].confidence) == "high"

    def known_identifiers(self, names: dict[str, Any]) -> dict[str, str] | str:
        """The identifiers among `names` that aren't blank, or the reason why they are refused."""
        found = {}
        for kind, value in names.items():
            if kind not in self.identifiers or value is None or (isinstance(value, str) and not value.strip()):
                continue
            wrong = wrong_with_identifier(kind, value)
            if wrong:
                return wrong
            found[kind] = value
        return found or "at least one known identifier is required"

    def plan(self, names: tuple[str, ...], now: float) -> Plan:
        plan = self._plans.get(names)
        if plan is None:
            plan = self._make_plan(names, now)
            # Don't cache a plan with an unknown field: the field may become usable as time passes.
            if not plan.unknown and len(self._plans) < 10_000:
                self._plans[names] = plan
        return plan

    def _make_plan(self, names: tuple[str, ...], now: float) -> Plan:
        identifiers = tuple(name for name in names if name in self.identifiers)
        unknown = tuple(name for name in names if name not in self.identifiers and not self._usable(name, now))
        plain = [name for name in names if name not in identifiers and name not in unknown]
        return Plan(identifiers, tuple((name, CHECKS[self.fields[name].type]) for name in plain), unknown)

    def _usable(self, name: str, now: float) -> bool:
        return name in self.fields and self.fields[name].usable_at <= now

    def make_field(self, body: Any, now: float) -> Field | Invalids:
        if not isinstance(body, dict):
            return [{"field": "name", "reason": "is required"}]
        return list(self._wrong_with_field(body)) or Field(
            name=body["name"],
            display_name=body["display_name"],
            type=body["type"],
            description=str(body.get("description") or ""),
            public_read=body.get("public_read") is True,
            usable_at=now + self.assumptions.field_delay_seconds,
        )

    def put_field(self, made: Field) -> None:
        self.fields[made.name] = made
        self.changed()

    def _wrong_with_field(self, body: dict[str, Any]) -> Iterable[dict[str, Any]]:
        yield from self._wrong_with_names(body, "name", "display_name")
        if body.get("type") not in FIELD_TYPES:
            yield {"field": "type", "reason": f"must be one of {', '.join(FIELD_TYPES)}"}
        if not isinstance(body.get("public_read", False), bool):
            yield {"field": "public_read", "reason": "must be a boolean"}
        custom = sum(not each.built_in for each in self.fields.values())
        if 0 < self.assumptions.field_limit <= custom:
            yield {"field": "name", "reason": "the account has no room for another field"}

    def _wrong_with_names(self, body: dict[str, Any], name_key: str, display_key: str) -> Iterable[dict[str, Any]]:
        name, display_name = body.get("name"), body.get("display_name")
        if not isinstance(name, str) or not FIELD_NAME.match(name):
            yield {"field": name_key, "reason": "must be lower snake case and start with a letter"}
        elif name in self.fields:
            yield {"field": name_key, "reason": ["already used by another field"]}
        if not isinstance(display_name, str) or not display_name.strip():
            yield {"field": display_key, "reason": "is required"}
        elif any(each.display_name == display_name for each in self.fields.values()):
            yield {"field": display_key, "reason": ["already used by another field"]}

    def make_identifier(self, body: Any) -> tuple[Identifier, Field] | Invalids:
        """A new identifier, and the customer field that belongs to it."""
        if not isinstance(body, dict):
            return [{"field": "name", "reason": "is required"}]
        return list(self._wrong_with_identifier(body)) or (
            Identifier(body["name"], body["merge_confidence"], body.get("messaging") is True),
            Field(body["name"], body["display_name"], "string"),
        )

    def _wrong_with_identifier(self, body: dict[str, Any]) -> Iterable[dict[str, Any]]:
        yield from self._wrong_with_names(body, "customers.name", "customers.display_name")
        name, display_name = str(body.get("name")), str(body.get("display_name"))
        word = next((word for suffix, word in IDENTIFIER_SUFFIXES.items() if name.endswith(suffix)), None)
        if word is None:
            yield {"field": "name", "reason": f"must end with one of {', '.join(IDENTIFIER_SUFFIXES)}"}
        elif not display_name.endswith(word):
            yield {"field": "display_name", "reason": f"must end with{word}"}
        if body.get("merge_confidence") not in ("low", "high"):
            yield {"field": "merge_confidence", "reason": "must be low or high"}


def wrong_with_identifier(kind: str, value: Any) -> str | None:
    if not isinstance(value, str):
        return f"identifier {kind} must be a string"
    if len(value) > LONGEST_TEXT:
        return f"identifier {kind} must not be longer than {LONGEST_TEXT} characters"
    if kind == "vuid" and not VUID.match(value):
        return "vuid must be 32 hexadecimal characters"
    return None


def checked_text(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("must be a string")  # noqa: TRY004 - the value comes from a request's JSON
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"must not be longer than {LONGEST_TEXT} characters")
    return value


def checked_number(value: Any) -> Any:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError("must be a number")
    return value


def checked_boolean(value: Any) -> Any:
    if value is None or value is True or value is False:
        return value
    if not isinstance(value, (int, float)) or value not in (0, 1):
        raise ValueError("must be a boolean")
    return value == 1


def checked_timestamp(value: Any) -> Any:
    """Epoch seconds, from a number or an ISO 8601 text."""
    if not isinstance(value, str):
        return checked_number(value)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as bad:
        raise ValueError("must be epoch seconds or an ISO 8601 timestamp") from bad
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def checked_vector(value: Any) -> Any:
    if value is not None and (
        not isinstance(value, list) or any(isinstance(each, (str, dict, list)) for each in value)
    ):
        raise ValueError("must be an array of numbers")
    return value


CHECKS: dict[str, Callable[[Any], Any]] = {
    "string": checked_text,
    "number": checked_number,
    "boolean": checked_boolean,
    "timestamp": checked_timestamp,
    "vector": checked_vector,
}
