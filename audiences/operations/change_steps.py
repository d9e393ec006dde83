"""The steps of a guided change to another mechanism (docs/guided-changes.md).

A step either sends requests to ODP or writes to the tables, never both. Its result is stored before the next step
begins. A step may be repeated after a crash, so the objects that it creates in ODP may exist already.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db.models import F
from django.db.models.functions import Now
from django.utils.timezone import now

from audiences import naming
from audiences.delivery import mechanism_switch
from audiences.delivery.mechanism_switch import Leases
from audiences.delivery.odp_account import mechanism_of
from audiences.models import SKIPPED, Audience, GuidedChange, Lane, Resend, Retirement, Run
from audiences.operations import forgetting, resends, twins, verification
from odp import definitions
from odp.client import Client
from odp.graphql import ask
from odp.mechanisms import Mechanism, Refusal
from odp.mechanisms.segments import delete_segment, ensure_segment, read_definition
from odp.outcomes import Answer, Outcome

Phase = GuidedChange.Phase

# Seconds of one request to ODP.
SECONDS = 8.0
# Seconds before the next request to ODP, and before the next check whether a request under way has ended.
LATER, SOON = 5.0, 0.2


@dataclass(frozen=True)
class Step:
    """The columns of the GuidedChange to store, and the seconds before the next step."""

    changes: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def wait(why: str, *, seconds: float = LATER) -> Step:
    return Step({"waits_for": why}, seconds)


def wait_since(change: GuidedChange, column: str, *, seconds: float, why: str) -> Step | None:
    """A wait that ends ``seconds`` after the time in the column, by PostgreSQL's clock; None when it is over.

    A time ahead of that clock was stored before the clock was set back. The wait then begins again. ``why`` may name
    the remaining ``{seconds}``.
    """
    row = GuidedChange.objects.filter(pk=change.pk)
    passed = row.annotate(passed=Now() - F(column)).values_list("passed", flat=True).get().total_seconds()
    if passed >= seconds:
        return None
    again = {column: Now()} if passed < 0 else {}
    left = seconds - max(passed, 0.0)
    return Step({"waits_for": why.replace("{seconds}", f"{left:.0f} s"), **again}, min(left, LATER))


def to(phase: GuidedChange.Phase, **changes: Any) -> Step:
    return Step({"phase": phase, "phase_since_at": Now(), "waits_for": "", **changes})


def end(**changes: Any) -> Step:
    return to(Phase.CHOOSE, audience=None, ended_at=now(), **changes)


# --- the audience --------------------------------------------------------------------------------------------


def choose(change: GuidedChange) -> Step:
    """Choose the next audience with another mechanism than the install's. When none is left, the change is done."""
    waiting = Audience.objects.filter(install=change.install_id).exclude(mechanism="").select_related("lane")
    audience = waiting.exclude(odp_id__in=list(change.left_out)).order_by("pk").first()
    if audience is None:
        return end()
    if change.stopped_by:
        return end(problem=f"Stopped by {change.stopped_by}.")
    if why := _retired(audience) or held(audience.lane):
        return _leave_out_for_now(change, audience, why)
    return to(
        Phase.CHECK,
        audience=audience,
        was=audience.mechanism,
        is_returning=False,
        old_definition="",
        lane_token=None,
        making_token=None,
        resend_id=None,
        from_sequence=0,
        upto_sequence=0,
    )


def _retired(audience: Audience) -> str:
    is_current = Retirement.objects.filter(audience=audience, restored_at=None).exists()
    return "retired, being retired or being taken back" if is_current else ""


def held(lane: Lane) -> str:
    """Why a block or a person holds the lane; empty if neither does."""
    if lane.blocked_at is not None:
        return f"blocked: {lane.block_reason}"
    return f"paused by {lane.paused_by}: {lane.pause_reason}" if lane.paused_at is not None else ""


def _leave_out_for_now(change: GuidedChange, audience: Audience, why: str) -> Step:
    return _leave_out(change, audience, f"It is {why}. Begin another change when that is over.")


def _leave_out(change: GuidedChange, audience: Audience, why: str) -> Step:
    return to(Phase.CHOOSE, audience=None, left_out={**change.left_out, audience.odp_id: why})


def check(change: GuidedChange, client: Client) -> Step:
    """Create the field or list of the new mechanism. The real-time audience is only read."""
    audience = _audience(change)
    before, after = mechanism_of(change.install, change.was), _after(change)
    found = read_definition(client, audience.odp_id, seconds=SECONDS)
    if isinstance(found, Answer):
        return wait(found.reason)
    if isinstance(found, Refusal):
        return _leave_out(change, audience, found.reason)
    ours = [each.definition(audience.odp_id) for each in (before, after)]
    if found is not None and not any(definitions.same(each, found) for each in ours):
        theirs = definitions.in_words(found)
        why = f"ODP has another definition: {theirs}. Change it there by hand, or press Take ours."
        return _leave_out(change, audience, why)
    problem = after.ensure_store(client, audience.odp_id, naming.label(audience.slug), seconds=SECONDS)
    if isinstance(problem, Answer):
        return wait(problem.reason)
    if problem is not None:
        return _leave_out(change, audience, problem.reason)
    return to(Phase.SWITCH, old_definition=definitions.digest(found) if found is not None else "")


# --- deliveries ----------------------------------------------------------------------------------------------


def switch(change: GuidedChange) -> Step:
    """Deliver the lane with the new mechanism, beginning with its next lease. ODP's audience still shows the members
    of the old mechanism, so its definition is accepted until it is replaced."""
    audience = _audience(change)
    # A retirement that begins later finds this change with its audience, and waits for it.
    if why := _retired(audience):
        return _leave_out_for_now(change, audience, why)
    return _switch(audience, to_=change.after, accepted=_replaced(change, audience))


def back(change: GuidedChange) -> Step:
    audience = _audience(change)
    # Its rest would be sent by the mechanism of before, and what it has sent by the other one would be missing.
    if change.resend_id is not None:
        resends.stop(Resend.objects.get(pk=change.resend_id), by=change.by)
    return _switch(audience, to_=change.was, accepted="" if change.old_definition else _replaced(change, audience))


def _replaced(change: GuidedChange, audience: Audience) -> str:
    """The digest of the definition that is replaced at the end. If ODP had no audience at the check, it may have been
    made since: by the mechanism of before until the switch, and after that by the new one, which a return replaces.
    """
    other = _after(change) if change.is_returning else mechanism_of(change.install, change.was)
    return change.old_definition or definitions.digest(other.definition(audience.odp_id))


def _switch(audience: Audience, *, to_: str, accepted: str) -> Step:
    forgetting.repeat_exits(audience.install_id)
    leases = mechanism_switch.switch(audience, to=to_, accepted=accepted)
    return _await(audience, leases)


def _await(audience: Audience, leases: Leases) -> Step:
    return to(
        Phase.AWAIT,
        lane_token=leases.lane,
        making_token=leases.making,
        resend_id=None,
        from_sequence=audience.last_sequence,
        upto_sequence=0,
    )


def await_lease(change: GuidedChange) -> Step:
    """Wait for requests with the previous mechanism. Then the ledger includes their results, and is sent again."""
    audience = _audience(change)
    if not mechanism_switch.ended(audience.pk, Leases(change.lane_token, change.making_token)):
        return wait("A request to ODP is under way.", seconds=SOON)
    reason = f"change to {change.was if change.is_returning else change.after}: {change.reason}"
    if not resends.resync(audience, by=change.by, reason=reason):
        return wait("Another resync of the audience is unfinished.")
    asked = Resend.objects.get(audience=audience, kind=Resend.Kind.RESYNC, ended_at=None)
    return to(Phase.RESEND, resend_id=asked.pk)


def resend(change: GuidedChange) -> Step:
    """Wait until the whole ledger is in the log again and the lane has delivered it.

    An audience that is changed back isn't verified, so its events in the log needn't be delivered before the next step.
    """
    assert change.resend_id is not None
    resync = Resend.objects.get(pk=change.resend_id)
    # Read after the Resend, so that the audience's last number includes all events that the Resend appended.
    audience = _audience(change)
    lane = Lane.objects.get(pk=audience.pk)
    # A resync may wait for room in the log until the audience delivers. After a return it goes on without the change.
    if resync.ended_at is None and not (change.is_returning and held(lane)):
        hindrance = _hindrance(audience, lane)
        return wait(f"{resync.done:,} of {resync.total:,} people are in the log again. {hindrance}".strip())
    if resync.stopped_by or was_skipped(audience, change.from_sequence):
        return _await(audience, Leases(None, None))
    if change.is_returning:
        return to(Phase.CLEAN if change.old_definition else Phase.REPLACE)
    if not change.upto_sequence:
        return Step({"upto_sequence": audience.last_sequence})
    if lane.delivered_sequence < change.upto_sequence:
        waiting = change.upto_sequence - lane.delivered_sequence
        return wait(f"{waiting:,} events are to be delivered. {_hindrance(audience, lane)}".strip())
    return to(Phase.PROVE)


def was_skipped(audience: Audience, after: int) -> bool:
    """Whether an operator skipped events that the change needs."""
    return Run.objects.filter(audience=audience, outcome=SKIPPED, last_sequence__gt=after).exists()


def _hindrance(audience: Audience, lane: Lane) -> str:
    install = audience.install
    if why := held(lane):
        return f"The audience is {why}"
    if not install.enabled:
        return "The install is switched off."
    if install.backoff_until_at is not None:
        return f"The install is on hold: {install.backoff_reason}"
    return f"The audience is on hold: {audience.hold_reason}" if audience.hold_failures else ""


# --- the audience in ODP -------------------------------------------------------------------------------------


def prove(change: GuidedChange, client: Client) -> Step:
    """Create a second real-time audience, to verify the new definition before the first audience gets it."""
    audience = _audience(change)
    definition = _after(change).definition(audience.odp_id)
    assert definition is not None
    label = f"{naming.label(audience.slug)} (verification of a change, deleted afterwards)"
    problem = ensure_segment(client, _proof_id(change), label, definition, seconds=SECONDS, accepted="")
    if isinstance(problem, Answer):
        return wait(problem.reason)
    return to(Phase.VERIFY) if problem is None else _return(problem.reason)


def verify(change: GuidedChange, client: Client) -> Step:
    """Compare a sample in ODP with the ledger until both agree. ODP shows accepted writes within 90 s (documented)."""
    audience = _audience(change)
    people = verification.sample(audience.pk, first=change.from_sequence + 1, last=change.upto_sequence, seed=change.pk)
    if not people:
        return to(Phase.REPLACE)
    old = [audience.odp_id] if change.old_definition else []
    found = ask(client, customers=verification.names(people), odp_ids=[_proof_id(change), *old], seconds=SECONDS)
    if found.answer.outcome is Outcome.RETRY_LATER:
        return wait(found.answer.reason)
    if not found.succeeded:
        return _return(f"ODP could not be asked about a sample: {found.answer.reason}")
    differing = verification.unchanged(
        audience, verification.differing(people, found.qualified, _proof_id(change), *old)
    )
    if not differing:
        return to(Phase.REPLACE)
    words = f"{len(differing)} of {len(people)} people in a sample differ between ODP and the ledger"
    longest = settings.CHANGE_VERIFY_SECONDS
    again = wait_since(change, "phase_since_at", seconds=longest, why=f"{words}.")
    return again or _return(f"{words} after {longest:.0f} s.")


def replace(change: GuidedChange, client: Client) -> Step:
    """Replace the definition of ODP's audience by the new mechanism's, unless a person has edited it. A return replaces
    that of an audience which was made by the new mechanism."""
    audience = _audience(change)
    mechanism = mechanism_of(change.install, change.was) if change.is_returning else _after(change)
    problem = mechanism.ensure(
        client,
        audience.odp_id,
        naming.label(audience.slug),
        seconds=SECONDS,
        replaced=_replaced(change, audience),
    )
    if isinstance(problem, Answer):
        return wait(problem.reason)
    # After a return, an edited definition blocks the audience until a person decides.
    return to(Phase.CLEAN) if problem is None or change.is_returning else _return(problem.reason)


def clean(change: GuidedChange, client: Client) -> Step:
    problem = delete_segment(client, _proof_id(change), seconds=SECONDS)
    if isinstance(problem, Answer):
        return wait(problem.reason)
    return to(Phase.FINISH)


def finish(change: GuidedChange) -> Step:
    audience = _audience(change)
    mechanism_switch.keep_ours(audience.pk)
    twins.forget(audience)
    if change.is_returning:
        return end(problem=change.problem or f"Stopped by {change.stopped_by}.")
    return to(Phase.CHOOSE, audience=None, done=change.done + 1)


def _return(why: str) -> Step:
    return to(Phase.BACK, is_returning=True, problem=why)


# --- stopping ------------------------------------------------------------------------------------------------

# The phases in which deliveries use the new mechanism while ODP's audience has its old definition.
_RETURNING = {Phase.AWAIT, Phase.RESEND, Phase.PROVE, Phase.VERIFY}


def stop(change: GuidedChange) -> Step | None:
    """The step that a stop takes now; None without a stop, or while the current audience is finished first."""
    if change.is_returning or not change.stopped_by:
        return None
    if change.phase in (Phase.CHECK, Phase.SWITCH):
        return to(Phase.CHOOSE, audience=None)
    return to(Phase.BACK, is_returning=True) if change.phase in _RETURNING else None


# --- helpers -------------------------------------------------------------------------------------------------


def _audience(change: GuidedChange) -> Audience:
    assert change.audience_id is not None
    audience = Audience.objects.select_related("lane").get(pk=change.audience_id)
    audience.install = change.install
    return audience


def _after(change: GuidedChange) -> Mechanism:
    return mechanism_of(change.install, change.after)


def _proof_id(change: GuidedChange) -> str:
    """The id of the second audience. It is unique among all installs of an ODP account."""
    return f"lytics_check_{change.install.public_id}_{change.audience_id}"


STORING: dict[str, Callable[[GuidedChange], Step]] = {
    Phase.CHOOSE: choose,
    Phase.SWITCH: switch,
    Phase.BACK: back,
    Phase.AWAIT: await_lease,
    Phase.RESEND: resend,
    Phase.FINISH: finish,
}
ASKING: dict[str, Callable[[GuidedChange, Client], Step]] = {
    Phase.CHECK: check,
    Phase.PROVE: prove,
    Phase.VERIFY: verify,
    Phase.REPLACE: replace,
    Phase.CLEAN: clean,
}
