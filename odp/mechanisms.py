"""How "this customer is in this Lytics audience" is written in ODP: three strategies behind one interface.

``attribute`` is one boolean customer field per audience and a real-time segment over it, ``list`` a list and a
segment over membership in it, ``passthrough`` ODP's own events for audiences computed elsewhere. Which of them the
hosted app uses is not known; the segment's id, name and description are the same in all three.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from odp.client import LIST_SUBSCRIPTIONS, Client
from odp.outcomes import Answer, Outcome


class Change(NamedTuple):
    """One identifier's absolute state in one audience. ``lane`` is the caller's key for the audience."""

    lane: int
    odp_id: str
    identifier: str
    is_member: bool
    occurred_ns: int
    sequence: int


class Refusal(NamedTuple):
    """ODP can't hold this audience; a person has to act."""

    reason: str


class Mechanism(Protocol):
    """A strategy. ``path`` is where its changes go."""

    path: str
    items_per_change: int

    def groups(self, changes: Sequence[Change]) -> list[tuple[Change, ...]]:
        """Changes that go into one item together."""
        ...

    def items(self, group: tuple[Change, ...]) -> list[dict[str, Any]]:
        """The items of a request for one group: always the same number for groups of one mechanism."""
        ...

    def control(self, change: Change) -> dict[str, Any] | None:
        """An item that names the same customer and no audience, to tell which of the two ODP refuses."""
        ...

    def ensure(self, client: Client, odp_id: str, label: str, *, seconds: float) -> Answer | Refusal | None:
        """Make what the audience needs in ODP. None when all is there; an ``Answer`` to retry on; or a ``Refusal``."""
        ...


def encode(items: Sequence[dict[str, Any]]) -> bytes:
    return msgspec.json.encode(items)


def told(item: dict[str, Any], odp_id: str) -> tuple[str, bool] | None:
    """What an item of a request says of an audience: of which customer, and whether a member. None for another's."""
    attributes, data, names = item.get("attributes", {}), item.get("data", {}), item.get("identifiers", {})
    if odp_id in attributes:
        return attributes["fs_user_id"], attributes[odp_id]
    if item.get("list_id") == odp_id:
        return item["fs_user_id"], item["subscribed"]
    if data.get("audience_id") == odp_id and "fs_user_id" in names:
        return names["fs_user_id"], item["action"] == "qualify"
    return None


def _identifiers(identifier: str) -> dict[str, str]:
    """Feature Experimentation looks customers up by the one name, Web Experimentation by the other."""
    return {"fs_user_id": identifier, "web_user_id": identifier}


class Attribute:
    """``lytics_<slug>: true|false`` on the customer. Changes of one customer share an item."""

    path = "/v3/profiles"
    items_per_change = 1

    def groups(self, changes: Sequence[Change]) -> list[tuple[Change, ...]]:
        by_customer: dict[str, list[Change]] = {}
        for change in changes:
            by_customer.setdefault(change.identifier, []).append(change)
        return [tuple(group) for group in by_customer.values()]

    def items(self, group: tuple[Change, ...]) -> list[dict[str, Any]]:
        attributes: dict[str, Any] = {**_identifiers(group[0].identifier)}
        for change in group:
            attributes[change.odp_id] = change.is_member
        return [{"attributes": attributes}]

    def control(self, change: Change) -> dict[str, Any] | None:
        return {"attributes": _identifiers(change.identifier)}

    def ensure(self, client: Client, odp_id: str, label: str, *, seconds: float) -> Answer | Refusal | None:
        problem = _ensure_field(client, odp_id, label, seconds=seconds)
        return problem or _ensure_segment(client, odp_id, label, _field_is_true(odp_id), seconds=seconds)


class ListMembership:
    """A subscription to the list ``lytics_<slug>``: one item per customer and audience."""

    path = LIST_SUBSCRIPTIONS
    items_per_change = 1

    def groups(self, changes: Sequence[Change]) -> list[tuple[Change, ...]]:
        return [(change,) for change in changes]

    def items(self, group: tuple[Change, ...]) -> list[dict[str, Any]]:
        (change,) = group
        return [{"list_id": change.odp_id, **_identifiers(change.identifier), "subscribed": change.is_member}]

    def control(self, change: Change) -> dict[str, Any] | None:
        return None

    def ensure(self, client: Client, odp_id: str, label: str, *, seconds: float) -> Answer | Refusal | None:
        problem = _ensure_list(client, odp_id, seconds=seconds)
        condition = {"is_list_member": {"list": odp_id}}
        return problem or _ensure_segment(client, odp_id, label, condition, seconds=seconds)


class Passthrough:
    """``qualify`` and ``disqualify`` events. Each may hold one identifier only, so a change is two of them.

    The body that creates a passthrough audience is not published, so ours must be told one (``definition``), or find
    the audience there.
    """

    path = "/v3/events"
    items_per_change = 2

    def __init__(self, definition: dict[str, Any] | None = None) -> None:
        self.definition = definition

    def groups(self, changes: Sequence[Change]) -> list[tuple[Change, ...]]:
        return [(change,) for change in changes]

    def items(self, group: tuple[Change, ...]) -> list[dict[str, Any]]:
        (change,) = group
        event = {
            "type": "passthrough",
            "action": "qualify" if change.is_member else "disqualify",
            "data": {"audience_id": change.odp_id, "ts": change.occurred_ns // 1_000_000_000},
        }
        return [{**event, "identifiers": {name: value}} for name, value in _identifiers(change.identifier).items()]

    def control(self, change: Change) -> dict[str, Any] | None:
        return None

    def ensure(self, client: Client, odp_id: str, label: str, *, seconds: float) -> Answer | Refusal | None:
        if self.definition is not None:
            return _ensure_segment(client, odp_id, label, None, seconds=seconds, definition=self.definition)
        found = client.call("GET", f"/v3/segments/{odp_id}", seconds=seconds)
        if found.status == 404:
            return Refusal(
                f"The passthrough audience {odp_id} is not there, and how to create one is not documented:"
                " create it in ODP, or set ODP_PASSTHROUGH_DEFINITION."
            )
        return _problem(found, f"The audience {odp_id} could not be read")


def mechanism(name: str, *, passthrough_definition: dict[str, Any] | None = None) -> Mechanism:
    """The strategy with that name: ``attribute``, ``list`` or ``passthrough``. Raises ``KeyError`` for another."""
    strategies: dict[str, Mechanism] = {
        "attribute": Attribute(),
        "list": ListMembership(),
        "passthrough": Passthrough(passthrough_definition),
    }
    return strategies[name]


def _field_is_true(odp_id: str) -> dict[str, Any]:
    return {
        "comparison": {
            "lhs": {"path_reference": {"value": f"customer.{odp_id}"}},
            "comparator": "EQUAL",
            "rhs": {"boolean_literal": {"value": True}},
        }
    }


def _problem(answer: Answer, doing: str) -> Answer | Refusal | None:
    if answer.outcome is Outcome.DELIVERED:
        return None
    return Refusal(f"{doing}: {answer.reason}") if answer.outcome is Outcome.REFUSED else answer


def _ensure_field(client: Client, odp_id: str, label: str, *, seconds: float) -> Answer | Refusal | None:
    """Creating comes first: "already there" is the common second answer, and then the type has to be right."""
    fields = "/v3/schema/objects/customers/fields"
    for display_name in (label, f"{label} ({odp_id})"):
        body = {
            "name": odp_id,
            "display_name": display_name,
            "type": "boolean",
            "description": f"Whether the customer is in the Lytics audience {label.removeprefix('Lytics - ')}",
        }
        created = client.call("POST", fields, body=msgspec.json.encode(body), seconds=seconds)
        if created.outcome is not Outcome.REFUSED:
            return _problem(created, f"The field {odp_id} could not be created")
        existing = client.call("GET", f"{fields}/{odp_id}", seconds=seconds)
        if existing.status != 404:
            return _problem(existing, f"The field {odp_id} could not be read") or _wrong_type(odp_id, existing.json)
        # Not there and yet refused: its display name may be taken by another field, so try a longer one.
    return Refusal(f"The field {odp_id} could not be created: {created.reason}")


def _wrong_type(odp_id: str, field: Any) -> Refusal | None:
    found = field.get("type") if isinstance(field, dict) else None
    if found == "boolean":
        return None
    return Refusal(
        f"The customer field {odp_id} is there with type {found or 'unknown'}, not boolean."
        " Remove or rename what uses it in ODP, then unblock this audience."
    )


def _ensure_list(client: Client, odp_id: str, *, seconds: float) -> Answer | Refusal | None:
    body = msgspec.json.encode({"name": odp_id})
    created = client.call("POST", "/v3/lists", body=body, seconds=seconds)
    if created.outcome is not Outcome.REFUSED:
        return _problem(created, f"The list {odp_id} could not be created")
    listed = client.call("GET", "/v3/lists", seconds=seconds)
    problem = _problem(listed, "The lists could not be read")
    lists = listed.json.get("lists", []) if isinstance(listed.json, dict) else []
    if problem or any(isinstance(row, dict) and row.get("list_id") == odp_id for row in lists):
        return problem
    return Refusal(f"The list {odp_id} could not be created: {created.reason}")


def _ensure_segment(
    client: Client,
    odp_id: str,
    label: str,
    condition: dict[str, Any] | None,
    *,
    seconds: float,
    definition: dict[str, Any] | None = None,
) -> Answer | Refusal | None:
    """PUT replaces, and a customer may have changed the audience since: look first, write only when it is missing."""
    path = f"/v3/segments/{odp_id}"
    found = client.call("GET", path, seconds=seconds)
    if found.status != 404:
        return _problem(found, f"The audience {odp_id} could not be read")
    body = {
        "description": label,
        "metadata": {"display_name": label},
        "definition": definition or {"root_condition": {"customer_condition": {"customer_filter": condition}}},
    }
    created = client.call("PUT", path, body=msgspec.json.encode(body), seconds=seconds)
    return _problem(created, f"The audience {odp_id} could not be created")
