"""How "this customer is in this Lytics audience" is written in ODP: three strategies behind one interface.

``attribute`` is one boolean customer field per audience and a real-time segment over it, ``list`` a list and a
segment over membership in it, ``passthrough`` ODP's own events for audiences computed elsewhere. Which of them the
hosted app uses is not known; the segment's id, name and description are the same in all three.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import msgspec

from odp import definitions
from odp.acceptance import LIST_SUBSCRIPTIONS
from odp.client import Client
from odp.outcomes import Answer, Outcome


class Change(NamedTuple):
    """One identifier's absolute state in one audience. ``lane`` is the caller's key for the audience."""

    lane: int
    odp_id: str
    identifier: str
    is_member: bool
    occurred_ns: int
    sequence: int


# How a reason goes on that quotes a definition, and no customer.
ANOTHER_DEFINITION = "is in ODP with another definition. ODP has"


class Refusal(NamedTuple):
    """ODP can't hold this audience; a person has to act. ``definition`` is the digest of one that isn't ours."""

    reason: str
    definition: str = ""


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

    def ensure(
        self, client: Client, odp_id: str, label: str, *, seconds: float, accepted: str = ""
    ) -> Answer | Refusal | None:
        """Make what the audience needs in ODP: None when ODP shows it, an ``Answer`` to retry on, or a ``Refusal``.

        What is there already is never overwritten. A definition that isn't ours is refused, unless ``accepted`` is its
        digest.
        """
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

    def ensure(
        self, client: Client, odp_id: str, label: str, *, seconds: float, accepted: str = ""
    ) -> Answer | Refusal | None:
        problem = _ensure_field(client, odp_id, label, seconds=seconds)
        ours = definitions.over(definitions.field_is_true(odp_id))
        return problem or _ensure_segment(client, odp_id, label, ours, seconds=seconds, accepted=accepted)


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

    def ensure(
        self, client: Client, odp_id: str, label: str, *, seconds: float, accepted: str = ""
    ) -> Answer | Refusal | None:
        problem = _ensure_list(client, odp_id, seconds=seconds)
        ours = definitions.over(definitions.is_list_member(odp_id))
        return problem or _ensure_segment(client, odp_id, label, ours, seconds=seconds, accepted=accepted)


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

    def ensure(
        self, client: Client, odp_id: str, label: str, *, seconds: float, accepted: str = ""
    ) -> Answer | Refusal | None:
        if self.definition is not None:
            return _ensure_segment(client, odp_id, label, self.definition, seconds=seconds, accepted=accepted)
        found = _read(client, f"/v3/segments/{odp_id}", _definition, f"The audience {odp_id}", seconds=seconds)
        if found is None:
            return Refusal(
                f"The passthrough audience {odp_id} is not there, and how to create one is not documented:"
                " create it in ODP, or set ODP_PASSTHROUGH_DEFINITION."
            )
        if isinstance(found, Answer | Refusal):
            return found
        # What a passthrough audience looks like is not published; what the other two mechanisms write is known.
        others = (definitions.field_is_true(odp_id), definitions.is_list_member(odp_id))
        foreign = any(definitions.same(definitions.over(other), found) for other in others)
        foreign = foreign and definitions.digest(found) != accepted
        return _foreign(odp_id, found, "a passthrough audience") if foreign else None


def mechanism(name: str, *, passthrough_definition: dict[str, Any] | None = None) -> Mechanism:
    """The strategy with that name: ``attribute``, ``list`` or ``passthrough``. Raises ``KeyError`` for another."""
    strategies: dict[str, Mechanism] = {
        "attribute": Attribute(),
        "list": ListMembership(),
        "passthrough": Passthrough(passthrough_definition),
    }
    return strategies[name]


def _problem(answer: Answer, doing: str) -> Answer | Refusal | None:
    if answer.outcome is Outcome.DELIVERED:
        return None
    return Refusal(f"{doing}: {answer.reason}") if answer.outcome is Outcome.REFUSED else answer


def _later(answer: Answer, words: str, *, slow: bool) -> Answer:
    """An answer that says it went well and shows that it didn't."""
    return replace(answer, outcome=Outcome.RETRY_LATER, reason=words, slow_probe=slow)


def _read(
    client: Client, path: str, understand: Callable[[Any], Any], what: str, *, seconds: float
) -> Any | Answer | Refusal | None:
    """What ODP shows of a thing, as ``understand`` makes it of the body; None when it says that the thing isn't there.

    A body that can't be understood is not ODP's: a proxy's page, another service. Nothing is concluded from it.
    """
    found = client.call("GET", path, seconds=seconds)
    # The specification leaves the body of this 404 open. A page of text is a proxy's, or that of another service.
    if found.status == 404 and (found.json is not None or not found.text.strip()):
        return None
    if (problem := _problem(found, f"{what} could not be read")) is not None:
        return problem
    shown = understand(found.json)
    if shown is None:
        return _later(found, f"{what} could not be read: {found.status} came without what ODP shows of it", slow=True)
    return shown


def _not_shown(answer: Answer, what: str) -> Answer:
    return _later(answer, f"ODP answered {answer.status} to creating {what} and does not show it", slow=False)


def _ensure_field(client: Client, odp_id: str, label: str, *, seconds: float) -> Answer | Refusal | None:
    fields = "/v3/schema/objects/customers/fields"

    def shown() -> Any | Answer | Refusal | None:
        return _read(client, f"{fields}/{odp_id}", _type, f"The field {odp_id}", seconds=seconds)

    created = None
    found = shown()
    for display_name in (label, f"{label} ({odp_id})"):
        if found is not None:
            break
        body = {
            "name": odp_id,
            "display_name": display_name,
            "type": "boolean",
            "description": f"Whether the customer is in the Lytics audience {label.removeprefix('Lytics - ')}",
        }
        created = client.call("POST", fields, body=msgspec.json.encode(body), seconds=seconds)
        if created.outcome not in (Outcome.DELIVERED, Outcome.REFUSED):
            return created
        found = shown()
        if found is None and created.outcome is Outcome.DELIVERED:
            return _not_shown(created, f"the field {odp_id}")
        # Not there and yet refused: its display name may be taken by another field, so try a longer one.
    if found is None and created is not None:
        return Refusal(f"The field {odp_id} could not be created: {created.reason}")
    return found if isinstance(found, Answer | Refusal) else _wrong_type(odp_id, str(found))


def _type(field: Any) -> str | None:
    """The type of a field that ODP shows."""
    found = field.get("type") if isinstance(field, dict) else None
    return found if isinstance(found, str) and found else None


def _wrong_type(odp_id: str, found: str) -> Refusal | None:
    if found.lower() == "boolean":
        return None
    return Refusal(
        f"The customer field {odp_id} is there with type {found}, not boolean."
        " Remove or rename what uses it in ODP, then unblock this audience."
    )


def _ensure_list(client: Client, odp_id: str, *, seconds: float) -> Answer | Refusal | None:
    def shown() -> Any | Answer | Refusal | None:
        found = _read(client, "/v3/lists", _list_ids, "The lists", seconds=seconds)
        return None if isinstance(found, frozenset) and odp_id not in found else found

    found = shown()
    if found is None:
        created = client.call("POST", "/v3/lists", body=msgspec.json.encode({"name": odp_id}), seconds=seconds)
        if created.outcome not in (Outcome.DELIVERED, Outcome.REFUSED):
            return created
        found = shown()
        if found is None and created.outcome is Outcome.REFUSED:
            return Refusal(f"The list {odp_id} could not be created: {created.reason}")
        if found is None:
            return _not_shown(created, f"the list {odp_id}")
    return found if isinstance(found, Answer | Refusal) else None


def _list_ids(body: Any) -> frozenset[str] | None:
    lists = body.get("lists") if isinstance(body, dict) else None
    if not isinstance(lists, list):
        return None
    ids = (row.get("list_id") for row in lists if isinstance(row, dict))
    return frozenset(name for name in ids if isinstance(name, str))


def _ensure_segment(
    client: Client, odp_id: str, label: str, ours: dict[str, Any], *, seconds: float, accepted: str
) -> Answer | Refusal | None:
    """PUT replaces, and a customer may have changed the audience since: look first, write only when it is missing."""
    path, what = f"/v3/segments/{odp_id}", f"The audience {odp_id}"
    found = _read(client, path, _definition, what, seconds=seconds)
    if found is None:
        body = {"description": label, "metadata": {"display_name": label}, "definition": ours}
        created = client.call("PUT", path, body=msgspec.json.encode(body), seconds=seconds)
        if (problem := _problem(created, f"{what} could not be created")) is not None:
            return problem
        found = _read(client, path, _definition, what, seconds=seconds)
        if found is None:
            return _not_shown(created, f"the audience {odp_id}")
    if isinstance(found, Answer | Refusal):
        return found
    if definitions.same(ours, found) or definitions.digest(found) == accepted:
        return None
    return _foreign(odp_id, found, definitions.in_words(ours))


def _definition(segment: Any) -> Any | None:
    """The definition of an audience that ODP shows."""
    return (segment.get("definition") or None) if isinstance(segment, dict) else None


def _foreign(odp_id: str, found: Any, ours: str) -> Refusal:
    return Refusal(
        f"The audience {odp_id} {ANOTHER_DEFINITION} {definitions.in_words(found)}; this service"
        f" would write {ours}. It is never overwritten. Delete it in ODP and press Unblock, so that it is made anew; or"
        " press Accept definition, if it is right as it is.",
        definition=definitions.digest(found),
    )
