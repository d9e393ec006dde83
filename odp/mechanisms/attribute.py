"""Mechanism ``attribute``: one boolean customer field per audience, and a real-time audience over that field."""

from collections.abc import Sequence
from typing import Any

import msgspec

from odp import definitions, paths
from odp.client import Client
from odp.mechanisms.base import Change, Look, Refusal, identifiers
from odp.mechanisms.reading import not_shown, read
from odp.mechanisms.stored import Stored
from odp.outcomes import Answer, Outcome, readable

_FIELDS = "/v3/schema/objects/customers/fields"


class Attribute(Stored):
    """``lytics_<slug>: true|false`` on the customer. All changes of one customer share an item."""

    name = "attribute"
    label = "Customer attribute (one boolean field per audience)"
    creates = "the boolean customer field and the real-time audience"
    store = "the customer field"
    keeps = "The customer field stays, with false for everybody: ODP can't delete fields."
    path = paths.PROFILES
    rate_limit = "profiles"
    items_per_change = 1
    time_step_ns = 1
    plain_fields: frozenset[str] = frozenset()

    def groups(self, changes: Sequence[Change]) -> list[tuple[Change, ...]]:
        by_customer: dict[str, list[Change]] = {}
        for change in changes:
            by_customer.setdefault(change.identifier, []).append(change)
        return [tuple(group) for group in by_customer.values()]

    def items(self, group: tuple[Change, ...]) -> list[dict[str, Any]]:
        attributes: dict[str, Any] = {**identifiers(group[0].identifier)}
        for change in group:
            attributes[change.odp_id] = change.is_member
        return [{"attributes": attributes}]

    def read(self, item: dict[str, Any], odp_id: str) -> tuple[str, bool] | None:
        attributes = item.get("attributes", {})
        return (attributes["fs_user_id"], attributes[odp_id]) if odp_id in attributes else None

    def control(self, change: Change) -> dict[str, Any] | None:
        return {"attributes": identifiers(change.identifier)}

    def definition(self, odp_id: str) -> dict[str, Any]:
        return definitions.over(definitions.field_is_true(odp_id))

    def ensure_store(self, client: Client, odp_id: str, label: str, *, seconds: float) -> Answer | Refusal | None:
        return _ensure_field(client, odp_id, label, seconds=seconds)

    def look_at_store(self, client: Client, odp_id: str, *, seconds: float) -> Answer | Look:
        found = _read_type(client, odp_id, seconds=seconds)
        if isinstance(found, Answer):
            return found
        if found is None:
            return Look(missing=(f"the customer field {odp_id}",), lost_members=True)
        if isinstance(found, Refusal):
            return Look(problem=found.reason)
        # ODP can't change the type of a field: somebody made another one, which has none of our values.
        wrong = _check_type(odp_id, str(found))
        return Look(problem=wrong.reason, lost_members=True) if wrong else Look()


def _ensure_field(client: Client, odp_id: str, label: str, *, seconds: float) -> Answer | Refusal | None:
    created = None
    found = _read_type(client, odp_id, seconds=seconds)
    for display_name in (label, f"{label} ({odp_id})"):
        if found is not None:
            break
        body = {
            "name": odp_id,
            "display_name": display_name,
            "type": "boolean",
            "description": f"Whether the customer is in the Lytics audience {label.removeprefix('Lytics - ')}",
        }
        created = client.call("POST", _FIELDS, body=msgspec.json.encode(body), seconds=seconds)
        if created.outcome not in (Outcome.DELIVERED, Outcome.REJECTED):
            return created
        found = _read_type(client, odp_id, seconds=seconds)
        if found is None and created.outcome is Outcome.DELIVERED:
            return not_shown(created, f"the field {odp_id}")
        # Rejected and still missing: another field may have this display name, so try the longer one.
    if found is None and created is not None:
        return Refusal(f"The field {odp_id} could not be created: {created.reason}")
    return found if isinstance(found, Answer | Refusal) else _check_type(odp_id, str(found))


def _read_type(client: Client, odp_id: str, *, seconds: float) -> Any | Answer | Refusal | None:
    return read(client, f"{_FIELDS}/{odp_id}", _type, f"The field {odp_id}", seconds=seconds)


def _type(field: Any) -> str | None:
    """The type of a field as ODP shows it."""
    found = field.get("type") if isinstance(field, dict) else None
    return found if isinstance(found, str) and found else None


def _check_type(odp_id: str, found: str) -> Refusal | None:
    if found.lower() == "boolean":
        return None
    return Refusal(
        f"The customer field {odp_id} is there with type {readable(found)}, not boolean. Remove or rename what uses it"
        " in ODP."
    )
