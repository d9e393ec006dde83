"""The troubles of the service, defined once for the front page and for messages (docs/alerts.md)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import unescape
from typing import Any

from django.db.models import Count, Min, Q, Subquery
from django.utils.html import strip_tags
from django.utils.safestring import SafeString
from django.utils.timezone import now

from audiences import readiness
from audiences.admin import parked_groups
from audiences.admin.pages import last_call, list_url
from audiences.front import (
    audits,
    calls,
    certificate,
    channels,
    delays,
    expiring_tokens,
    guided_changes,
    items,
    left_audiences,
    lines,
    looks,
    parked_growth,
    proofs,
    retention,
    retirements,
    silence,
    similar_slugs,
    twins,
    unfinished_forgetting,
)
from audiences.front.alerts import EVERYWHERE, Alert, Extent, and_more
from audiences.front.groups import Groups, blocked_by_cause
from audiences.insight import backlogs, failures, heartbeats, probes, rhythm, schedule, stalled_work
from audiences.insight import certificate as certificates
from audiences.insight import parked_growth as growth
from audiences.insight.backlogs import Backlog
from audiences.insight.certificate import Certificate
from audiences.insight.heartbeats import Pulse
from audiences.insight.probes import Proof
from audiences.models import Audience, Install, Trouble
from audiences.operations import troubles
from audiences.operations.troubles import Seen
from audiences.receiving import rejected_calls
from audiences.receiving.rejected_calls import RejectedCalls

# A check reads at most this many troubles of each kind. If a kind has more, the check resolves no trouble of that kind,
# because the troubles that it did not read may still last.
FOLLOWED = 500


@dataclass(frozen=True)
class Facts:
    """What the numbers and the troubles are derived from. ``rejections`` is None when Redis doesn't answer.

    Of the install of ``extent``, or of all. What concerns no install is there in any case.
    """

    extent: Extent
    installs: list[Any]
    waiting: Mapping[int, Backlog]
    blocked: Groups
    parked: list[parked_groups.Group]
    pulse: Pulse
    # Since when the schedule is silent, in seconds; None when it isn't.
    silent_seconds: float | None
    stuck: list[stalled_work.Stuck]
    rejections: dict[str, RejectedCalls] | None
    proofs: Mapping[int, Proof]
    # By install id, the longest pause between calls before its sender counts as silent, if there is a limit.
    pauses: Mapping[int, timedelta]
    certificate: Certificate | None
    # By install id, since when too many items are parked.
    growing: Mapping[int, datetime]


def facts(extent: Extent = EVERYWHERE) -> Facts:
    install_id = extent.install_id
    of_install = {} if install_id is None else {"pk": install_id}
    installs = list(Install.objects.filter(**of_install).defer("odp_api_key").annotate(called_at=Subquery(last_call())))
    rejections = rejected_calls.last_hour(install.public_id for install in installs)
    waiting = backlogs.by_install(None if install_id is None else [install_id])
    return Facts(
        extent=extent,
        installs=installs,
        waiting=waiting,
        blocked=blocked_by_cause(extent),
        parked=[group for group in parked_groups.found() if install_id in (None, group.install)],
        pulse=heartbeats.pulse(),
        # When Redis doesn't respond, nothing else waits for its timeout again.
        silent_seconds=None if rejections is None else schedule.silent_seconds(),
        stuck=stalled_work.all_stuck(install_id, waiting),
        rejections=rejections,
        proofs=probes.proofs(installs),
        pauses=rhythm.limits(installs),
        certificate=None if rejections is None else certificates.known(),
        growing={pk: at for pk, at in growth.by_install().items() if install_id in (None, pk)},
    )


def alerts(facts: Facts) -> list[Alert]:
    """The alerts for these facts, most urgent first."""
    installs, rejections, extent = facts.installs, facts.rejections or {}, facts.extent
    found = [
        *calls.unreadable_secret(readiness.encryption_problem()),
        *calls.work_stands_still(facts.stuck, facts.pulse),
        *calls.without_beat(facts.silent_seconds, facts.pulse),
        *calls.failing_tasks(failures.recent()),
        *calls.without_redis(failures.broker_problem()),
        *_unheard(facts.pulse, extent),
        *items.installs_on_hold(installs, facts.waiting),
        *proofs.not_proven(installs, facts.proofs, extent),
        *calls.rejected(installs, rejections),
        *expiring_tokens.alerts(extent),
        *calls.over_the_mark(installs, facts.waiting),
        *calls.over_the_disk_mark(installs),
        *delays.late_events(installs, facts.waiting, extent, without=_without_progress(facts.stuck)),
        *silence.silent_senders(installs, facts.pauses, facts.waiting, rejections, extent),
        *calls.switched_off(installs),
        *calls.drafts(installs),
        *certificate.alerts(facts.certificate),
        *channels.alerts(),
        *items.blocked_audiences(facts.blocked, extent),
        *twins.alerts(extent),
        *looks.alerts(installs, extent),
        *audits.alerts(extent),
        *left_audiences.alerts(extent),
        *retirements.alerts(extent),
        *items.recreated_audiences(extent),
        *similar_slugs.alerts(extent),
        *items.creations_on_hold(extent),
        *items.audiences_with_errors(extent),
        *parked_growth.growing(installs, facts.growing, extent),
        *items.parked_items(facts.parked, extent),
        *guided_changes.alerts(extent),
        *unfinished_forgetting.alerts(extent),
        *retention.alerts(),
        *items.paused_audiences(extent),
        *items.ignored_times(),
        *items.times_stored_ahead(),
        *items.new_installs(installs, rejections),
    ]
    found.sort(key=lambda alert: alert.tone != "bad")
    return found


def _without_progress(stuck: Iterable[stalled_work.Stuck]) -> set[str]:
    """The names of the installs that the alert about work without any progress is about."""
    return {one.install for one in stuck if not one.in_part}


def stored(found: list[Alert]) -> list[tuple[Alert, Trouble | None]]:
    """Each alert with its stored trouble, which several alerts of one install and cause share.

    Unlisted troubles without a trouble for their rest get a muted one of their kind, if all of the kind are muted.
    """
    keys = [_seen(alert).key for alert in found]
    still = Trouble.objects.filter(resolved_at=None)
    known = {trouble.key: trouble for trouble in still.filter(key__in=keys)}
    # Hundreds may be open, so PostgreSQL counts them.
    muted = Count("pk", filter=Q(muted_until__gt=now()))
    rows = still.order_by().values_list("kind").annotate(Min("pk"), unmuted=Count("pk") - muted)
    firsts = {kind: first for kind, first, unmuted in rows if not unmuted}
    unlisted = {alert.kind for alert in found if alert.is_rest} & firsts.keys()
    of_rest = {trouble.kind: trouble for trouble in still.filter(pk__in=[firsts[kind] for kind in unlisted])}
    return [
        (alert, known.get(key, of_rest.get(alert.kind) if alert.is_rest else None))
        for alert, key in zip(found, keys, strict=True)
    ]


def _unheard(pulse: Pulse, extent: Extent) -> list[Alert]:
    """Alerts for workers that sent heartbeats within the last hour, then fell silent, and weren't stopped."""
    others = (
        f"Other workers take over its audiences. Still answering: {len(pulse.answering)}."
        if pulse.answering
        else "No other worker answers, so nothing is delivered."
    )
    silent_workers = [
        Alert(
            "worker",
            f"The worker {worker} is silent",
            f"It was killed, or can't reach Redis or PostgreSQL. {others}",
            worker.beat_at,
            list_url(Audience, state="behind"),
            "held" if pulse.answering else "bad",
            todo="Start it again. A worker that is gone for good disappears from here after an hour.",
            cause=str(worker),
        )
        for worker in pulse.silent[: extent.most]
    ]
    url = list_url(Audience, state="behind")
    return silent_workers + and_more("worker", len(pulse.silent), "silent workers", url, extent)


def check() -> None:
    """Store the current troubles, and queue messages about the new and the resolved ones. Troubles that may last stay
    open: of a kind with more than ``FOLLOWED``, and of the kinds that only Redis knows while it doesn't respond, or
    until what it lost is known again.

    The rhythm of the calls is learned from the calls since the last check.
    """
    try:
        rhythm.learn()
        known = facts(Extent(most=FOLLOWED))
        found = alerts(known)
    except Exception as error:
        _report(error)
        raise
    unknown = {alert.kind for alert in found if alert.is_rest}
    if known.rejections is None:
        unknown |= {*calls.OF_REDIS, certificate.KIND}
    if certificate.is_unknown(known.certificate):
        unknown.add(certificate.KIND)
    listed = [alert for alert in found if not alert.is_rest]
    troubles.check(map(_seen, [*listed, *_rests(found)]), unknown=unknown)


def _report(error: Exception) -> None:
    """Store and report that this check fails, because no other trouble is found meanwhile. The open ones stay open."""
    failure = failures.Failure("check_troubles", failures.first_line(error), 1, now())
    open_kinds = set(Trouble.objects.filter(resolved_at=None).values_list("kind", flat=True))
    troubles.check([_seen(alert) for alert in calls.failing_tasks([failure])], unknown=open_kinds)


def _rests(found: list[Alert]) -> list[Alert]:
    """The alerts about the rest of each kind of which messages don't name all troubles."""
    kinds: dict[str, list[Alert]] = {}
    for alert in found:
        kinds.setdefault(alert.kind, []).append(alert)
    rests = []
    for kind, of_kind in kinds.items():
        count = len({_seen(alert).key for alert in of_kind if not alert.is_rest})
        if count <= troubles.NAMED:
            rests += [alert for alert in of_kind if alert.is_rest]
            continue
        tone = "bad" if any(alert.tone == "bad" for alert in of_kind) else "held"
        url = lines.url_of_all("", kind=kind)
        rests.append(Alert(kind, _many(kind, of_kind, count), "", None, url, tone, is_rest=True))
    return rests


def _many(kind: str, of_kind: list[Alert], count: int) -> str:
    """What the message about the rest of a kind says. ``count`` is the number of its troubles."""
    words, things = lines.WORDS.get(kind, "{} troubles"), sum(alert.many for alert in of_kind)
    if things == count:
        return words.format(f"{count - troubles.NAMED:,} more")
    return f"{words.format(f'{things:,}')}. Messages name {troubles.NAMED} of these {count:,} troubles"


def _seen(alert: Alert) -> Seen:
    return Seen(
        kind=alert.kind,
        install=alert.install,
        cause=troubles.REST if alert.is_rest else alert.cause,
        what=alert.what,
        why=_plain(alert.why if alert.message is None else alert.message),
        todo=alert.todo,
        tone=alert.tone,
        since_at=alert.since,
        path=alert.url,
    )


def _plain(text: str) -> str:
    """HTML as text. A text that isn't HTML stays, because it may quote a name or a definition with "<"."""
    return unescape(strip_tags(text)) if isinstance(text, SafeString) else text
