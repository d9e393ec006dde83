"""Scheduled looks at audiences in ODP: whether field, list and real-time audience are as this service made them.

A look writes nothing to ODP. Missing objects are created again like those of a new audience, and the ledger is sent
again where memberships were lost. A definition that a person changed is left alone and shown beside ours.

A look sends one list request, which shows the audiences that are gone, and then reads a few audiences, least recently
read first.
"""

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta

import structlog
from django.conf import settings
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet, Window
from django.utils.timezone import now

from audiences.agreement import odp_reasons
from audiences.delivery import provision
from audiences.delivery.odp_account import Gate, client_of, mechanism_for
from audiences.models import Audience, Audit, GuidedChange, Install, Lane, Twin
from audiences.operations import resends
from audiences.wake import wake, wake_look
from odp import segments
from odp.client import Client
from odp.mechanisms import Look
from odp.outcomes import Answer
from outgoing.deadline import TooLateError

log = structlog.get_logger(__name__)

# The most looks started in one run of the schedule.
AT_ONCE = 5
# The most audiences read in one look for each of four reasons. With 500 audiences and a look every 15 minutes, each is
# read every six hours; a deleted one is found by the next look.
READ = 20
# Seconds for all requests of one look.
SECONDS = 20.0


def start_due() -> int:
    """Wake workers for installs whose last look is older than ``LOOK_MINUTES``. Returns their number."""
    if not settings.LOOK_MINUTES:
        return 0
    at = now()
    may_ask = Install.objects.filter(enabled=True, key_accepted_at__isnull=False, backoff_until_at=None)
    made = Audience.objects.filter(install=OuterRef("pk"), provisioned_at__isnull=False)
    is_due = Q(twins_looked_at=None) | Q(twins_looked_at__lte=at - timedelta(minutes=settings.LOOK_MINUTES))
    oldest_first = F("twins_looked_at").asc(nulls_first=True)
    due = may_ask.filter(is_due, Exists(made)).order_by(oldest_first, "pk").values_list("pk", flat=True)[:AT_ONCE]
    started = [pk for pk in due if Install.objects.filter(is_due, pk=pk).update(twins_looked_at=at)]
    for install_id in started:
        wake_look(install_id)
    return len(started)


def look(install_id: int, *, gate: Gate | None = None) -> int:
    """Look at some audiences of an install. Returns the number that ODP responded for, and stores since when it doesn't
    respond for all.
    """
    install = Install.objects.filter(pk=install_id, enabled=True, key_accepted_at__isnull=False).first()
    if install is None:
        return 0
    client = client_of(install, ends_at=time.monotonic() + SECONDS, gate=gate)
    looked, failed = 0, 0
    try:
        for is_shown in _look(install, client):
            looked, failed = looked + is_shown, failed + (not is_shown)
    except TooLateError:  # no time left, also because of the rate limit; the next look continues
        failed += not looked
    mine = Install.objects.filter(pk=install_id)
    if failed:
        mine.filter(looks_fail_since_at=None).update(looks_fail_since_at=now())
    else:
        mine.exclude(looks_fail_since_at=None).update(looks_fail_since_at=None)
    return looked


def _look(install: Install, client: Client) -> Iterator[bool]:
    """Whether ODP shows each of the chosen audiences. If it doesn't list them either, the first failure is the last."""
    there = segments.ids(client, seconds=SECONDS)
    for audience in _chosen(install, there):
        found = mechanism_for(audience).look(
            client, audience.odp_id, seconds=SECONDS, accepted=audience.accepted_definition
        )
        if isinstance(found, Answer):
            log.info("an audience could not be looked at in ODP", audience=audience.odp_id, reason=found.reason)
        else:
            _note(audience, found)
        yield not isinstance(found, Answer)
        if isinstance(found, Answer) and isinstance(there, Answer):
            return


def _chosen(install: Install, there: frozenset[str] | Answer) -> Sequence[Audience]:
    """The audiences missing in ODP's list, those whose last look or audit found a difference, and the least recently
    read ones.

    An audience that the list lacks is read before it counts as missing, because ODP doesn't document that the list is
    complete. Audiences that are being created, or are paused, blocked or retired, are left out.
    """
    settled = Audience.objects.filter(
        install=install,
        provisioned_at__isnull=False,
        look_asked_at=None,
        hold_failures=0,
        lane__paused_at=None,
        lane__blocked_at=None,
        lane__retired_sequence=None,
    ).select_related("install", "twin")
    # The audience of a guided change is left out, if the change itself reads and writes it in ODP.
    changing = GuidedChange.objects.filter(ended_at=None, audience__isnull=False)
    settled = settled.exclude(pk__in=changing.exclude(kind=GuidedChange.Kind.IDENTIFIER).values("audience"))
    by_age = settled.order_by(F("twin__looked_at").asc(nulls_first=True), "pk")
    ids = settled.values_list("pk", "odp_id")
    gone = [] if isinstance(there, Answer) else [pk for pk, odp_id in ids if odp_id not in there]
    found = Q(twin__isnull=False) & ~Q(twin__finding=Twin.Finding.NOTHING)
    newest = Audit.objects.filter(Q(differing__gt=0) | ~Q(problem=""), is_newest=True)
    differ = Q(pk__in=newest.values("audience"))
    chosen = [audience for part in (Q(pk__in=gone), found, differ, Q()) for audience in by_age.filter(part)[:READ]]
    return list({audience.pk: audience for audience in chosen}.values())


def _note(audience: Audience, seen: Look) -> None:
    """Store the result of a look, and have missing objects created again."""
    finding, problem = odp_reasons.finding(audience, seen)
    before = Twin.objects.filter(pk=audience.pk).first()
    is_same = before is not None and (before.finding, before.problem) == (finding, problem)
    Twin.objects.update_or_create(
        audience=audience,
        defaults={
            "looked_at": now(),
            "finding": finding,
            "problem": problem,
            "found": seen.found,
            "ours": seen.ours,
            "since_at": (before.since_at if before and is_same else now()) if finding else None,
        },
    )
    provision.note_foreign(audience.pk, seen.definition)
    if finding and not is_same:
        log.warning("an audience is not as it was made in ODP", audience=audience.odp_id, finding=finding)
    if finding == Twin.Finding.MISSING or seen.lost_members:
        _make_again(audience, seen)


def _make_again(audience: Audience, seen: Look) -> None:
    """Have missing objects created again: by a resync if members were lost, otherwise by a check of the audience. The
    check blocks an audience whose field somebody has replaced by one of another type."""
    if Lane.objects.filter(pk=audience.pk, retired_sequence__isnull=False).exists():
        return
    reason = seen.problem or f"ODP no longer had {' and '.join(seen.missing)}"
    if not seen.lost_members or not resends.resync(audience, by=resends.SCHEDULE, reason=reason):
        provision.look_again(audience.pk)
    wake(audience.install_id)


def of(audience: Audience) -> Twin | None:
    """The result of the audience's last look; None before the first."""
    return Twin.objects.filter(pk=audience.pk).first()


def forget(audience: Audience) -> None:
    """Delete the audience's result, because it is out of date: the next look reads the audience first."""
    Twin.objects.filter(pk=audience.pk).delete()


def differing() -> QuerySet[Twin]:
    """The audiences that differ from what this service made, longest first. ``alike`` is the number of audiences of the
    same install with the same finding.
    """
    alike = Window(Count("*"), partition_by=[F("audience__install"), F("finding")])
    found = _differing().annotate(alike=alike)
    return found.select_related("audience__install", "audience__lane").order_by("since_at")


def alike(twin: Twin) -> list[Audience]:
    """The audiences of the same install that differ in the same way."""
    found = _differing().filter(audience__install=twin.audience.install_id, finding=twin.finding)
    return [one.audience for one in found.select_related("audience__install", "audience__lane").order_by("pk")]


def _differing() -> QuerySet[Twin]:
    """Without audiences that no look reads: nothing would be created again, and the finding would never end."""
    return Twin.objects.exclude(finding=Twin.Finding.NOTHING).filter(
        audience__install__enabled=True,
        audience__lane__paused_at=None,
        audience__lane__blocked_at=None,
        audience__lane__retired_sequence=None,
    )
