"""The buttons Retire, Retire all audiences, Take back, and Reuse the retired id."""

from typing import Any

from audiences.admin.pages import count, number
from audiences.admin.resends import when
from audiences.admin.verbs import AskReason, Verb
from audiences.delivery import shared_ids
from audiences.insight import state
from audiences.models import Audience, Install
from audiences.operations import other_id, retiring
from odp.mechanisms import MECHANISMS

# The most audiences that a dialog names; it gives the number of the others.
NAMED = 10


def _in_odp(install: Install) -> str:
    """The effects of a retirement in ODP, in words that fit each audience of the install."""
    kept = MECHANISMS[install.mechanism].keeps
    return (
        "Then the real-time audience is deleted in ODP, and campaigns and experiments that use it find no"
        f" customers any more. {kept} Its ODP id isn't reused without a question. History, log and ledger stay here."
        " Events that Lytics still sends are stored and held, and Now asks what to do with them."
    )


class Retire(Verb[Audience]):
    """Retire an audience that left the Lytics job or was deleted in Lytics."""

    name, label, icon, permission = "retire", "Retire", "inventory_2", "audiences.retire_audience"
    form = AskReason
    danger = True

    def offered(self, audience: Audience) -> bool:
        return retiring.current(audience) is None

    def seen(self, audience: Audience) -> str:
        return f"{audience.odp_id} {audience.provisioned_at is None}"

    def consequence(self, audience: Audience) -> str:
        members = audience.lane.member_count
        if audience.provisioned_at is None and not members:
            what = "isn't in ODP, and it is not created there any more"
            if shared_ids.was_exchanged(audience):
                what = "has only members of the segment that took over its former ODP id, and is deleted in ODP"
            return (
                f"{audience} {what}. Its"
                f" {count(state.backlog(audience.lane), 'waiting event')} and later ones are stored and held."
            )
        return (
            f"{count(members, 'member')} of {audience} leave it in ODP: each gets an exit, in order with what Lytics"
            f" sends. {when(audience, members)} {_in_odp(audience.install)} Take back stops it at any time; then"
            " the members who were taken out enter again."
        )

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        return f"Retiring {audience}." if retiring.retire(audience, by=by, reason=answers["reason"]) else None


class TakeBack(Verb[Audience]):
    name, label, icon, permission = "take-back", "Take back", "unarchive", "audiences.unblock_audience"
    form = AskReason

    def offered(self, audience: Audience) -> bool:
        current = retiring.current(audience)
        return current is not None and current.undone_at is None

    def seen(self, audience: Audience) -> str:
        return str(audience.lane.retired_at)

    def consequence(self, audience: Audience) -> str:
        current = retiring.current(audience)
        assert current is not None
        held, taken_out = number(state.held_behind_end(audience.lane)), count(current.done, "customer")
        if retiring.knows_by_former_field(current):
            enter = (
                f"do not enter again, because they are known by the identifier field of before. An audit compares"
                f" {audience} with Lytics; its Repair enters them by {audience.install.identifier_field}"
            )
        else:
            enter = "enter again, unless Lytics has sent something newer about them"
        return (
            f"{audience} is used again. ODP gets its real-time audience again if it was deleted. Those whom the"
            f" retirement took out, {taken_out}, {enter}; the {held} held events are delivered. {current.by} retired"
            f" it: {current.reason}"
        )

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        return f"{audience} is used again." if retiring.take_back(audience, by=by, reason=answers["reason"]) else None


class ReuseId(Verb[Audience]):
    """Unblock an audience whose ODP id belonged to a retired audience of another install."""

    name, label, icon, permission = "reuse-id", "Reuse the retired id", "recycling", "audiences.unblock_audience"

    def offered(self, audience: Audience) -> bool:
        is_new = audience.provisioned_at is None and audience.reuses_id_at is None
        is_blocked = audience.lane.blocked_at is not None
        retired = shared_ids.retired_before(audience) if is_new and is_blocked else None
        return retired is not None and not shared_ids.are_ordered_by_time(audience, retired)

    def seen(self, audience: Audience) -> str:
        return f"{audience.odp_id} {audience.lane.blocked_at}"

    def consequence(self, audience: Audience) -> str:
        before = shared_ids.retired_before(audience)
        assert before is not None
        return (
            f"{audience.odp_id} was the ODP id of segment {before.segment_id} of {before.install}, which was retired."
            f" It becomes that of segment {audience.segment_id} of {audience.install}: what still uses it in ODP gets"
            f" the customers of this one. Its {number(state.backlog(audience.lane))} waiting events are sent."
        )

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        return f"{audience} has the id of a retired audience." if other_id.reuse(audience, by=by) else None


class RetireAll(Verb[Install]):
    """Retire all audiences of an install that is no longer used, before its API key is revoked."""

    name, label, icon, permission = "retire-all", "Retire all audiences", "inventory_2", "audiences.retire_audience"
    form = AskReason
    danger = True

    def offered(self, install: Install) -> bool:
        return bool(retiring.to_retire(install))

    def seen(self, install: Install) -> str:
        return " ".join(str(audience.pk) for audience in retiring.to_retire(install))

    def consequence(self, install: Install) -> str:
        audiences = retiring.to_retire(install)
        members = sum(audience.lane.member_count for audience in audiences)
        names = ", ".join(str(audience) for audience in audiences[:NAMED])
        more = f" and {number(len(audiences) - NAMED)} more" if len(audiences) > NAMED else ""
        off = "" if install.enabled else " The install is off: all of it waits until the install is on again."
        return (
            f"{count(len(audiences), 'audience')} of {install}: {names}{more}. Their {count(members, 'member')} leave"
            f" them in ODP. {_in_odp(install)}{off} Stop the Lytics job first, and switch the install off when all are"
            " retired. Take back on an audience's page stops it for that audience."
        )

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        retired = retiring.retire_all(install, by=by, reason=answers["reason"])
        return f"Retiring {count(len(retired), 'audience')} of {install}." if retired else None
