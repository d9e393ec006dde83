"""The check of members: whether the newest audits found the same members on all sides."""

from collections.abc import Sequence
from datetime import timedelta

from django.conf import settings
from django.utils.timezone import now

from audiences.agreement import repairs, words
from audiences.agreement.audits import IS_AUDITED
from audiences.models import Audit
from audiences.operations.doctor.case import Case
from audiences.operations.doctor.odp_account import NAMED, ODP
from audiences.operations.doctor.registry import Finding, Found, bad, check, good, most_urgent, unknown, warning

CURE = "Press Audit on the page of an audience."


@check(ODP, "Members on both sides")
def odp_members(case: Case) -> Found:
    """Whether the newest audit of each audience found the same members in Lytics, here and in ODP. Starts no audit."""
    newest = Audit.objects.filter(IS_AUDITED, install=case.install, is_newest=True).select_related("audience")
    audits = {audit.audience_id: audit for audit in newest}
    differing = [audit for audit in audits.values() if audit.problem or audit.differing or audit.only_in_odp]
    if differing:
        return most_urgent(map(_finding, differing), NAMED)
    made = [audience for audience in case.unretired if audience.provisioned_at]
    of_people = {pk: audit for pk, audit in audits.items() if audit.mode != Audit.Mode.QUICK}
    ended = [of_people[audience.pk] for audience in made if audience.pk in of_people]
    audited = [audit for audit in ended if not words.compared_nobody(audit)]
    if not audited:
        how = " with a comparison of people" if of_people else " but by sizes" if audits else ""
        return unknown(f"No audience of this install was audited{how}.", CURE)
    at = min(audit.ended_at for audit in audited if audit.ended_at)
    found = f"The newest audits of {len(audited):,} of {len(made):,} audiences found no difference{_left_out(audited)}."
    stale = settings.AUDIT_HOURS and now() - at > 2 * timedelta(hours=settings.AUDIT_HOURS)
    if len(audited) < len(made) or stale:
        return warning(found, f"{CURE} The schedule audits each audience every AUDIT_HOURS hours.", at=at)
    return good(found, at=at)


def _left_out(audited: Sequence[Audit]) -> str:
    moving, without = sum(audit.moving for audit in audited), sum(bool(audit.note) for audit in audited)
    people = f"{moving:,} people with events during an audit were not compared" if moving else ""
    lytics = f"Lytics was not asked in {without:,} of them" if without else ""
    return f" ({'; '.join(filter(None, (people, lytics)))})" if people or lytics else ""


def _finding(audit: Audit) -> Finding:
    make = bad if audit.differing and not audit.problem else warning
    return make(f"{words.result(audit)}.", _cure(audit), at=audit.ended_at, about=str(audit.audience))


def _cure(audit: Audit) -> str:
    if audit.problem:
        return CURE
    if audit.differing and not repairs.differences(audit).exists():
        return "A repair can't correct this. Open its newest audit under Audits, and end the reasons that it names."
    if audit.differing:
        return "Open its newest audit under Audits, and press Repair there."
    return "Stop the other system that writes to ODP, then press Change mechanism on the install's page."
