"""Mechanism ``list``: one list per audience, and a real-time audience over membership in that list."""

from collections.abc import Sequence
from typing import Any

import msgspec

from odp import definitions, paths
from odp.client import Client
from odp.mechanisms.base import Change, Look, Refusal, identifiers
from odp.mechanisms.reading import not_shown, read
from odp.mechanisms.stored import Stored
from odp.outcomes import Answer, Outcome


class ListMembership(Stored):
    """A subscription to the list ``lytics_<slug>``: one item per customer and audience."""

    name = "list"
    label = "List membership"
    creates = "the list and the real-time audience"
    store = "the list"
    keeps = "The list stays, without subscribers: ODP can't delete lists."
    path = paths.LIST_SUBSCRIPTIONS
    rate_limit = "lists"
    items_per_change = 1
    time_step_ns = 1
    plain_fields = frozenset({"list_id"})

    def groups(self, changes: Sequence[Change]) -> list[tuple[Change, ...]]:
        return [(change,) for change in changes]

    def items(self, group: tuple[Change, ...]) -> list[dict[str, Any]]:
        (change,) = group
        return [{"list_id": change.odp_id, **identifiers(change.identifier), "subscribed": change.is_member}]

    def read(self, item: dict[str, Any], odp_id: str) -> tuple[str, bool] | None:
        return (item["fs_user_id"], item["subscribed"]) if item.get("list_id") == odp_id else None

    def control(self, change: Change) -> dict[str, Any] | None:
        return None  # a subscription without a list isn't a valid item

    def definition(self, odp_id: str) -> dict[str, Any]:
        return definitions.over(definitions.is_list_member(odp_id))

    def ensure_store(self, client: Client, odp_id: str, label: str, *, seconds: float) -> Answer | Refusal | None:
        return _ensure_list(client, odp_id, seconds=seconds)

    def look_at_store(self, client: Client, odp_id: str, *, seconds: float) -> Answer | Look:
        found = _read_lists(client, odp_id, seconds=seconds)
        if isinstance(found, Answer):
            return found
        if found is None:
            return Look(missing=(f"the list {odp_id}",), lost_members=True)
        return Look(problem=found.reason if isinstance(found, Refusal) else "")


def _ensure_list(client: Client, odp_id: str, *, seconds: float) -> Answer | Refusal | None:
    found = _read_lists(client, odp_id, seconds=seconds)
    if found is None:
        created = client.call("POST", paths.LISTS, body=msgspec.json.encode({"name": odp_id}), seconds=seconds)
        if created.outcome not in (Outcome.DELIVERED, Outcome.REJECTED):
            return created
        found = _read_lists(client, odp_id, seconds=seconds)
        if found is None and created.outcome is Outcome.REJECTED:
            return Refusal(f"The list {odp_id} could not be created: {created.reason}")
        if found is None:
            return not_shown(created, f"the list {odp_id}")
    return found if isinstance(found, Answer | Refusal) else None


def _read_lists(client: Client, odp_id: str, *, seconds: float) -> Any | Answer | Refusal | None:
    """All lists of the account; None when this one isn't among them."""
    found = read(client, paths.LISTS, _list_ids, "The lists", seconds=seconds)
    return None if isinstance(found, frozenset) and odp_id not in found else found


def _list_ids(body: Any) -> frozenset[str] | None:
    lists = body.get("lists") if isinstance(body, dict) else None
    if not isinstance(lists, list):
        return None
    ids = (row.get("list_id") for row in lists if isinstance(row, dict))
    return frozenset(name for name in ids if isinstance(name, str))
