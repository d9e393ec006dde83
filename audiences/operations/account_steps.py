"""The steps of a guided change to another ODP account (docs/guided-changes.md).

Before the switch, deliveries use the old account, and the ledger is copied to the new one. At the switch, each change
of the ledger that is newer than its copy is known by its number; it is sent again through the log. The only writer of
AudienceMoves.
"""

from collections.abc import Callable, Sequence
from copy import copy as copy_of
from typing import Any

from django.conf import settings
from django.db.models import F, QuerySet
from django.db.models.functions import Now
from django.utils.timezone import now

from audiences import ledger_size, naming
from audiences.delivery import account_switch, shared_ids
from audiences.delivery.account_switch import Connection
from audiences.delivery.odp_account import client_of, mechanism_for
from audiences.models import Audience, AudienceMove, GuidedChange, Install, Lane, Membership, Resend
from audiences.operations import account_changes, account_requests, resends, twins, verification
from audiences.operations.change_steps import SECONDS, SOON, Step, to, wait, wait_since, was_skipped
from audiences.receiving import backlog
from odp.client import Client
from odp.graphql import ask
from odp.mechanisms import Refusal
from odp.outcomes import Answer, Outcome

Phase = GuidedChange.Phase
Stage = AudienceMove.Stage


def other(change: GuidedChange) -> Install:
    """The install as it would be with the account that it doesn't use: before the switch the new one, then the old."""
    return account_switch.connected(change.install, _connection(change))


def _connection(change: GuidedChange) -> Connection:
    return Connection(change.other_region, change.other_host, change.other_api_key)


def _end(**changes: Any) -> Step:
    """The end of the change. The key of the other account and the last customer's identifier are no longer stored."""
    return to(Phase.CHOOSE, audience=None, ended_at=now(), other_api_key="", after_identifier="", **changes)


def _give_up(change: GuidedChange, why: str) -> Step:
    account = "still sends to the old account" if change.switched_at is None else "sends to the new account"
    return _end(problem=f"{why.rstrip('.')}. The install {account}.")


# --- the account ---------------------------------------------------------------------------------------------


def tell_apart(change: GuidedChange, client: Client) -> Step:
    """Find out whether both keys belong to one account: emptying the old account would empty the new one.

    If the old account doesn't answer and isn't to be emptied, the change continues: within one account, a copy changes
    no member.
    """
    if why := account_changes.rival(other(change)):  # both began at once, and neither saw the other
        return _give_up(change, why)
    old = client_of(change.install, ends_at=client.ends_at)
    found = account_changes.is_one_account(change.install, old, client, seconds=SECONDS)
    if isinstance(found, Answer):
        return wait(found.reason) if change.empties else to(Phase.CHOOSE)
    if isinstance(found, Refusal):
        return _give_up(change, found.reason)
    if found:
        return _give_up(change, "The new key belongs to the same ODP account. Enter it in the form of the install.")
    return to(Phase.CHOOSE)


def move(change: GuidedChange) -> Step:
    """Switch the install, once all audiences are in the new account and ODP can't apply a copying request late."""
    install = account_switch.lock(change.install_id)
    if _to_copy(change).exists():
        return to(Phase.CHOOSE)
    why = "A request that copied members may be applied late, so the switch waits {seconds}."
    if change.copied_at and (late := _applied_late(change, "copied_at", why)):
        return late
    if (taken := shared_ids.taken(other(change))) is not None:
        return _give_up(
            change, f"The install {taken.install.name} uses the ODP id {taken.odp_id} in the new account already."
        )
    copied = set(_copied(change).values_list("audience_id", flat=True))
    for audience in Audience.objects.filter(install=install, lane__retired_sequence=None).exclude(pk__in=copied):
        _note(change, audience, stage=Stage.CATCH_UP, upto=0)  # its whole ledger is sent after the switch
    was = account_switch.connection_of(install)
    tokens = account_switch.switch(install, _connection(change), copied=copied)
    return to(
        Phase.LEASES,
        switched_at=Now(),
        lane_tokens=tokens,
        other_region=was.region,
        other_host=was.host,
        other_api_key=was.api_key,
    )


def _applied_late(change: GuidedChange, column: str, why: str) -> Step | None:
    """A wait until ODP can no longer apply a request of the time in the column; None when it is over."""
    return wait_since(change, column, seconds=settings.RECONCILE_AFTER_SECONDS, why=why)


def leases_end(change: GuidedChange) -> Step:
    """Wait for the end of requests to the old account. Then the ledger includes their results."""
    if not account_switch.ended(change.install, change.lane_tokens or []):
        return wait("A request to the old account is under way.", seconds=SOON)
    return to(Phase.CHOOSE)


# --- the next audience ---------------------------------------------------------------------------------------


def choose(change: GuidedChange) -> Step:
    """Choose the next audience and its next phase. When none is left, the install is switched, or the change ends."""
    return _choose_before(change) if change.switched_at is None else _choose_after(change)


def _choose_before(change: GuidedChange) -> Step:
    audience = _to_copy(change).select_related("lane").order_by("pk").first()
    if audience is not None:
        return _begin(change, audience)
    unverified = _next(change, Stage.VERIFY)
    if unverified is not None:
        return to(Phase.VERIFY, audience=unverified.audience, from_sequence=unverified.from_sequence)
    return to(Phase.MOVE, audience=None)


def _begin(change: GuidedChange, audience: Audience) -> Step:
    audience.install = other(change)
    conflict = shared_ids.conflict(audience)
    if conflict is not None:
        return _give_up(change, f"{audience.odp_id}: {conflict.reason}")
    # Read before the ledger, so that each later change of the ledger has a higher number.
    upto = audience.lane.delivered_sequence
    _note(change, audience, stage=Stage.COPY, upto=upto)
    return to(Phase.MAKE, audience=audience, from_sequence=upto, **_from_the_beginning())


def _note(change: GuidedChange, audience: Audience, *, stage: AudienceMove.Stage, upto: int) -> None:
    AudienceMove.objects.update_or_create(
        change=change,
        audience=audience,
        defaults={"odp_id": audience.odp_id, "stage": stage, "from_sequence": upto, "rejected": 0},
    )


def _from_the_beginning() -> dict[str, Any]:
    return {"after_identifier": "", "request_size": 0, "rejected": 0, "sends_exits": False}


def _choose_after(change: GuidedChange) -> Step:
    waiting = _next(change, Stage.CATCH_UP)
    if waiting is not None:
        from_sequence = waiting.from_sequence
        return to(Phase.CATCH_UP, audience=waiting.audience, from_sequence=from_sequence, resend_id=None)
    full = _next(change, Stage.EMPTY)
    if not change.empties or full is None:
        return _end()
    if change.stopped_by:
        return _end(problem=f"Stopped by {change.stopped_by} before all audiences in the old account were emptied.")
    why = "The last request to the old account may be applied late: {seconds} before it is emptied."
    if late := _applied_late(change, "switched_at", why):
        return late
    return to(Phase.EMPTY, audience=full.audience, **_from_the_beginning())


def _to_copy(change: GuidedChange) -> QuerySet[Audience]:
    """The audiences in the old account that aren't copied under their ODP id. Retired ones have no members."""
    there = Audience.objects.filter(install=change.install_id, provisioned_at__isnull=False)
    return there.filter(lane__retired_sequence=None).exclude(pk__in=_copied(change).values("audience"))


def _copied(change: GuidedChange) -> QuerySet[AudienceMove]:
    return _moves(change).filter(odp_id=F("audience__odp_id")).exclude(stage=Stage.COPY)


def _moves(change: GuidedChange) -> QuerySet[AudienceMove]:
    return AudienceMove.objects.filter(change=change)


def _next(change: GuidedChange, stage: AudienceMove.Stage) -> AudienceMove | None:
    return _moves(change).filter(stage=stage).select_related("audience").order_by("pk").first()


_NEXT_STAGE = {Stage.COPY: Stage.VERIFY, Stage.VERIFY: Stage.CATCH_UP, Stage.CATCH_UP: Stage.EMPTY}


def finish(change: GuidedChange) -> Step:
    """Store that the current stage of the audience is done, and choose what comes next."""
    done = _moves(change).get(audience=change.audience_id)
    stage = Stage(done.stage)
    changes = {"rejected": change.rejected} if stage is Stage.COPY else {}
    _moves(change).filter(pk=done.pk).update(stage=_NEXT_STAGE.get(stage, Stage.DONE), **changes)
    if stage is Stage.CATCH_UP:
        twins.forget(_audience(change))
    there = _moves(change).filter(stage__in=(Stage.EMPTY, Stage.DONE)).count()
    return to(Phase.CHOOSE, audience=None, done=there)


# --- before the switch ---------------------------------------------------------------------------------------


def make(change: GuidedChange, client: Client) -> Step:
    """Create the audience in the new account. If its field or list exists there already, it may have earlier members,
    so exits are sent too."""
    audience = _audience(change)
    mechanism, accepted = mechanism_for(audience), audience.accepted_definition
    seen = mechanism.look(client, audience.odp_id, seconds=SECONDS, accepted=accepted)
    if isinstance(seen, Answer):
        return wait(seen.reason)
    label = naming.label(audience.slug)
    problem = mechanism.ensure(client, audience.odp_id, label, seconds=SECONDS, accepted=accepted)
    if isinstance(problem, Answer):
        return wait(problem.reason)
    if problem is not None:
        return _give_up(change, f"In the new account: {problem.reason}")
    return to(Phase.COPY, sends_exits=not seen.lost_members)


def copy(change: GuidedChange, client: Client) -> Step:
    """Send the next people of the ledger to the new account."""
    audience = _audience(change)
    rows = account_requests.next_rows(change, audience)
    if not rows:
        return to(Phase.FINISH)
    wanted = [row for row in rows if not row.rejected and (row.is_member or change.sends_exits)]
    states = [(row, row.is_member) for row in wanted]
    return _send(change, client, audience, rows, states)


def _send(
    change: GuidedChange,
    client: Client,
    audience: Audience,
    rows: Sequence[Membership],
    states: Sequence[tuple[Membership, bool]],
) -> Step:
    step = account_requests.send(change, client, audience, rows, states)
    return _give_up(change, step.reason) if isinstance(step, Refusal) else step


def verify(change: GuidedChange, client: Client) -> Step:
    """Compare a sample in the new account with the ledger until both agree. ODP shows writes within 90 s (documented).

    People whose state changed since the copy are left out: their changes are sent after the switch.
    """
    audience = _audience(change)
    people = verification.of_ledger(audience.pk, upto=change.from_sequence, seed=change.pk)
    if not people:
        return to(Phase.FINISH)
    found = ask(client, customers=verification.names(people), odp_ids=[audience.odp_id], seconds=SECONDS)
    if found.answer.outcome is Outcome.RETRY_LATER:
        return wait(found.answer.reason)
    if not found.succeeded:
        return _give_up(change, f"The new account could not be asked about a sample: {found.answer.reason}.")
    differing = verification.differing(people, found.qualified, audience.odp_id)
    shows_some = len(differing) < sum(row.is_member for row in people)
    if shows_some:
        old = client_of(change.install, ends_at=client.ends_at)
        differing = verification.without_hidden(old, audience.odp_id, differing, seconds=SECONDS)
    differing = verification.unchanged(audience, differing)
    # Customers whom the new account rejected always differ.
    rejected = _moves(change).get(audience=audience).rejected if shows_some else 0
    if len(differing) <= verification.explained(rejected, people=len(people), of=ledger_size.of(audience)):
        return to(Phase.FINISH)
    words = f"{len(differing)} of {len(people)} people in a sample differ between the new account and the ledger"
    longest = settings.CHANGE_VERIFY_SECONDS
    again = wait_since(change, "phase_since_at", seconds=longest, why=f"{words}.")
    return again or _give_up(change, f"{audience.odp_id}: {words} after {longest:.0f} s.")


# --- after the switch ----------------------------------------------------------------------------------------


def catch_up(change: GuidedChange) -> Step:
    """Send the rows of the ledger that changed since the copy again, because their requests may have gone to the old
    account. Newer events win. Of an audience that delivers nothing now, the resend goes on when it delivers again: it
    may wait for room that long, and the other audiences and the end of the change don't wait for it."""
    audience = _audience(change)
    if audience.lane.retired_sequence is not None:
        return to(Phase.FINISH)
    if change.resend_id is None:
        reason = f"change to the account {change.after}: {change.reason}"
        if not resends.resync(audience, by=change.by, reason=reason, since=change.from_sequence):
            return wait("Another resync of the audience is unfinished.")
        asked = Resend.objects.get(audience=audience, kind=Resend.Kind.RESYNC, ended_at=None)
        return Step({"resend_id": asked.pk, "upto_sequence": audience.last_sequence, "waits_for": ""})
    resync = Resend.objects.get(pk=change.resend_id)
    if resync.ended_at is None:
        held = Lane.objects.filter(backlog.HELD | backlog.CAN_NOT_BE_MADE, pk=audience.pk)
        waiting = f"{resync.done:,} of {resync.total:,} people are in the log again."
        return to(Phase.FINISH) if held.exists() else wait(waiting)
    if resync.stopped_by or was_skipped(audience, change.upto_sequence):
        return Step({"resend_id": None})
    return to(Phase.FINISH)


def empty(change: GuidedChange, client: Client) -> Step:
    """Send exits for all people of the ledger to the old account. Those who have left get one too, because their exit
    may have been sent only to the new account."""
    audience = _audience(change)
    if why := _use_by_another(change, audience):
        return _leave(change, audience, why)
    if not change.after_identifier:
        accepted = audience.accepted_definition
        seen = mechanism_for(audience).look(client, audience.odp_id, seconds=SECONDS, accepted=accepted)
        if isinstance(seen, Answer):
            return wait(seen.reason)
        if seen.lost_members:  # the old account has no field or list of this audience
            return to(Phase.FINISH)
    rows = account_requests.next_rows(change, audience)
    if not rows:
        return to(Phase.REMOVE)
    return _send(change, client, audience, rows, [(row, False) for row in rows])


def _use_by_another(change: GuidedChange, audience: Audience) -> str:
    """The install that uses the audience's ODP id in the old account now, in words; empty without one. After the
    switch, another install may take the id there."""
    there = copy_of(audience)
    there.install = other(change)
    user = shared_ids.used_by(there)
    return f"The install {user.install.name} uses this ODP id in the old account now." if user else ""


def _leave(change: GuidedChange, audience: Audience, why: str) -> Step:
    return to(Phase.FINISH, left_out={**change.left_out, audience.odp_id: why})


def remove(change: GuidedChange, client: Client) -> Step:
    """Delete the emptied audience in the old account, or leave it there with the reason."""
    audience = _audience(change)
    if why := _use_by_another(change, audience):
        return _leave(change, audience, why)
    accepted = audience.accepted_definition
    problem = mechanism_for(audience).remove(client, audience.odp_id, seconds=SECONDS, accepted=accepted)
    if isinstance(problem, Answer):
        return wait(problem.reason)
    return to(Phase.FINISH) if problem is None else _leave(change, audience, problem.reason)


# --- stopping ------------------------------------------------------------------------------------------------

_OF_OLD_ACCOUNT = {Phase.EMPTY, Phase.REMOVE}


def stop(change: GuidedChange) -> Step | None:
    """The step that a stop takes now; None without a stop, or while the switch is finished first."""
    if not change.stopped_by:
        return None
    if change.switched_at is None:
        return _give_up(change, f"Stopped by {change.stopped_by}.")
    if change.phase in _OF_OLD_ACCOUNT:
        return _end(problem=f"Stopped by {change.stopped_by} before all audiences in the old account were emptied.")
    return None


def _audience(change: GuidedChange) -> Audience:
    """The current audience, with the ODP id under which it was copied."""
    found = _moves(change).select_related("audience__lane").get(audience=change.audience_id)
    found.audience.odp_id, found.audience.install = found.odp_id, change.install
    return found.audience


STORING: dict[str, Callable[[GuidedChange], Step]] = {
    Phase.CHOOSE: choose,
    Phase.MOVE: move,
    Phase.LEASES: leases_end,
    Phase.CATCH_UP: catch_up,
    Phase.FINISH: finish,
}
ASKING: dict[str, Callable[[GuidedChange, Client], Step]] = {
    Phase.TELL_APART: tell_apart,
    Phase.MAKE: make,
    Phase.COPY: copy,
    Phase.VERIFY: verify,
    Phase.EMPTY: empty,
    Phase.REMOVE: remove,
}
