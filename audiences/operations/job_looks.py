"""Scheduled looks at the Lytics jobs of installs with an API token: which audiences a job still sends.

A look sends two list requests, and for each of a few audiences that Lytics doesn't list one request. It writes nothing
to Lytics. An audience counts as gone only if a look has seen it in a job, that job is still listed, and no job of the
install sends it any more; or if Lytics answers 404 for it. Anything less certain changes nothing.
"""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.db.models import QuerySet
from django.utils.timezone import now

from audiences import lytics_account
from audiences.models import Audience, Install, JobPresence, Retirement
from audiences.operations.doctor.case import Case, NotCheckedError
from audiences.operations.job_contents import Contents, contents
from audiences.receiving.audience_lookup import BY_SLUG
from outgoing.deadline import TooLateError

log = structlog.get_logger(__name__)

# Seconds for all requests of one look.
SECONDS = 20.0
# The most audiences of one look about which Lytics is asked one by one, least recently asked first.
ASKED = 5
FIELDS = ("seen_at", "job_id", "gone_at", "is_deleted", "asked_at")


def look_at_due(*, seconds: float) -> int:
    """Look at the jobs of installs whose last look is older than ``LOOK_MINUTES``. Returns their number.

    No look begins after ``seconds``; the next run goes on with the other installs.
    """
    if not settings.LOOK_MINUTES:
        return 0
    until = time.monotonic() + seconds
    looked = 0
    while time.monotonic() < until:
        install_id = lytics_account.take_job_look(before=now() - timedelta(minutes=settings.LOOK_MINUTES))
        if install_id is None:
            break
        look(install_id)
        looked += 1
    return looked


def look(install_id: int) -> None:
    """Look at the jobs of one install, and store which of its audiences they send."""
    install = Install.objects.filter(pk=install_id).first()
    if install is None:
        return
    case = Case(install, seconds=SECONDS)
    try:
        found = contents(case)
        presences = _presences(case, found, at=now())
    except (NotCheckedError, TooLateError) as problem:
        log.info("the Lytics jobs could not be looked at", install=install.name, reason=str(problem))
        return
    _find_deleted(case, presences, at=now())
    JobPresence.objects.bulk_create(
        presences, update_conflicts=True, unique_fields=["audience"], update_fields=list(FIELDS)
    )


def _presences(case: Case, found: Contents, *, at: datetime) -> list[JobPresence]:
    """The audiences that a job sends or has sent, with what this look found."""
    known = {one.audience_id: one for one in JobPresence.objects.filter(audience__install=case.install)}
    presences = []
    for audience in case.unretired:
        presence = known.get(audience.pk)
        if job_id := found.job_of(audience):
            presence = presence or JobPresence(audience=audience)
            presence.seen_at, presence.job_id = at, job_id
            is_gone = False
        elif presence is None:
            continue
        else:
            is_sure = presence.job_id in found.jobs and not found.may_be_sent(audience)
            is_gone = is_sure or presence.gone_at is not None
        if audience.segment_id in case.lytics_audiences:
            presence.is_deleted = False
        is_gone = is_gone or presence.is_deleted
        presence.gone_at = (presence.gone_at or at) if is_gone else None
        presence.audience = audience
        presences.append(presence)
    return presences


def _find_deleted(case: Case, presences: Sequence[JobPresence], *, at: datetime) -> None:
    """Ask Lytics about some of the audiences that its list lacks. Only an answer of 404 says that it deleted one."""
    unlisted = [
        one
        for one in presences
        if not one.is_deleted
        and not one.audience.segment_id.startswith(BY_SLUG)
        and one.audience.segment_id not in case.lytics_audiences
    ]
    unlisted.sort(key=lambda one: (one.asked_at is not None, one.asked_at, one.audience_id))
    try:
        for presence in unlisted[:ASKED]:
            presence.asked_at = at
            if case.is_deleted_in_lytics(presence.audience.segment_id):
                presence.is_deleted, presence.gone_at = True, presence.gone_at or at
    except (NotCheckedError, TooLateError) as problem:
        log.info("Lytics could not be asked about an audience", install=case.install.name, reason=str(problem))


def of(audience: Audience) -> JobPresence | None:
    """What the last look found of an audience; None if no look has seen it in a job."""
    return JobPresence.objects.filter(pk=audience.pk).first()


def gone() -> QuerySet[JobPresence]:
    """The audiences that left the Lytics job or were deleted in Lytics and aren't retired, longest first.

    Installs without looks are left out, because no look would find a change: those that are off or have no API token.
    """
    if not settings.LOOK_MINUTES:
        return JobPresence.objects.none()
    retired = Retirement.objects.filter(undone_at=None).values("audience")
    found = JobPresence.objects.filter(
        gone_at__isnull=False,
        audience__install__enabled=True,
        audience__install__lytics__isnull=False,
    ).exclude(audience__in=retired)
    return found.select_related("audience__install", "audience__lane").order_by("gone_at", "pk")
