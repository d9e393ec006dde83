"""Mechanism ``passthrough``: ODP's own events for audiences that are computed outside ODP."""

from collections.abc import Sequence
from typing import Any

from odp import definitions, paths
from odp.client import Client
from odp.mechanisms.base import Change, Look, Refusal, identifiers
from odp.mechanisms.segments import ensure_segment, foreign_definition, look_at_segment, read_definition, remove_segment
from odp.outcomes import Answer


class Passthrough:
    """``qualify`` and ``disqualify`` events. An event holds one identifier, so a change becomes two events.

    ODP doesn't publish the body that creates a passthrough audience. ``definition`` is that body, from the setting
    ``ODP_PASSTHROUGH_DEFINITION``; without it the audience must exist in ODP already.
    """

    name = "passthrough"
    label = "Passthrough audience (must be enabled for the ODP account)"
    creates = "the passthrough audience"
    store = ""
    keeps = "Nothing else of it is kept in ODP."
    path = paths.EVENTS
    rate_limit = ""  # ODP documents none for events
    items_per_change = 2
    time_step_ns = 1_000_000_000  # its ts are seconds
    plain_fields = frozenset({"type", "action", "audience_id"})

    def __init__(self, definition: dict[str, Any] | None = None) -> None:
        self._definition = definition

    def groups(self, changes: Sequence[Change]) -> list[tuple[Change, ...]]:
        return [(change,) for change in changes]

    def items(self, group: tuple[Change, ...]) -> list[dict[str, Any]]:
        (change,) = group
        event = {
            "type": "passthrough",
            "action": "qualify" if change.is_member else "disqualify",
            "data": {"audience_id": change.odp_id, "ts": change.occurred_ns // 1_000_000_000},
        }
        return [{**event, "identifiers": {name: value}} for name, value in identifiers(change.identifier).items()]

    def read(self, item: dict[str, Any], odp_id: str) -> tuple[str, bool] | None:
        names = item.get("identifiers", {})
        if item.get("data", {}).get("audience_id") == odp_id and "fs_user_id" in names:
            return names["fs_user_id"], item["action"] == "qualify"
        return None

    def control(self, change: Change) -> dict[str, Any] | None:
        return None  # an event without an audience isn't a valid item

    def definition(self, odp_id: str) -> dict[str, Any] | None:
        return self._definition

    def ensure_store(self, client: Client, odp_id: str, label: str, *, seconds: float) -> Answer | Refusal | None:
        return None

    def ensure(
        self, client: Client, odp_id: str, label: str, *, seconds: float, accepted: str = "", replaced: str = ""
    ) -> Answer | Refusal | None:
        if self._definition is not None:
            return ensure_segment(
                client, odp_id, label, self._definition, seconds=seconds, accepted=accepted, replaced=replaced
            )
        found = read_definition(client, odp_id, seconds=seconds)
        if found is None:
            return Refusal(
                f"The passthrough audience {odp_id} does not exist in ODP, and ODP does not document how to create one."
                " Create it in ODP, or set ODP_PASSTHROUGH_DEFINITION; then press Unblock."
            )
        if isinstance(found, Answer | Refusal):
            return found
        if _is_of_another(odp_id, found) and definitions.digest(found) != accepted:
            return foreign_definition(odp_id, found, "a passthrough audience")
        return None

    def look(self, client: Client, odp_id: str, *, seconds: float, accepted: str = "") -> Answer | Look:
        """Where memberships are stored isn't published: a missing audience has lost them."""
        if self._definition is not None:
            found = look_at_segment(client, odp_id, self._definition, Look(), seconds=seconds, accepted=accepted)
            return found._replace(lost_members=bool(found.missing)) if isinstance(found, Look) else found
        read = read_definition(client, odp_id, seconds=seconds)
        if isinstance(read, Answer):
            return read
        if isinstance(read, Refusal):
            return Look(problem=read.reason)
        if read is None:
            return Look(missing=(f"the audience {odp_id}",), lost_members=True)
        if _is_of_another(odp_id, read) and definitions.digest(read) != accepted:
            found_in_words, ours = definitions.in_words(read), "a passthrough audience"
            return Look(found=found_in_words, ours=ours, definition=definitions.digest(read))
        return Look()

    def remove(self, client: Client, odp_id: str, *, seconds: float, accepted: str = "") -> Answer | Refusal | None:
        def is_ours(found: Any) -> bool:
            if self._definition is not None:
                return definitions.same(self._definition, found)
            return not _is_of_another(odp_id, found)

        return remove_segment(client, odp_id, is_ours, seconds=seconds, accepted=accepted)


def _is_of_another(odp_id: str, found: Any) -> bool:
    """Whether another mechanism would write this definition.

    What a passthrough audience looks like is not published, so any other definition is taken for one.
    """
    others = (definitions.field_is_true(odp_id), definitions.is_list_member(odp_id))
    return any(definitions.same(definitions.over(other), found) for other in others)
