"""The mechanisms with an object in ODP that holds the memberships, and a real-time audience over that object."""

from typing import Any

from odp import definitions
from odp.client import Client
from odp.mechanisms.base import Look, Refusal
from odp.mechanisms.segments import ensure_segment, look_at_segment, remove_segment
from odp.outcomes import Answer


class Stored:
    """The methods that these mechanisms share. A subclass defines the object, and the real-time audience over it."""

    def definition(self, odp_id: str) -> dict[str, Any]:
        raise NotImplementedError

    def ensure_store(self, client: Client, odp_id: str, label: str, *, seconds: float) -> Answer | Refusal | None:
        raise NotImplementedError

    def look_at_store(self, client: Client, odp_id: str, *, seconds: float) -> Answer | Look:
        """Read whether ODP has the object, and whether it can hold memberships."""
        raise NotImplementedError

    def ensure(
        self, client: Client, odp_id: str, label: str, *, seconds: float, accepted: str = "", replaced: str = ""
    ) -> Answer | Refusal | None:
        failed = self.ensure_store(client, odp_id, label, seconds=seconds)
        return failed or ensure_segment(
            client, odp_id, label, self.definition(odp_id), seconds=seconds, accepted=accepted, replaced=replaced
        )

    def look(self, client: Client, odp_id: str, *, seconds: float, accepted: str = "") -> Answer | Look:
        store = self.look_at_store(client, odp_id, seconds=seconds)
        if isinstance(store, Answer):
            return store
        return look_at_segment(client, odp_id, self.definition(odp_id), store, seconds=seconds, accepted=accepted)

    def remove(self, client: Client, odp_id: str, *, seconds: float, accepted: str = "") -> Answer | Refusal | None:
        ours = self.definition(odp_id)
        return remove_segment(
            client, odp_id, lambda found: definitions.same(ours, found), seconds=seconds, accepted=accepted
        )
