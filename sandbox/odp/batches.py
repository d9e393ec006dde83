"""What the endpoints that take many items have in common: reading them, and what becomes of the bad ones."""

from typing import Any

from sandbox.odp.answers import Answer, Refused, bad_request, in_json, invalid_items
from sandbox.odp.assumptions import Assumptions
from sandbox.odp.schema import LONGEST_TEXT, VUID, CustomerSchema

MOST_ITEMS = 500

Complaint = tuple[int, str]


def as_items(body: Any, stamp: str, assumptions: Assumptions) -> list[Any]:
    """One object counts as an array of one."""
    items = [body] if isinstance(body, dict) else body
    if not isinstance(items, list) or not items:
        raise Refused(bad_request(stamp, "an object or a non-empty array of objects is expected"))
    if len(items) > MOST_ITEMS:
        message = f"at most {MOST_ITEMS} items are accepted, this call has {len(items)}"
        too_many = {"title": "Payload Too Large", "status": 413, "timestamp": stamp, "detail": {"message": message}}
        raise Refused(in_json(413, too_many) if assumptions.too_many_items == "413" else bad_request(stamp, message))
    return items


def known_identifiers(schema: CustomerSchema, names: dict[str, Any]) -> dict[str, str] | str:
    """The identifiers among `names`, blank ones left out; or what is wrong with them."""
    found = {}
    for kind, value in names.items():
        if kind not in schema.identifiers or value is None or (isinstance(value, str) and not value.strip()):
            continue
        wrong = wrong_with_identifier(kind, value)
        if wrong:
            return wrong
        found[kind] = value
    return found or "at least one known identifier is required"


def wrong_with_identifier(kind: str, value: Any) -> str | None:
    if not isinstance(value, str):
        return f"identifier {kind} must be a string"
    if len(value) > LONGEST_TEXT:
        return f"identifier {kind} must not be longer than {LONGEST_TEXT} characters"
    if kind == "vuid" and not VUID.match(value):
        return "vuid must be 32 hexadecimal characters"
    return None


def sort_out(
    items: list[Any], complaints: list[Complaint], stamp: str, assumptions: Assumptions, *, named: bool = True
) -> tuple[list[Any], Answer | None]:
    """The items to apply, and the answer when it isn't a plain acceptance."""
    if not complaints:
        return items, None
    bad = {at for at, _ in complaints}
    good = [item for at, item in enumerate(items) if at not in bad]
    if assumptions.batch_rejection == "drop":
        return good, None
    named = named and assumptions.bad_items == "named"
    refusal = _naming(complaints, stamp, assumptions) if named else bad_request(stamp, "the request has invalid items")
    return (good if assumptions.batch_rejection == "partial" else []), refusal


def _naming(complaints: list[Complaint], stamp: str, assumptions: Assumptions) -> Answer:
    key = assumptions.invalids_key
    return invalid_items(stamp, [{key: at, "message": message} for at, message in sorted(complaints)])
