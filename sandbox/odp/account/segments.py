"""Checks and parses the body of a real-time segment."""

import re
from typing import Any

from sandbox.odp.account.accounts import Account, Segment
from sandbox.odp.account.conditions import Evaluate, Invalid, Scope, compile_condition, take

# The stricter of the two patterns in ODP's guide; ids also serve as GraphQL names.
SEGMENT_ID = re.compile(r"[a-z][a-z0-9_]*\Z", re.IGNORECASE)


def parse_segment(account: Account, segment_id: str, body: Any) -> Segment:
    """Parse a segment. Raises Invalid for everything that makes ODP refuse it."""
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
    """Convert keys to snake case, because protobuf's JSON accepts both. Values stay as they are."""
    if isinstance(value, list):
        return [in_snake_case(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {re.sub(r"(?<=[a-z])([A-Z])", r"_\1", key).lower(): in_snake_case(each) for key, each in value.items()}


def _read_definition(account: Account, segment_id: str, definition: Any) -> tuple[Evaluate | None, str | None]:
    key = account.assumptions.passthrough_key
    if isinstance(definition, dict) and key in definition:
        if not account.passthrough:
            raise Invalid("definition", "passthrough audiences are not enabled for this account")
        inner = take(definition, "definition", (key,))[key]
        external_id = inner.get("audience_id", segment_id) if isinstance(inner, dict) else segment_id
        return None, str(external_id)
    take(definition, "definition", ("root_condition",), ("collections",))
    return compile_condition(definition["root_condition"], "root_condition", _scope(account)), None


def _scope(account: Account) -> Scope:
    def type_of(name: str) -> str | None:
        known = account.schema.fields.get(name)
        return known.type if known else None

    return Scope(type_of, lambda name: name in account.lists)
