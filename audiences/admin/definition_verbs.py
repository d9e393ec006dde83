"""The buttons for a definition in ODP that this service didn't write: accept it, or replace it by ours."""

from collections.abc import Callable
from typing import Any

from django.db import transaction

from audiences.admin.audience_verbs import once_resumed
from audiences.admin.pages import number
from audiences.admin.verbs import Verb
from audiences.delivery import holds, provision
from audiences.insight import state
from audiences.models import Audience
from audiences.operations import twins
from audiences.wake import wake


class _Decision(Verb[Audience]):
    """A decision about the definition found in ODP. A change of that definition makes the button's page outdated."""

    permission = "audiences.unblock_audience"

    def offered(self, audience: Audience) -> bool:
        return bool(audience.foreign_definition)

    def seen(self, audience: Audience) -> str:
        return f"{audience.foreign_definition} {audience.lane.blocked_at}"


class AcceptDefinition(_Decision):
    """Accept a definition in ODP that this service didn't write."""

    name, label, icon = "accept", "Accept definition", "fact_check"

    def consequence(self, audience: Audience) -> str:
        return (
            f"The definition that {audience} has in ODP stays as it is, and the"
            f" {number(state.backlog(audience.lane))} waiting events are sent{once_resumed(audience)}. Whether ODP"
            f" counts the customers as members then depends on that definition. {_definitions(audience)}"
        )

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        return _decided(
            audience,
            provision.accept,
            f"Accepted the definition of {audience} in ODP.",
        )


class TakeOurs(_Decision):
    """Replace a definition in ODP that this service didn't write by its own."""

    name, label, icon = "take-ours", "Take ours", "published_with_changes"

    def consequence(self, audience: Audience) -> str:
        return (
            f"The definition that {audience} has in ODP is replaced by the one that this service writes. The person who"
            f" changed it loses that change, and ODP counts the customers by ours. {_definitions(audience)} If ODP"
            " has yet another definition by then, nothing is replaced."
        )

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        return _decided(
            audience,
            provision.replace,
            f"The definition of {audience} in ODP is being replaced by ours.",
        )


def _definitions(audience: Audience) -> str:
    """Both definitions in words, from the last look or from the reason of the block."""
    if audience.lane.blocked_at is not None:
        return audience.lane.block_reason
    twin = twins.of(audience)
    return f"ODP has {twin.found}; ours is {twin.ours}." if twin and twin.found else ""


def _decided(audience: Audience, decide: Callable[[int, str], bool], words: str) -> str | None:
    """Store what a person decided about the foreign definition, lift the block if there is one, and look again."""
    with transaction.atomic():
        is_free = audience.lane.blocked_at is None or holds.unblock(audience.lane)
        if not is_free or not decide(audience.pk, audience.foreign_definition):
            transaction.set_rollback(True)
            return None
        provision.look_again(audience.pk)
        twins.forget(audience)
    wake(audience.install_id)
    return words
