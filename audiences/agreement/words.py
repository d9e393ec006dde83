"""The result of an audit in one sentence, the same on each page and in the command."""

from datetime import timedelta

from django.conf import settings
from django.utils.timezone import now

from audiences.agreement import sizes as sizes_of_sides
from audiences.agreement.array_identifiers import MOST
from audiences.agreement.audits import confidence
from audiences.agreement.steps import Wait
from audiences.models import Audit

# How long after its planned time a step may begin. Shorter than the wait before a request is repeated.
_SLACK = timedelta(seconds=5)


def people(audit: Audit) -> int:
    """The number of people compared, with Lytics or with ODP, whichever is larger."""
    return max(audit.compared_with_lytics, audit.compared_with_odp)


def compared_nobody(audit: Audit) -> bool:
    """Whether the audit compared no person: all had events after it began, or the sample met nobody."""
    return not people(audit) and bool(audit.moving or audit.share < 1)


def result(audit: Audit) -> str:
    """The finding of an ended audit, or the progress of a running one."""
    if audit.ended_at is None and not audit.install.enabled:
        return "waiting until the install is switched on"
    if audit.started_at is None and audit.ended_at is None:
        return "waiting for its turn among the audits of this install"
    if audit.ended_at is None:
        return f"{audit.get_phase_display()}: {_so_far(audit)}"
    if audit.problem:
        return audit.problem
    if audit.mode == Audit.Mode.QUICK:
        return sizes(audit)
    everybody = people(audit)
    agreed = max(0, everybody - audit.differing)
    found = f"agreed on {agreed:,} of {everybody:,} people at {audit.ended_at:%Y-%m-%d %H:%M} UTC"
    if audit.moving and compared_nobody(audit):
        found += f"; all {audit.moving:,} had events after it began"
    if audit.differing:
        found += f"; {audit.explained:,} of {audit.differing:,} explained below"
    if audit.only_in_odp:
        found += f"; ODP estimates at least {audit.only_in_odp:,} more members, who were never here"
    if audit.share < 1 and not audit.compared_with_odp:
        found += ". ODP was asked about nobody"
    elif audit.share < 1:
        found += f". ODP was asked about {audit.compared_with_odp:,}: with 95 % confidence fewer than"
        found += f" {confidence(audit) * 100:.3g} % of the people differ there"
    return found


def arrays(audit: Audit) -> str:
    """How many people are wrong because the identifier field holds lists; empty if no member's field held one."""
    if not audit.array_option:
        return ""
    wrong = audit.left_list + audit.merged
    return (
        f"{'at least ' if has_more(audit) else ''}{wrong:,} of {audit.compared_with_lytics:,} people are"
        f" wrong because of array identifiers: {audit.left_list:,} left their profile's list, {audit.merged:,} are of"
        f" merged profiles (forget missing identifiers was {audit.array_option})"
    )


def has_more(audit: Audit) -> bool:
    """Whether there are more differences than those whose reasons were looked for."""
    return audit.differing > MOST


def sizes(audit: Audit) -> str:
    odp = "unknown" if audit.odp_low is None else f"{audit.odp_low:,} to {audit.odp_high:,}"
    found = (
        f"Lytics {_number(audit.lytics_size)}, this service {_number(audit.ledger_size)} members, ODP estimates {odp}"
    )
    if above := odp_above_ledger(audit):
        found += f": at least {above:,} more than here, whom an audit can't name"
    return found


def odp_above_ledger(audit: Audit) -> int | None:
    """The number of members by which ODP's low estimate exceeds the ledger; None when ODP gave no estimate.

    No API of ODP is known that lists an audience's members, so only this number shows people who were never in the
    ledger.
    """
    return sizes_of_sides.above_ledger(audit.odp_low, audit.ledger_size)


def _so_far(audit: Audit) -> str:
    if audit.phase == Audit.Phase.SCAN:
        of = f" of {audit.lytics_size:,}" if audit.lytics_size is not None else ""
        return f"{audit.scanned:,}{of} members read{_unanswered(audit, 'Lytics')}"
    if audit.phase == Audit.Phase.ODP:
        return f"ODP asked about {audit.compared_with_odp:,} people{_unanswered(audit, 'ODP')}"
    if audit.phase == Audit.Phase.SETTLE and (stop := _stop(audit)):
        return f"the audience is {stop}, and its events wait until a person changes that"
    return "nothing to count yet"


def _unanswered(audit: Audit, side: str) -> str:
    """That the last request got no usable response or wasn't sent, and when it is repeated. Only an audit that repeats
    one waits for longer than the planned waits before its first request.
    """
    if audit.phase == Audit.Phase.SCAN:
        planned_at, wait = audit.started_at, settings.AUDIT_SCAN_DELAY_SECONDS
        first_at = audit.scan_began_at
    else:
        planned_at, wait, first_at = audit.settled_since_at, settings.AUDIT_SETTLE_SECONDS, None
    if audit.next_at is None or planned_at is None or audit.next_at < now() - _SLACK:
        return ""
    first_at = first_at or planned_at + timedelta(seconds=max(Wait.LONG, wait) if wait else 0)
    if audit.next_at <= first_at + _SLACK:
        return ""
    again = f"{audit.next_at:%H:%M:%S} UTC"
    return f"; the last request to {side} failed, and is repeated at {again}"


def _stop(audit: Audit) -> str:
    lane = audit.audience.lane
    return "paused" if lane.paused_at else "blocked" if lane.blocked_at else ""


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
