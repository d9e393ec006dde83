"""The steps of a guided change to another identifier field (docs/guided-changes.md).

After the switch, calls are read by the new field. Only Lytics knows each customer's value of that field. Therefore an
audit compares each audience with Lytics' scan, and a repair sends the differences: customers enter under the new field
and leave under the old one. No step sends a request to ODP.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models.functions import Now
from django.utils.timezone import now

from audiences.agreement import audits, words
from audiences.delivery import account_switch
from audiences.insight import state
from audiences.insight.sentences import sentence
from audiences.models import Again, Audience, Audit, GuidedChange, Install, Lane, Resend, Retirement
from audiences.operations import identifier_changes, resends, retiring, verification
from audiences.operations.change_steps import Step, held, to, wait, wait_since
from audiences.receiving import backlog
from odp.client import Client

Phase = GuidedChange.Phase

# The most seconds from reading the body of a call to storing it.
STORED_SECONDS = 60.0
# The most repairs of one audience. If a difference remains, a person has to look at it.
REPAIRS = 3
# What ends the wait for an audience that delivers nothing.
_HELD_CURE = "The change goes on when that is over. Or retire the audience, or press Stop."


def _end(**changes: Any) -> Step:
    return to(Phase.CHOOSE, audience=None, ended_at=now(), **changes)


def _give_up(change: GuidedChange, why: str) -> Step:
    return _end(problem=f"{why.rstrip('.')}. {_state(change)}")


def _state(change: GuidedChange) -> str:
    if change.switched_at is None:
        return f"The install still reads {change.before}."
    return (
        f"The install reads {change.after}. In audiences that are not done, customers known by {change.before} stay"
        " members until an audit and its repair."
    )


def choose(change: GuidedChange) -> Step:
    """Choose the next audience. When none is left, the change is done."""
    if change.switched_at is None:
        return to(Phase.READ_BY)
    waiting = identifier_changes.audiences(change.install).filter(pk__gt=change.last_audience_id)
    # ODP may not have an audience for a long time. The change doesn't wait for it if it was created here after the last
    # call that was read by the old field: all its events were read by the new one.
    waiting = waiting.exclude(provisioned_at=None, created_at__gte=_all_read_by_new(change))
    audience = waiting.order_by("pk").first()
    if audience is None:
        return _end()
    if change.stopped_by:
        return _give_up(change, f"Stopped by {change.stopped_by}")
    # A retirement waits for the change of its audience. If it then entered the members again, whom a person takes back,
    # it would do so under the old field, after the audit.
    if Retirement.objects.filter(retiring.UNFINISHED, audience=audience).exists():
        return wait(f"{audience.odp_id} is being retired or taken back.")
    if why := _held(audience):
        return wait(f"{audience.odp_id} is {sentence(why)} {_HELD_CURE}")
    return to(Phase.AUDIT, audience=audience, audit_id=None, resend_id=None, repairs=0)


def _held(audience: Audience) -> str:
    """Why an audience delivers nothing until that is over; empty when it delivers. The change has no audience then, so
    that it can be stopped, and the audience retired.
    """
    lanes = Lane.objects.filter(backlog.HELD | backlog.CAN_NOT_BE_MADE).select_related("audience__install")
    lane = lanes.filter(pk=audience.pk).first()
    return "" if lane is None else held(lane) or f"on hold: {state.of_lane(lane).why}"


def switch_field(change: GuidedChange) -> Step:
    """Switch the install to the new field. If a person has changed the field since the change began, end the change."""
    install = account_switch.lock(change.install_id)
    if install.identifier_field != change.before:
        return _end(problem=f"A person changed the identifier field to {install.identifier_field} during the change.")
    Install.objects.filter(pk=install.pk).update(identifier_field=change.after, identifier_since_at=now())
    return to(Phase.CALLS, switched_at=Now())


def await_calls(change: GuidedChange) -> Step:
    """Wait until each call that was read by the old field is stored."""
    why = f"Calls that were read by {change.before} are stored for another {{seconds}} at most."
    return wait_since(change, "switched_at", seconds=_longest_call(), why=why) or to(Phase.CHOOSE)


def _longest_call() -> float:
    """The most seconds from reading a call by an identifier field to storing it."""
    return settings.WEBHOOK_READ_SECONDS + STORED_SECONDS


def _all_read_by_new(change: GuidedChange) -> datetime:
    """The moment from which no call that was read by the old field is stored any more."""
    assert change.switched_at is not None
    return change.switched_at + timedelta(seconds=_longest_call())


def audit(change: GuidedChange) -> Step:
    """Have an audit compare the audience with Lytics. Without a difference, the audience is done."""
    audience = _audience(change)
    if _held(audience):
        return to(Phase.CHOOSE, audience=None)
    if change.audit_id is None:
        return _ask(change, audience)
    found = Audit.objects.filter(pk=change.audit_id).first()
    if found is None:
        return Step({"audit_id": None})
    if found.ended_at is None:
        return wait(f"{words.result(found)}.")
    if found.problem or found.scan_began_at is None:
        return _give_up(change, f"{audience.odp_id}: {found.problem or found.note}")
    if _left_out_sent_again(found) and not resends.may_repair(found):
        return Step({"audit_id": None})
    if not found.differing:
        return _done(change)
    if change.repairs >= REPAIRS:
        return _give_up(change, f"{audience.odp_id}: {_people(found.differing)} after {REPAIRS} repairs")
    return to(Phase.REPAIR, resend_id=None)


def _left_out_sent_again(audit: Audit) -> bool:
    """Whether this service has sent events again during the audit, for example in a resync.

    The audit leaves out everybody who has an event since it began. ODP may know these people by the old field.
    """
    again = Again.objects.filter(audience=audit.audience_id, last_sequence__gt=audit.before_sequence)
    return bool(audit.moving) and again.exists()


def _ask(change: GuidedChange, audience: Audience) -> Step:
    """Request an audit, or use another one that was requested after the last call was read by the old field."""
    if Resend.objects.filter(audience=audience, ended_at=None).exists():
        return wait("People of the audience are being sent again.")
    asked = audits.ask(
        audience,
        mode=Audit.Mode.SAMPLE,
        by=change.by,
        sample=verification.SAMPLE,
        most=2 * identifier_changes.MOST_MEMBERS,
    )
    if asked is None:
        others = Audit.objects.filter(audience=audience, ended_at=None, asked_at__gte=_all_read_by_new(change))
        asked = others.exclude(mode=Audit.Mode.QUICK).first()
    return wait("Another audit of the audience is unfinished.") if asked is None else Step({"audit_id": asked.pk})


def repair(change: GuidedChange) -> Step:
    """Have the differences sent. The last step of the repair requests another audit."""
    audience = _audience(change)
    if _held(audience):
        return to(Phase.CHOOSE, audience=None)
    if change.resend_id is None:
        assert change.audit_id is not None
        found = Audit.objects.select_related("audience__lane").get(pk=change.audit_id)
        if resends.repair(found, by=change.by, reason=f"identifier field {change.after}: {change.reason}"):
            asked = Resend.objects.get(audience=audience, kind=Resend.Kind.REPAIR, ended_at=None)
            return Step({"resend_id": asked.pk, "repairs": change.repairs + 1, "waits_for": ""})
        if Resend.objects.filter(audience=audience, kind=Resend.Kind.REPAIR, ended_at=None).exists():
            return wait("Another repair of the audience is unfinished.")
        if found.is_newest:  # a repair can't correct the rest
            why = f"{_people(found.differing)}, because of changes that are parked."
            return _done(change, left_out={**change.left_out, audience.odp_id: why})
        return to(Phase.AUDIT, audit_id=None)
    sent = Resend.objects.get(pk=change.resend_id)
    if sent.ended_at is None:
        return wait(f"{sent.done:,} of {sent.total:,} people are in the log.")
    return to(Phase.AUDIT, audit_id=None)


def _people(differing: int) -> str:
    return "1 person differs" if differing == 1 else f"{differing:,} people differ"


def _done(change: GuidedChange, **changes: Any) -> Step:
    last = change.audience_id
    return to(Phase.CHOOSE, audience=None, last_audience_id=last, done=change.done + 1, **changes)


def stop(change: GuidedChange) -> Step | None:
    """The step that a stop takes now; None without a stop, or while the current audience is finished first."""
    if change.stopped_by and change.switched_at is None:
        return _give_up(change, f"Stopped by {change.stopped_by}")
    return None


def _audience(change: GuidedChange) -> Audience:
    assert change.audience_id is not None
    return Audience.objects.select_related("install", "lane").get(pk=change.audience_id)


STORING: dict[str, Callable[[GuidedChange], Step]] = {
    Phase.CHOOSE: choose,
    Phase.READ_BY: switch_field,
    Phase.CALLS: await_calls,
    Phase.AUDIT: audit,
    Phase.REPAIR: repair,
}
ASKING: dict[str, Callable[[GuidedChange, Client], Step]] = {}
