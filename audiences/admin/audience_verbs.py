"""What a person can do to an audience: pause, unblock, set aside, another id, take over, resync."""

from typing import Any

from django import forms
from django.db import transaction
from unfold.widgets import UnfoldAdminTextInputWidget

from audiences import ledger_size
from audiences.admin.pages import count, number
from audiences.admin.resends import SendAgain, when
from audiences.admin.verbs import AskReason, Verb
from audiences.delivery import backoff, holds, provision, shared_ids
from audiences.insight import similar_slugs, state
from audiences.models import Audience, Resend
from audiences.operations import other_id, resends, take_over
from audiences.wake import wake


def once_resumed(audience: Audience) -> str:
    return " once it is resumed, because it is paused too" if audience.lane.paused_at else ""


def customers(held: int) -> str:
    return f"{'about ' if held >= ledger_size.COUNTED else ''}{count(held, 'customer')}"


class Pause(Verb[Audience]):
    name, label, icon, permission = "pause", "Pause", "pause", "audiences.pause_audience"
    form = AskReason

    def offered(self, audience: Audience) -> bool:
        lane = audience.lane
        return lane.paused_at is None and lane.blocked_at is None and lane.retired_at is None

    def consequence(self, audience: Audience) -> str:
        return (
            f"{audience} is not sent to ODP until somebody resumes it. Calls from Lytics are still accepted and"
            f" its events wait: {number(state.backlog(audience.lane))} so far. A request under way is completed."
        )

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        return f"Paused {audience}." if holds.pause(audience.lane, by=by, reason=answers["reason"]) else None


class SetAside(Verb[Audience]):
    """Stop reporting a blocked audience until it is resumed."""

    name, label, icon, permission = "set-aside", "Set aside", "archive", "audiences.pause_audience"
    form = AskReason

    def offered(self, audience: Audience) -> bool:
        return audience.lane.blocked_at is not None and not state.is_set_aside(audience.lane)

    def seen(self, audience: Audience) -> str:
        return str(audience.lane.blocked_at)

    def consequence(self, audience: Audience) -> str:
        return (
            f"Now lists {audience} under paused, with your reason, instead of under blocked. Its"
            f" {number(state.backlog(audience.lane))} waiting events stay, and new ones are accepted. Resume and then"
            " Unblock it to have them sent."
        )

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        done = holds.set_aside(audience.lane, by=by, reason=answers["reason"])
        return f"Set {audience} aside." if done else None


class Resume(Verb[Audience]):
    name, label, icon, permission = "resume", "Resume", "play_arrow", "audiences.resume_audience"

    def offered(self, audience: Audience) -> bool:
        return audience.lane.paused_at is not None and not take_over.has_lost_its_id(audience)

    def seen(self, audience: Audience) -> str:
        return str(audience.lane.paused_at)

    def consequence(self, audience: Audience) -> str:
        lane = audience.lane
        sent = (
            "It is shown as blocked again. Nothing is sent until you also press Unblock."
            if lane.blocked_at
            else f"The {number(state.backlog(lane))} waiting events are then sent to ODP in order."
        )
        return f"{sent} {lane.paused_by} paused it: {lane.pause_reason}"

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        if not holds.resume(audience.lane):
            return None
        wake(audience.install_id)
        return f"Resumed {audience}."


class Unblock(Verb[Audience]):
    name, label, icon, permission = "unblock", "Unblock", "lock_open", "audiences.unblock_audience"

    def offered(self, audience: Audience) -> bool:
        return audience.lane.blocked_at is not None

    def seen(self, audience: Audience) -> str:
        return str(audience.lane.blocked_at)

    def consequence(self, audience: Audience) -> str:
        return (
            f"What the audience needs in ODP is checked, and created where it is missing. Then the"
            f" {number(state.backlog(audience.lane))} waiting events are sent again{once_resumed(audience)}. Unless"
            f" the cause is fixed in ODP it will be blocked again, for the same reason: {audience.lane.block_reason}"
        )

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        with transaction.atomic():
            if not holds.unblock(audience.lane):
                return None
            provision.look_again(audience.pk)
        wake(audience.install_id)
        paused = audience.lane.paused_at is not None
        return f"Unblocked {audience}. {'It stays paused until it is resumed.' if paused else 'It is tried again now.'}"


class AskId(AskReason):
    odp_id = forms.CharField(
        label="New ODP id",
        max_length=other_id.LONGEST,
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True}),
        help_text="lytics_ and small letters, digits or underscores, such as lytics_gold_2.",
    )
    field_order = ("odp_id", "reason")


class UseOtherId(Verb[Audience]):
    name, label, icon, permission = "other-id", "Use another ODP id", "drive_file_move", "audiences.unblock_audience"
    form = AskId

    def offered(self, audience: Audience) -> bool:
        return audience.lane.blocked_at is not None

    def seen(self, audience: Audience) -> str:
        return f"{audience.odp_id} {audience.lane.blocked_at}"

    def consequence(self, audience: Audience) -> str:
        held = ledger_size.of(audience)
        kept = "keeps in ODP what it has there, and it is no longer updated. Change every campaign that uses it"
        if user := shared_ids.used_by(audience):
            kept = (
                f"stays in ODP as the audience of {user.install}. Change only campaigns for customers of this install"
            )
        return (
            f"A new audience is created in ODP and everybody known is sent to it: {customers(held)} and"
            f" {count(state.backlog(audience.lane), 'waiting event')}. {audience} {kept} to the new id."
            f" The reason of the block: {audience.lane.block_reason}"
        )

    def wrong(self, audience: Audience, answers: dict[str, Any]) -> str:
        return other_id.problem_of(audience, answers["odp_id"])

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        if not other_id.use(audience, answers["odp_id"], by=by, reason=answers["reason"]):
            return None
        return f"{audience} goes to ODP as {answers['odp_id']} from now on."


class KeepBoth(Verb[Audience]):
    """Of an audience with the slug of an older one, or with an id that differs from another one's only by a suffix."""

    name, label, icon, permission = "keep-both", "Keep both", "call_split", "audiences.resync_audience"

    def offered(self, audience: Audience) -> bool:
        return audience.slug_settled_at is None and self._other(audience) is not None

    def _other(self, audience: Audience) -> Audience | None:
        """The older audience with the same slug, or one whose slug gives the same id."""
        return take_over.older(audience) or next(iter(similar_slugs.twins(audience)), None)

    def consequence(self, audience: Audience) -> str:
        return (
            f"{audience} and {self._other(audience)} stay two audiences in ODP, each with the members of its own"
            " segment. Now does not ask again."
        )

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        return f"{audience} stays beside the other one." if take_over.keep_both(audience) else None


class TakeOver(Verb[Audience]):
    name, label, icon, permission = "take-over", "Take over the old id", "move_up", "audiences.resync_audience"
    form = AskReason
    danger = True

    def offered(self, audience: Audience) -> bool:
        return audience.slug_settled_at is None and take_over.older(audience) is not None

    def seen(self, audience: Audience) -> str:
        return f"{audience} {take_over.older(audience)}"

    def consequence(self, audience: Audience) -> str:
        old = take_over.older(audience)
        assert old is not None
        return (
            f"Segment {audience.segment_id} goes to ODP as {old} from now on, with its own members:"
            f" {number(audience.lane.member_count)} so far. Segment {old.segment_id} has"
            f" {count(old.lane.member_count, 'member')} there. Those of them who are not in the new segment leave the"
            " audience in ODP, so first make sure that Lytics has sent all existing users of the new segment."
            + (
                f" The old one is retired, so {audience} is deleted in ODP."
                if old.lane.retired_at is not None
                else " The old one is paused until you press Retire and then Resume on its page, and"
                f" {audience} stays in ODP as it is now until then."
            )
        )

    def wrong(self, audience: Audience, answers: dict[str, Any]) -> str:
        old = take_over.older(audience)
        return take_over.problem_of(old) if old else ""

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        old = take_over.older(audience)
        if old is None or not take_over.take_over(audience, old, by=by, reason=answers["reason"]):
            return None
        return f"Segment {audience.segment_id} goes to ODP as {old} from now on."


class RetryNow(Verb[Audience]):
    name, label, icon, permission = "retry", "Retry now", "refresh", "audiences.retry_install"

    def offered(self, audience: Audience) -> bool:
        lane = audience.lane
        if lane.blocked_at is None and (audience.hold_failures or lane.fault_since_at is not None):
            return True
        return state.backlog(audience.lane) > 0 and state.of_lane(audience.lane).word in ("held back", "waiting")

    def consequence(self, audience: Audience) -> str:
        if audience.hold_failures:
            return (
                f"Creating what {audience} needs in ODP is tried now. If that fails, it backs off again."
                f" Other audiences are not affected. Last response: {audience.hold_reason}"
            )
        if audience.lane.fault_since_at is not None:
            return (
                f"{audience} is delivered now, alone. After another failure the next attempt follows automatically."
                f" Other audiences are not affected. Last error: {audience.lane.fault_reason}"
            )
        return (
            f"One request is sent to ODP now, for all waiting audiences of {audience.install}. If ODP accepts it,"
            " delivery continues; if not, it backs off again. Nothing is lost."
        )

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        alone = holds.try_now(audience.lane) or bool(audience.hold_failures)
        provision.try_now(install_id=audience.install_id, audience_id=audience.pk)
        if audience.install.backoff_failures:
            backoff.release(audience.install)
        wake(audience.install_id)
        return f"Trying {audience if alone else audience.install} again now."


class Resync(SendAgain):
    kind = Resend.Kind.RESYNC
    name, label, icon, permission = "resync", "Resync", "cloud_upload", "audiences.resync_audience"
    form = AskReason

    def consequence(self, audience: Audience) -> str:
        held = ledger_size.of(audience)
        return (
            f"All memberships of {audience} are sent to ODP again, changed or not:"
            f" {customers(held)}, {number(audience.lane.member_count)} of them as members and the rest as"
            f" not. {when(audience, held)} New events continue meanwhile and win where they are newer."
        )

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        asked = resends.resync(audience, by=by, reason=answers["reason"])
        return f"Resyncing {audience}: its memberships are queued to be sent again." if asked else None
