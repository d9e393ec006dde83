"""Real-time segments: install, replace, validate, uninstall, and who is in one."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sandbox.odp.conditions import Evaluate, Invalid, Scope, compile_condition, take
from sandbox.odp.customers import Customer

if TYPE_CHECKING:
    from sandbox.odp.accounts import Account

# The stricter of the two patterns in ODP's guide; ids also serve as GraphQL names.
SEGMENT_ID = re.compile(r"[a-z][a-z0-9_]*\Z", re.IGNORECASE)


@dataclass(slots=True)
class Segment:
    id: str
    description: str
    metadata: dict[str, str]
    definition: dict[str, Any]
    # A passthrough segment has no condition: events say who is in, under this external id.
    condition: Evaluate | None
    external_id: str | None = None
    revision: int = 1

    def as_json(self) -> dict[str, Any]:
        return {
            "revision": self.revision,
            "description": self.description,
            "metadata": self.metadata,
            "definition": self.definition,
        }


def parse_segment(account: "Account", segment_id: str, body: Any) -> Segment:
    """Everything that makes ODP refuse a segment is raised here as Invalid."""
    if not SEGMENT_ID.match(segment_id):
        raise Invalid("segment_id", "must match [a-z][a-z0-9_]*")
    take(body, "segment", ("definition",), ("description", "metadata"))
    description, metadata = body.get("description", ""), body.get("metadata", {})
    if not isinstance(description, str):
        raise Invalid("description", "must be a string")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Invalid("metadata", "must map strings to strings")
    definition = in_snake_case(body["definition"])
    condition, external_id = _read_definition(account, segment_id, definition)
    return Segment(segment_id, description, metadata, definition, condition, external_id)


def in_snake_case(value: Any) -> Any:
    """Protobuf's JSON takes rootCondition for root_condition; constants are left as they are."""
    if isinstance(value, list):
        return [in_snake_case(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {re.sub(r"(?<=[a-z])([A-Z])", r"_\1", key).lower(): in_snake_case(each) for key, each in value.items()}


def _read_definition(account: "Account", segment_id: str, definition: Any) -> tuple[Evaluate | None, str | None]:
    key = account.assumptions.passthrough_key
    if isinstance(definition, dict) and key in definition:
        if not account.passthrough:
            raise Invalid("definition", "passthrough audiences are not enabled for this account")
        inner = take(definition, "definition", (key,))[key]
        external_id = inner.get("audience_id", segment_id) if isinstance(inner, dict) else segment_id
        return None, str(external_id)
    take(definition, "definition", ("root_condition",), ("collections",))
    return compile_condition(definition["root_condition"], "root_condition", _scope(account)), None


def _scope(account: "Account") -> Scope:
    def type_of(name: str) -> str | None:
        known = account.schema.fields.get(name)
        return known.type if known else None

    return Scope(type_of, lambda name: name in account.lists)


def qualifies(account: "Account", segment: Segment, customer: Customer | None, identifier: tuple[str, str]) -> bool:
    """A missing value never qualifies: only a plain true does."""
    if segment.condition is None:
        members = account.passthrough_members.get(identifier, {})
        return members.get(segment.external_id or segment.id, (0.0, False))[1]
    return customer is not None and segment.condition(customer) is True


def members(account: "Account", segment: Segment, kind: str) -> list[str]:
    """Every value of one kind of identifier that qualifies, sorted."""
    if segment.condition is None:
        external = segment.external_id or segment.id
        known = account.passthrough_members.items()
        return sorted(value for (of_kind, value), ids in known if of_kind == kind and ids.get(external, (0, False))[1])
    inside = (customer for customer in account.customers if segment.condition(customer) is True)
    return sorted(value for customer in inside for value in customer.values_of(kind))


def population(account: "Account", segment: Segment) -> int:
    if segment.condition is None:
        external = segment.external_id or segment.id
        return sum(ids.get(external, (0, False))[1] for ids in account.passthrough_members.values())
    return sum(segment.condition(customer) is True for customer in account.customers)
