"""Probes: test customers that each install sends on a schedule, and the proof of the newest ones.

A probe is a Trial that no person has started. The proof on a page is the newest Trial that ended, a probe or not, in
which ODP showed the customer in the audience and later no longer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import structlog
from django.conf import settings
from django.db.models import Exists, F, Max, OuterRef, Q, QuerySet, Subquery, Window
from django.db.models.functions import Lag, RowNumber
from django.utils.timezone import now

from audiences.insight import state, trials
from audiences.insight.state import State
from audiences.models import Audience, GuidedChange, Install, Lane, Trial

log = structlog.get_logger(__name__)

# The most probes under way at once, over all installs. A probe occupies a thread of a worker for at most some minutes
# while it waits for ODP; the other threads deliver.
AT_ONCE = 5
# The time from a failed probe to the next one.
AFTER_FAILURE = timedelta(minutes=2)
# The shortest time between two probes of an install, because the entry of a probe is dated back by seconds.
REST = timedelta(seconds=15)
# The number of probes kept per install beside the last proof: those of two days at the default interval.
KEPT = 200
# The name that pages show as the person who started a probe.
BY = "schedule"
# Why an install has no proof and gets none, and the cure.
RETIRED = "The audience of the test customers is retired, so none is sent."
RETIRED_CURE = "Press Take back on its page."
# Why a proof is overdue, and the cure.
STOPPED, STOPPED_CURE = "No test customer was sent since.", "Start the worker and beat processes."
WAITING = f"Its test customer waits for those of other installs: at most {AT_ONCE} are under way at once."
WAITING_CURE = "Raise PROBE_MINUTES if this lasts."

# A test customer of before says nothing about the present account or mechanism.
_CHANGED_SINCE = Exists(
    GuidedChange.objects.filter(
        Q(kind=GuidedChange.Kind.ACCOUNT, switched_at__gte=OuterRef("started_at"))
        | Q(kind=GuidedChange.Kind.MECHANISM, ended_at__gte=OuterRef("started_at")),
        install=OuterRef("install"),
    )
)
# Nor does it while ODP doesn't have its audience, which it had then: another account, mechanism or ODP id was entered.
_IN_ODP = Audience.objects.filter(segment_id=trials.SEGMENT_ID, provisioned_at__isnull=False)
_IS_OF_BEFORE = Q(_CHANGED_SINCE) | (
    Q(hops__contains=[{"hop": trials.MADE, "how": trials.DONE}]) & ~Exists(_IN_ODP.filter(install=OuterRef("install")))
)


@dataclass(frozen=True)
class Proof:
    """The result of an install's newest test customer. ``at`` is the last time that ODP showed what was sent.

    ``word`` is *proven*, *failing*, *overdue* (none was sent for two intervals, and none is under way), or *none* (none
    was sent since the install has its account and mechanism). ``why`` has the likely cause and the cure. ``cure`` has
    the cure of *overdue* alone.
    """

    word: Literal["proven", "failing", "overdue", "none"]
    at: datetime | None = None
    why: str = ""
    since: datetime | None = None
    cure: str = ""

    @property
    def is_bad(self) -> bool:
        return self.word in ("failing", "overdue")

    @property
    def state(self) -> State:
        return State(self.word, self.why, alert=self.is_bad)


def interval() -> timedelta:
    """The interval between probes; zero when they are switched off."""
    return timedelta(minutes=settings.PROBE_MINUTES)


def start_due() -> int:
    """Start the probes that are due, the install with the oldest probe first. Returns the number of started probes."""
    if not interval():
        return 0
    free = AT_ONCE - Trial.objects.filter(closed_at=None, is_probe=True).count()
    started = 0
    for install in _due()[: max(0, free)]:
        if trials.start(install, by=BY, identifier=_customer(install)):
            started += 1
            trials.drop_old_probes(install, keep=KEPT)
    return started


def _due() -> list[Install]:
    """Installs that have audiences, whose key ODP has accepted, and whose last Trial is too old.

    A changed connection is probed at once: saving it checks the key with ODP, which sets ``key_asked_at``.
    """
    at = now()
    last = Trial.objects.filter(install=OuterRef("pk")).order_by("-id")
    proven = trials.proven(last.filter(closed_at__isnull=False))
    installs = (
        _probed()
        .exclude(Exists(last.filter(closed_at=None)))
        .annotate(
            ended_at=Subquery(last.values("closed_at")[:1]),
            began_at=Subquery(last.values("started_at")[:1]),
            last_id=Subquery(last.values("pk")[:1]),
            proven_id=Subquery(proven.values("pk")[:1]),
        )
    )
    is_due = (
        Q(ended_at=None)
        | Q(ended_at__lte=at - interval())
        | Q(ended_at__lte=at - REST, key_asked_at__gt=F("began_at"))
        | Q(ended_at__lte=at - min(interval(), AFTER_FAILURE)) & (Q(proven_id=None) | Q(proven_id__lt=F("last_id")))
    )
    return list(installs.filter(is_due).order_by(F("ended_at").asc(nulls_first=True), "pk"))


def _probed() -> QuerySet[Install]:
    return (
        Install.objects.filter(enabled=True, key_accepted_at__isnull=False)
        .filter(Exists(Audience.objects.filter(install=OuterRef("pk"))))
        .exclude(pk__in=_with_retired_audience())
    )


def gaps(since: datetime) -> list[tuple[datetime, datetime]]:
    """The times since then in which this service didn't run: no test customer was sent for longer than *overdue*.

    Empty without probes. The last gap goes on until the next test customer is sent.
    """
    if not interval():
        return []
    place = Window(RowNumber(), partition_by=[F("install")], order_by=F("pk").desc())
    # Those between a last proof and the newest probes are deleted, so what follows that proof isn't known.
    alone = Trial.objects.filter(is_probe=True).annotate(place=place).filter(place__gt=KEPT)
    sent = Trial.objects.filter(is_probe=True, started_at__gte=since).exclude(pk__in=[one.pk for one in alone])
    sent = sent.annotate(before=Window(Lag("moved_at"), order_by=F("started_at").asc()))
    late = sent.filter(started_at__gt=F("before") + _overdue_after()).order_by("started_at")
    found = list(late.values_list("before", "started_at"))
    newest = sent.aggregate(at=Max("moved_at"))["at"]
    if newest is not None and now() - newest > _overdue_after() and _probed().exists():
        found.append((newest, now()))
    return found


def _overdue_after() -> timedelta:
    return 2 * interval() + AFTER_FAILURE


def _with_retired_audience() -> "QuerySet[Lane, int]":
    """The installs for which a person has retired the audience of the test customers."""
    retired = Lane.objects.filter(retired_sequence__isnull=False, audience__segment_id=trials.SEGMENT_ID)
    return retired.values_list("audience__install", flat=True)


def _customer(install: Install) -> str:
    """One customer for all probes of an install, so that ODP doesn't get a profile with each.

    An entry is a proof only if ODP showed the customer outside of the audience before. So after a failed probe the next
    probe has a new customer.
    """
    last = Trial.objects.filter(install=install, is_probe=True, closed_at__isnull=False).first()
    name = f"lytics-sync-probe-{install.public_id}"
    if last is None:
        return name
    return last.identifier if state.of_trial(last).word == "done" else f"{name}-{last.pk}"


# --- proofs --------------------------------------------------------------------------------------------------


def proof_of(install: Install) -> Proof:
    return proofs([install])[install.pk]


def proofs(installs: Iterable[Install]) -> dict[int, Proof]:
    """The proof of each install, by install id, in four queries."""
    wanted = {install.pk: install for install in installs}
    retired = set(_with_retired_audience())
    ended = Trial.objects.filter(~_IS_OF_BEFORE, install__in=wanted, closed_at__isnull=False)
    shown = trials.proven(ended)
    newest = {one.install_id: one for one in ended.order_by("install_id", "-id").distinct("install_id")}
    proven = {one.install_id: one for one in shown.order_by("install_id", "-id").distinct("install_id")}
    unfinished = Trial.objects.filter(closed_at=None).values_list("install", "is_probe", "moved_at")
    under_way = {install_id for install_id, _, _ in unfinished}
    # A probe that moved lately shows that the worker and beat run.
    others_run = any(is_probe and now() - moved_at < trials.SILENT_AFTER for _, is_probe, moved_at in unfinished)
    return {
        pk: Proof("none")
        if pk in retired
        else _proof(install, newest.get(pk), proven.get(pk), is_under_way=pk in under_way, others_run=others_run)
        for pk, install in wanted.items()
    }


def _proof(
    install: Install, newest: Trial | None, proven: Trial | None, *, is_under_way: bool, others_run: bool
) -> Proof:
    if newest is None:
        return Proof("none")
    at = proven.closed_at if proven else None
    # A failure by a hold that is over says nothing about what ODP shows; the next probe follows soon.
    is_hold_over = install.backoff_until_at is None and trials.ON_HOLD in why_failed(newest)
    if newest != proven and not (at and is_hold_over):
        return Proof("failing", at, why_failed(newest), newest.started_at)
    assert at is not None
    assert newest.closed_at is not None
    is_late = interval() and install.enabled and now() - newest.closed_at > _overdue_after()
    if is_late and not is_under_way:
        why, cure = (WAITING, WAITING_CURE) if others_run else (STOPPED, STOPPED_CURE)
        return Proof("overdue", at, f"{why} {cure}", at, cure)
    return Proof("proven", at)


def none_sent(install: Install) -> str:
    """Why there is no proof, in words."""
    changed = " since the account, the mechanism or the ODP id of its audience was changed"
    since = changed if Trial.objects.filter(install=install).exists() else ""
    return f"No test customer has been sent{since}."


def why_failed(trial: Trial) -> str:
    """The reason of the failed step, with the likely cause and the cure."""
    failed = (str(hop["words"]) for hop in trial.hops if hop["how"] == trials.FAILED)
    return next(failed, state.of_trial(trial).why)
