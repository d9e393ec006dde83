"""Real-time segments: install, replace, validate, uninstall, and who is in one."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sandbox.odp.customers import Customer
from sandbox.odp.expressions import Evaluate, Invalid, Scope, compile_filter, joined, not_empty, only_member, take
from sandbox.odp.sequences import compile_sequence_condition

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
    scope, now = customer_scope(account), account.clock.now
    return _compile_condition(definition["root_condition"], "root_condition", scope, now), None


def customer_scope(account: "Account") -> Scope:
    def type_of(name: str) -> str | None:
        known = account.schema.fields.get(name)
        return known.type if known else None

    def read(name: str) -> Evaluate:
        if name == "zaius_id":
            return lambda customer: customer.zaius_id
        return lambda customer: customer.record.get(name)

    return Scope("customer", type_of, read, lambda name: name in account.lists, _list_membership)


def _list_membership(list_id: str) -> Evaluate:
    def is_member(customer: Customer) -> bool:
        subscribed, _, consented = (customer.lists or {}).get(list_id, (False, 0.0, False))
        return subscribed and consented

    return is_member


def _compile_condition(body: Any, where: str, scope: Scope, now: Callable[[], float]) -> Evaluate:
    name, value = only_member(body, where, ("combination", "customer_condition", "sequence_condition"))
    inner = f"{where}.{name}"
    if name == "customer_condition":
        take(value, inner, ("customer_filter",))
        return compile_filter(value["customer_filter"], f"{inner}.customer_filter", scope)
    if name == "sequence_condition":
        return compile_sequence_condition(value, inner, now)
    take(value, inner, ("conjunction", "conditions"))
    parts = not_empty(value["conditions"], f"{inner}.conditions")
    compiled = [_compile_condition(each, f"{inner}.conditions[{at}]", scope, now) for at, each in enumerate(parts)]
    return joined(value["conjunction"], compiled, inner)


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
