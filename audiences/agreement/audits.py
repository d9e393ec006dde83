"""Audits: request an audit, and take its steps, phase by phase. The only writer of Audits.

Each step is one request to Lytics or ODP, or one statement, and is stored before the next one begins. A worker holds a
lease while it takes steps. If it dies, another worker continues after the last stored step. PostgreSQL's clock writes
and compares leases and waits. The end of a lease is also its token: a worker whose lease another worker has taken over
stores nothing.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, transaction
from django.db.models import Case, Exists, OuterRef, Q, QuerySet, When
from django.db.models.functions import Now
from django.utils.timezone import now

from audiences import ledger_size, sessions
from audiences.agreement import asking_odp, comparing, scanning, sizes
from audiences.agreement.steps import Ended, Step, Wait
from audiences.models import Audience, Audit, Difference, Install, Resend, ScannedMember
from audiences.wake import wake_audit, wake_look

log = structlog.get_logger(__name__)

# Longer than any step.
LEASE = timedelta(seconds=60)
# A lease that ends later than this was written before PostgreSQL's clock was set back, and is ignored.
FURTHEST_LEASE = 2 * LEASE
# The age from which an audit ends when a side doesn't respond. The page still shows the result before it.
GIVE_UP = timedelta(days=1)
# The most audits of the schedule that are under way in an install. They mostly wait. With more of them, each would wait
# longer for its next step, and people whose events come meanwhile aren't compared.
UNDER_WAY = 20
# The number of audits kept per audience.
KEPT = 100
# The most audits that the schedule requests in one run.
ASKED = 20
# The seconds that a person who stops an audit may wait for the deletion of its scan, beyond DATABASE_WEB_SECONDS.
FORGET_SECONDS = 60.0
SCHEDULE = "schedule"
FAILED = "Unexpected error of this service. The log of a worker has its traceback."

# The last results of audiences that are not audited again are no troubles: of retired ones, and of paused ones that ODP
# doesn't have. Another audience may have taken over the ODP id, and ODP then shows its members under the present one.
IS_AUDITED = Q(audience__lane__retired_sequence=None) & ~Q(
    audience__provisioned_at=None, audience__lane__paused_at__isnull=False
)

Phase = Audit.Phase
_STEPS: dict[str, Callable[[Audit], Step]] = {
    Phase.SCAN: scanning.step,
    Phase.SETTLE: comparing.settle,
    Phase.COMPARE: comparing.compare,
    Phase.ODP: asking_odp.step,
}
# The phases whose steps wait for a response of Lytics or ODP.
_WITH_REQUESTS = {Phase.SCAN, Phase.ODP}


def to_act_on() -> QuerySet[Audit]:
    """The newest audits that found differences or have no result."""
    found = Q(differing__gt=0) | ~Q(problem="") | Q(only_in_odp__gt=0)
    return Audit.objects.filter(found, IS_AUDITED, is_newest=True)


# --- requests ------------------------------------------------------------------------------------------------


def ask(audience: Audience, *, mode: str, by: str, sample: int = 0, share: float = 1.0, most: int = 0) -> Audit | None:
    """Store a new audit and wake the workers. None while another audit of the audience is unfinished.

    ``sample`` is the number of people about whom ODP is asked in the mode SAMPLE; ``share`` gives it as a fraction.
    ``most`` is the most differences with Lytics that are stored, if more than usual.
    """
    if mode == Audit.Mode.SAMPLE and sample:
        share = min(1.0, max(1, sample) / max(1, ledger_size.of(audience)))
    audit = Audit(install_id=audience.install_id, audience=audience, mode=mode, share=share, by=by, most=most)
    try:
        with transaction.atomic():
            audit.save(force_insert=True)
    except IntegrityError:
        return None
    install_id = audience.install_id
    transaction.on_commit(lambda: wake_audit(install_id), robust=True)
    return audit


def ask_due() -> int:
    """Request the audits that are due: one per delivering audience every ``AUDIT_HOURS``. Returns their number."""
    if not settings.AUDIT_HOURS:
        return 0
    since = now() - timedelta(hours=settings.AUDIT_HOURS)
    audiences = Audience.objects.filter(
        provisioned_at__isnull=False,
        provisioned_at__lte=since,
        install__enabled=True,
        lane__paused_at=None,
        lane__retired_sequence=None,
    )
    # An unfinished audit may wait for days. It must not take the place of another audience's.
    kept = Audit.objects.filter(Q(ended_at=None) | Q(asked_at__gt=since), audience=OuterRef("pk"))
    asked = 0
    for audience in audiences.exclude(Exists(kept)).select_related("install").order_by("pk")[:ASKED]:
        asked += ask(audience, mode=settings.AUDIT_MODE, by=SCHEDULE, sample=settings.AUDIT_SAMPLE) is not None
    return asked


def stop(audit: Audit, *, by: str) -> bool:
    """End the audit without a result. False when it has ended already."""
    stopped = Audit.objects.filter(pk=audit.pk, ended_at=None)
    done = bool(stopped.update(ended_at=now(), problem=f"Stopped by {by}.", lease_until_at=None))
    if done:
        with sessions.allow_more(FORGET_SECONDS):
            ScannedMember.objects.filter(audit=audit).delete()
    return done


# --- steps ---------------------------------------------------------------------------------------------------


def due() -> list[int]:
    """Return the enabled installs with an unfinished audit that no worker has leased, and whose next step is due."""
    ready = Audit.objects.filter(_no_lease(), _no_wait(), ended_at=None, install__enabled=True)
    return list(ready.order_by().values_list("install_id", flat=True).distinct())


def advance_all(install_id: int, *, seconds: float, note_request: Callable[[float], object] = float) -> None:
    """Take steps of the install's audits for at most ``seconds``, then have a worker take the next ones.

    While one audit waits, others take steps. One process at a time takes the steps of an install, so that their
    requests stay within the rates of the settings. ``note_request`` gets the seconds of each step with a request.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        audit = _lease(install_id)
        if audit is None:
            return
        try:
            run(audit, until=until, note_request=note_request)
        except ImproperlyConfigured as error:
            _wait_for_key(audit, str(error))
        except Exception as error:
            if sessions.is_database_error(error):  # the audit continues when PostgreSQL is well again
                raise
            # Otherwise the step would be tried for ever, and no other audit of the install would take one.
            log.exception("an audit failed", audience=audit.audience.odp_id, audit=audit.pk)
            _end(audit, {"problem": FAILED})
        finally:
            _held(audit).update(lease_until_at=None)
    wake_audit(install_id)


def _wait_for_key(audit: Audit, why: str) -> None:
    """Try the step again later, because this process can't decrypt a secret of the install. Another one may have the
    key, as while FIELD_ENCRYPTION_KEYS is rotated.
    """
    log.warning("an audit waits", audience=audit.audience.odp_id, audit=audit.pk, reason=why)
    if now() - (audit.started_at or audit.asked_at) >= GIVE_UP:
        _end(audit, {"problem": why})
    _held(audit).update(next_at=Now() + timedelta(seconds=scanning.AGAIN_SECONDS))


def finish(asked: Collection[Audit]) -> Iterator[Audit]:
    """Take the steps of audits in this process, beside the workers. Yields each audit when it has ended.

    Ends early when the install of all that are left is switched off or deleted: then no step is taken.
    """
    unfinished = {audit.pk for audit in asked}
    installs = {audit.install_id for audit in asked}
    may_go_on = True
    while unfinished and may_go_on:
        may_go_on = Audit.objects.filter(pk__in=unfinished, ended_at=None, install__enabled=True).exists()
        for install_id in installs:
            advance_all(install_id, seconds=1.0)
        ended = Audit.objects.filter(pk__in=unfinished, ended_at__isnull=False)
        for audit in ended.select_related("install", "audience__lane").order_by("ended_at"):
            unfinished.remove(audit.pk)
            yield audit
        if unfinished and may_go_on:
            time.sleep(0.1)


def _lease(install_id: int) -> Audit | None:
    """Lease the install's next audit whose step is due: those that a person asked for first, then by age.

    None when there is none, when another process takes the install's steps, or when the install is switched off.
    """
    if not Install.objects.filter(pk=install_id, enabled=True).exists():
        return None
    unfinished = Audit.objects.filter(install=install_id, ended_at=None)
    with transaction.atomic():
        # The row of the oldest one is the lock under which the leases of an install are read and written.
        if not unfinished.select_for_update().order_by("pk")[:1] or unfinished.exclude(_no_lease()).exists():
            return None
        ready = unfinished.filter(_no_wait())
        if unfinished.filter(started_at__isnull=False).exclude(_STOPPED).count() >= UNDER_WAY:
            ready = ready.exclude(by=SCHEDULE, started_at=None)
        of_schedule = Case(When(by=SCHEDULE, then=1), default=0)
        chosen = ready.order_by(of_schedule, "pk").values_list("pk", flat=True).first()
        if chosen is None:
            return None
        Audit.objects.filter(pk=chosen).update(lease_until_at=Now() + LEASE)
    return Audit.objects.select_related("install", "audience__lane").get(pk=chosen)


def _no_lease() -> Q:
    return Q(lease_until_at=None) | Q(lease_until_at__lte=Now()) | Q(lease_until_at__gt=Now() + FURTHEST_LEASE)


def _no_wait() -> Q:
    longest = max(settings.AUDIT_SETTLE_SECONDS, settings.AUDIT_SCAN_DELAY_SECONDS, scanning.AGAIN_SECONDS)
    furthest = Now() + timedelta(seconds=2 * longest)  # see FURTHEST_LEASE
    return Q(next_at=None) | Q(next_at__lte=Now()) | Q(next_at__gt=furthest)


def _held(audit: Audit) -> QuerySet[Audit]:
    """The row of an unfinished audit, while this worker has its lease."""
    return Audit.objects.filter(pk=audit.pk, ended_at=None, lease_until_at=audit.lease_until_at)


# Audits that wait for a person to resume or unblock the audience, or for an error of ours to end.
_STOPPED = Q(phase=Audit.Phase.SETTLE) & (
    Q(audience__lane__paused_at__isnull=False)
    | Q(audience__lane__blocked_at__isnull=False)
    | Q(audience__lane__fault_since_at__isnull=False)
    | Q(audience__provisioned_at=None)
)


def run(audit: Audit, *, until: float, note_request: Callable[[float], object] = float) -> None:
    """Take the steps of an audit until it ends or has to wait, or ``time.monotonic`` passes ``until``.

    Each step is stored in the audit's row, and renews the lease. A switched-off install takes no step.
    """
    _begin(audit)
    while audit.ended_at is None and time.monotonic() < until:
        # For each step, because the identifier field, the ODP account or the ODP id may have been switched since the
        # last one. A repair by the members of a scan of the former field would enter them under that field.
        enabled = Audience.objects.filter(pk=audit.audience_id, install__enabled=True)
        audience = enabled.select_related("install", "lane").first()
        if audience is None:
            return
        audit.install, audit.audience = audience.install, audience
        began, has_request = time.monotonic(), audit.phase in _WITH_REQUESTS
        result = _step(audit)
        if has_request:
            note_request(time.monotonic() - began)
        if result.seconds >= Wait.LONG:
            _store(audit, result, next_at=Now() + timedelta(seconds=result.seconds))
            return
        _store(audit, result)
        time.sleep(max(0.0, result.seconds - (time.monotonic() - began)))


def _step(audit: Audit) -> Step:
    try:
        result = _STEPS[audit.phase](audit)
        if not result.changes and audit.started_at is not None and now() - audit.started_at >= GIVE_UP:
            side = "Lytics" if audit.phase == Phase.SCAN else "ODP"
            raise Ended(f"{side} did not respond until {GIVE_UP.days} day after the audit began.")
        return result
    except Ended as ended:
        log.warning("an audit ended without a result", audience=audit.audience.odp_id, reason=ended.problem)
        _end(audit, {"problem": ended.problem})
        wake_look(audit.install_id)
        return Step()


def _begin(audit: Audit) -> None:
    if audit.started_at is None:
        _store(
            audit,
            Step({"started_at": now(), "before_sequence": audit.audience.last_sequence, **sizes.of(audit)}),
        )
        if audit.mode == Audit.Mode.QUICK:
            _finish(audit)


def _store(audit: Audit, step: Step, **wait: Any) -> None:
    """Store a step, and renew the lease. An audit that a person stopped during the step stays stopped, without the page
    that it has read. A worker whose lease is lost changes nothing; the phase is compared for one without a lease.
    """
    with transaction.atomic():
        stored = _held(audit).filter(phase=audit.phase).update(**step.changes, **wait, lease_until_at=Now() + LEASE)
        if stored:
            audit.lease_until_at = Audit.objects.values_list("lease_until_at", flat=True).get(pk=audit.pk)
        if stored and step.forgets_scan:
            ScannedMember.objects.filter(audit=audit).delete()
    for name, value in step.changes.items():
        setattr(audit, name, value)
    if not stored:
        audit.ended_at = audit.ended_at or now()
        _forget_scan_if_ended(audit)
    elif audit.phase == Phase.DONE and audit.ended_at is None:
        _finish(audit)


def _forget_scan_if_ended(audit: Audit) -> None:
    if not Audit.objects.filter(pk=audit.pk, ended_at=None).exists():
        ScannedMember.objects.filter(audit=audit).delete()


def _finish(audit: Audit) -> None:
    differences = Difference.objects.filter(audit=audit, is_explained=True)
    explained = differences.values("identifier").distinct().count()
    _end(audit, {"phase": Phase.DONE, "explained": explained, "only_in_odp": sizes.only_in_odp(audit)})
    log.info("audit done", audience=audit.audience.odp_id, audit=audit.pk, differing=audit.differing)
    if audit.differing:  # a look shows on Now whether the audience in ODP is the reason, as after a rejected query
        wake_look(audit.install_id)


def _end(audit: Audit, changes: dict[str, Any]) -> None:
    """End the audit with a result or a problem, and mark it as the newest ended audit of its audience.

    It stays behind an earlier result about which it says nothing (``_says_nothing_about``).
    """
    of_audience = Audit.objects.filter(audience=audit.audience_id)
    of_people = of_audience.filter(is_newest=True).exclude(mode=Audit.Mode.QUICK).first()
    has_problem = bool(changes.get("problem"))
    is_newest = of_people is None or not _says_nothing_about(of_people, audit, has_problem=has_problem)
    ended: dict[str, Any] = {**changes, "ended_at": now(), "lease_until_at": None, "is_newest": is_newest}
    with transaction.atomic():
        # Else a person has stopped it, or another worker has the lease.
        if _held(audit).update(**ended) and is_newest:
            of_audience.filter(is_newest=True).exclude(pk=audit.pk).update(is_newest=False)
    for name, value in ended.items():
        setattr(audit, name, value)
    _forget_scan_if_ended(audit)
    kept = of_audience.order_by("-id").values("pk")[:KEPT]
    of_audience.filter(ended_at__isnull=False, is_newest=False).exclude(pk__in=kept).delete()


def _says_nothing_about(earlier: Audit, audit: Audit, *, has_problem: bool) -> bool:
    """Whether the audit leaves the result of ``earlier`` in place.

    An audit of sizes does: it compares no people. So does one that didn't compare with Lytics, because it has no result
    or didn't ask, if ``earlier`` has differences from Lytics that weren't repaired. Differences in ODP need no such
    rule, because each audit asks ODP about these people again.
    """
    if audit.mode == Audit.Mode.QUICK:
        return True
    if audit.scan_began_at and not has_problem:
        return False
    of_lytics = (Difference.Kind.NOT_HERE, Difference.Kind.NOT_IN_LYTICS)
    repaired = Resend.objects.filter(kind=Resend.Kind.REPAIR, upto=earlier.pk, ended_at__isnull=False, stopped_by="")
    return earlier.differences.filter(kind__in=of_lytics).exists() and not repaired.exists()


def confidence(audit: Audit) -> float:
    """The upper bound of the share of differing people in ODP: 95 % confidence, Wilson score, from the sample."""
    if audit.share >= 1:
        return 0.0
    if not audit.compared_with_odp:
        return 1.0
    z, n = 1.645, audit.compared_with_odp
    share = min(1.0, audit.differing / n)  # people who differ from Lytics aren't all in the sample
    centre = share + z * z / (2 * n)
    return min(1.0, (centre + z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))) / (1 + z * z / n))
