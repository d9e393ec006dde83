"""The states that people see of lanes, installs and events. Only this module derives them from the stored rows."""

from dataclasses import dataclass, replace
from datetime import datetime

from django.utils.timezone import now

from audiences import masked_answers, naming
from audiences.delivery import backoff
from audiences.insight.customers import End, EventStatus, MembershipStatus, is_repeat
from audiences.insight.sentences import sentence
from audiences.models import (
    SKIPPED,
    Audience,
    Delivery,
    Event,
    Install,
    Lane,
    Parked,
    Receipt,
    Resend,
    Run,
    Token,
    Trial,
)
from audiences.receiving import reasons_to_wait
from audiences.receiving.backlog import room
from lytics import times
from odp.graphql import MembershipAnswer
from odp.outcomes import Outcome, outcome_of

# The colour of a word: good, under way, held by a person or for some time, bad. Other words are grey.
_TONES = {
    "good": (
        "active",
        "up to date",
        "delivered",
        "queued",
        "live",
        "released",
        "done",
        "in",
        "proven",
        "good",
        "resolved",
    ),
    "busy": ("sending", "waiting", "retiring", "being created", "to be created", "open", "under way"),
    "held": (
        "paused",
        "set aside",
        "retired",
        "held back",
        "on hold",
        "draft",
        "in part",
        "partly parked",
        "retry later",
        "unknown",
        "warning",
        "ending",
        "muted",
        "rejecting calls",
        "skipped",
        "stopped",
        SKIPPED,
    ),
    "bad": ("blocked", "parked", "rejected", "unauthorised", "failing", "given up", "differs", "overdue", "bad"),
}
_TONE_OF = {word: tone for tone, words in _TONES.items() for word in words}


# The text about calls of an install whose key isn't accepted yet.
DRAFT = "Calls from Lytics are accepted and stored; they are sent to ODP once it accepts the key."


@dataclass(frozen=True)
class State:
    """A word with its reason and its end. ``alert`` is true when a person has to act."""

    word: str
    why: str = ""
    alert: bool = False

    @property
    def tone(self) -> str:
        return _TONE_OF.get(self.word, "none")


def of_install(install: Install, *, waiting: int | None = None) -> State:
    """``waiting`` is the number of deliverable events, if the caller knows it."""
    if not install.enabled:
        return State("off", "calls are answered 503; Lytics retries later")
    rejecting = reasons_to_wait.in_words(install, waiting=waiting)
    if install.key_accepted_at is None:
        why = f"ODP has not accepted its API key yet. {rejecting or DRAFT} {hold_of_install(install)}"
        return State("draft", why.rstrip(), alert=True)
    if install.backoff_until_at is not None:
        return State("on hold", ". ".join(filter(None, (hold_of_install(install), rejecting))), alert=True)
    return State("rejecting calls", rejecting, alert=True) if rejecting else State("active")


def is_on_hold(install: Install) -> bool:
    """Whether requests wait for the end of the install's backoff. None are sent while the install is off."""
    return install.enabled and install.backoff_until_at is not None


def hold_of_install(install: Install) -> str:
    """Why an install is on hold, since when and until when; empty when it isn't."""
    if install.backoff_until_at is None:
        return ""
    return (
        f"{install.backoff_reason} — {install.backoff_failures} in a row"
        f" since {install.backoff_since_at:%Y-%m-%d %H:%M:%S} UTC, next try at {install.backoff_until_at:%H:%M:%S} UTC"
    )


def remedy(install: Install) -> str:
    """The remedy for a backoff, in words for a person."""
    if needs_key(install):
        return "Enter an API key that ODP accepts and save. Delivery continues at once."
    if install.backoff_reason.startswith(backoff.UNEXPECTED):
        return "This is an error of Lytics Sync, and is retried automatically. The worker's log has its traceback."
    return "Delivery continues automatically when ODP answers. Check the install's ODP host and ODP's status page."


def needs_key(install: Install) -> bool:
    """Whether ODP rejects its key."""
    return rejects_key(install.backoff_reason)


def rejects_key(reason: str) -> bool:
    """Whether the reason means a rejected key: it begins with the status of ODP's response, if there was a response."""
    status = reason.partition(":")[0]
    return status.isdecimal() and outcome_of(int(status)) is Outcome.UNAUTHORISED


def of_lane(lane: Lane) -> State:
    """The state of a lane. Its audience and install are fetched with it."""
    audience = lane.audience
    waiting = backlog(lane)
    if lane.retired_at is not None:
        held = held_behind_end(lane)
        since = f"since {lane.retired_at:%Y-%m-%d %H:%M} UTC"
        return State("retired", f"{since}; {held:,} new events are held" if held else since, alert=bool(held))
    if lane.retired_sequence is not None:
        return State("retiring", "its members leave, then it is deleted in ODP")
    if is_set_aside(lane):
        return State("set aside", f"by {lane.paused_by}: {sentence(lane.pause_reason)} Blocked: {lane.block_reason}")
    if lane.blocked_at is not None:
        return State("blocked", lane.block_reason, alert=True)
    if lane.paused_at is not None:
        return State("paused", f"by {lane.paused_by}: {lane.pause_reason}")
    if not waiting:
        return State("up to date")
    if audience.making_until_at is not None and audience.making_until_at > now() and not audience.provisioned_at:
        return State("being created")
    if lane.lease_expires_at is not None and lane.lease_expires_at > now():
        return State("sending")
    if not audience.install.enabled:
        return State("held back", f"install off: {of_install(audience.install).why}")
    if audience.install.backoff_until_at is not None:
        return State("held back", f"install on hold: {hold_of_install(audience.install)}")
    if audience.hold_failures and not audience.provisioned_at:
        return State("on hold", f"it can't be created in ODP: {hold(audience)}", alert=True)
    if lane.fault_since_at is not None:
        return State("on hold", fault(lane), alert=True)
    return State("waiting" if audience.provisioned_at else "to be created")


def blocked_since(lane: Lane) -> datetime | None:
    """When the block began. If the same block came back after *Unblock*, it began before that."""
    return lane.lifted_since_at or lane.blocked_at if lane.blocked_at is not None else None


def is_set_aside(lane: Lane) -> bool:
    """Whether a person has paused the lane since its last block, and so knows of the block."""
    return lane.blocked_at is not None and lane.paused_at is not None and lane.paused_at >= lane.blocked_at


def hold(audience: Audience) -> str:
    """Why the creation of the audience waits, since when and until when. An install on hold tries nothing."""
    since, until = f"{audience.hold_since_at:%Y-%m-%d %H:%M:%S} UTC", f"at {audience.hold_until_at:%H:%M:%S} UTC"
    until = "when its install is no longer on hold" if is_on_hold(audience.install) else until
    return f"{audience.hold_reason} — {audience.hold_failures} in a row since {since}, next try {until}"


def fault(lane: Lane) -> str:
    """The error of this service that holds a lane, since when and until when."""
    return (
        f"{lane.fault_reason} — since {lane.fault_since_at:%Y-%m-%d %H:%M:%S} UTC,"
        f" next try at {lane.fault_until_at:%H:%M:%S} UTC"
    )


def remedy_of_hold(audience: Audience) -> str:
    """The remedy for an audience that ODP's API for creating audiences fails to create."""
    if rejects_key(audience.hold_reason):
        return (
            "The API key may not create audiences in ODP: enter the account's private key on the install's page."
            " Waiting events are sent at the next try."
        )
    return "It is retried automatically, and delays no other audience."


def of_request(record: Delivery | Run) -> State:
    """The state of a delivery or a run: its outcome, or unknown."""
    if record.closed_at is None:
        return State("open", "Under way; or its worker stopped, and the next worker closes it.")
    reason = masked_answers.reason(record) if isinstance(record, Delivery) else str(record.skip or "")
    return State(record.get_outcome_display(), reason, alert=record.outcome == Outcome.UNAUTHORISED)


def of_receipt(receipt: Receipt) -> State:
    return State(receipt.verdict)


def of_parked(parked: Parked) -> State:
    if parked.closed_at is None:
        return State("parked", alert=True)
    by = f"by {parked.closed_by}, " if parked.closed_by else ""
    return State(parked.resolution, f"{by}{parked.closed_at:%Y-%m-%d %H:%M} UTC")


def of_event(status: EventStatus) -> State:
    """The result of an event, and the reason."""
    became = _end_of(status)
    if status.claimed_ns is None:
        return became
    claimed = f"{times.moment(status.claimed_ns):%Y-%m-%d %H:%M}"
    note = f"Lytics sent the time {claimed}, which was ahead of the clock and is ignored"
    return replace(became, why=f"{became.why}; {note}" if became.why else note)


def _end_of(status: EventStatus) -> State:
    match status.end:
        case End.WAITING:
            return State("waiting", _what_it_waits_for(status))
        case End.TAKEN:
            return State("waiting", "ODP accepted it; the rest of its request is tried again")
        case End.SENDING:
            return State("sending", "the request is under way")
        case End.SKIPPED:
            decision = next((str(run.skip) for run in status.attempts if run.skip), "by a person")
            return State(SKIPPED, f"not sent, {decision}")
        case End.FOLDED:
            earlier = "; an earlier request that ended early may have brought it" if status.attempts else ""
            return State("folded", _moot(status.event, status.decided_by) + earlier)
        case End.PARKED if status.parked is not None:
            return State(
                of_parked(status.parked).word,
                _refusal(status.event, status.parked),
                status.parked.closed_at is None,
            )
    is_unsure = not status.attempts and not status.holds
    return State("delivered", "or folded: its run, which knew that, is deleted" if is_unsure else "")


def _what_it_waits_for(status: EventStatus) -> str:
    lane = status.event.audience.lane
    before = status.event.sequence - lane.delivered_sequence - 1
    state = of_lane(lane)
    words = {
        "waiting": "for a worker",
        "sending": "for the request that is under way",
        "to be created": "for its audience to be created in ODP",
    }
    cause = words.get(state.word) or f"the audience is {state.word}: {state.why}".removesuffix(": ")
    tried = next((f"; last try: {of_request(run).word}" for run in status.attempts if run.closed_at), "")
    return cause + (f"; events before it: {before:,}" if before else "") + tried


def _moot(event: Event, by: Event | None) -> str:
    if by is None:
        return "a newer event had replaced it, and is no longer in the log"
    what = f"{by.get_kind_display()} of {by.occurred_at:%Y-%m-%d %H:%M:%S} UTC (event {by.sequence:,})"
    if by == event:
        return "nothing new: already a member"
    if is_repeat(event, by):
        return f"the same as event {by.sequence:,}"
    if by.occurred_ns == event.occurred_ns:
        return f"an exit at the same moment wins: {what}"
    return f"replaced by something newer: {what}"


def _refusal(event: Event, parked: Parked) -> str:
    newer = (
        f"; a newer rejection, of event {parked.sequence:,}, replaces it"
        if (parked.sequence is not None and parked.sequence != event.sequence)
        else ""
    )
    ended = "" if parked.closed_at is None else f"; {of_parked(parked).word} {of_parked(parked).why}"
    return f"ODP rejected it: {parked.detail}{newer}{ended}"


def of_membership(membership: MembershipStatus) -> State:
    """Whether the customer is a member by the ledger."""
    if membership.held is None:
        return State("out", "nothing was delivered yet" if membership.waiting else "no events")
    if membership.held.rejected:
        return State("in" if membership.is_member else "out", "by the last event, which ODP rejected")
    return State("in" if membership.is_member else "out")


def of_answer(membership: MembershipStatus, answer: MembershipAnswer) -> State:
    """Whether the customer is a member by ODP's answer."""
    odp_id = membership.audience.odp_id
    if answer.is_in(odp_id):
        return State("in")
    if answer.is_out(odp_id):
        return State("out")
    known = " and ".join(name for name, found in answer.by_name.items() if odp_id in (found or ()))
    return State("in part", f"by {known} only, so Optimizely's products get different answers")


def of_difference(membership: MembershipStatus, answer: MembershipAnswer) -> State | None:
    """The difference between ODP and the ledger, with the remedy; None when they agree."""
    ours, theirs = of_membership(membership).word, of_answer(membership, answer).word
    if ours == theirs:
        return None
    both = f"ODP: {_membership(theirs)}. Ledger: {_membership(ours)}."
    if membership.waiting:
        return State("differs", f"{both} Waiting events: {membership.waiting:,}. Look again when they are delivered.")
    if membership.held is None:
        return State(
            "differs", f"{both} Another system added the customer in ODP, now or before this service was connected."
        )
    if membership.parked is not None:
        return State("differs", f"{both} ODP rejected this change, and it is parked.", alert=True)
    return State(
        "differs",
        f"{both} This is normal for a minute after a delivery. If it lasts, press Resync.",
        alert=True,
    )


def _membership(word: str) -> str:
    return {"in": "member", "out": "not a member"}.get(word, word)


def of_resend(resend: Resend) -> State:
    if resend.ended_at is not None:
        if resend.stopped_by:
            return State("stopped", f"by {resend.stopped_by}, {resend.ended_at:%Y-%m-%d %H:%M} UTC")
        return State("done", f"{resend.ended_at:%Y-%m-%d %H:%M} UTC")
    _, waits_for = room(resend.install_id, resend.audience_id)
    # A full lane is normal, because it limits the resend to the speed of delivery. A lane that doesn't move is not.
    moves = resend.audience is not None and of_lane(resend.audience.lane).word in ("sending", "waiting")
    return State("waiting" if waits_for and not moves else "under way", waits_for)


def of_token(token: Token) -> State:
    if token.revoked_at is not None:
        return State("revoked", f"{token.revoked_at:%Y-%m-%d %H:%M} UTC")
    if token.expires_at is None:
        return State("live")
    if token.expires_at <= now():
        return State("ended", f"{token.expires_at:%Y-%m-%d %H:%M} UTC")
    return State("ending", f"until {token.expires_at:%Y-%m-%d %H:%M} UTC")


def of_trial(trial: Trial) -> State:
    if any(hop["how"] == "failed" for hop in trial.hops):
        return State("failing", alert=True)
    if trial.closed_at is None:
        waits = trial.begun_at is None and (now() - trial.started_at).total_seconds() > 10
        why = "No worker has taken the test customer yet. Check that worker and beat run." if waits else ""
        return State("waiting", why)
    last = trial.hops[-1] if trial.hops else {}
    if (last.get("leg"), last.get("hop")) == ("out", "shown"):
        return State("done")
    why = "Its worker stopped halfway. The test customer was removed from the audience."
    return State("given up", why if trial.begun_at else "No worker took the test customer.", alert=True)


def backlog(lane: Lane) -> int:
    """Events accepted and not yet delivered."""
    return lane.audience.last_sequence - lane.delivered_sequence


def held_behind_end(lane: Lane) -> int:
    """Events of a retired audience that came after its end and wait for a person's decision."""
    return 0 if lane.retired_sequence is None else max(0, lane.audience.last_sequence - lane.retired_sequence)


def warnings(lane: Lane) -> list[str]:
    """Facts about an audience that are not errors but may surprise an operator."""
    audience = lane.audience
    notes = []
    if audience.latest_slug != audience.slug:
        notes.append(f"The slug was edited in Lytics to {audience.latest_slug}; the ODP id stays {audience.odp_id}.")
    plain = naming.odp_id(audience.slug, prefix=audience.install.odp_prefix)
    if audience.odp_id != plain:
        notes.append(
            f"Its ODP id is {audience.odp_id}: another segment had {plain} already, or a person chose this one."
        )
    if audience.accepted_definition:
        notes.append("Its definition in ODP differs from the one that this service writes; a person has accepted it.")
    if audience.hold_failures and audience.provisioned_at:
        notes.append(f"It could not be checked in ODP: {hold(audience)}. Deliveries continue.")
    return notes
