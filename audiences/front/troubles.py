"""The troubles of the service, defined once for the front page and for messages (docs/alerts.md)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import unescape
from typing import Any

from django.db.models import Subquery
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
    items,
    left_audiences,
    lines,
    parked_growth,
    proofs,
    retention,
    retirements,
    silence,
    similar_slugs,
    twins,
)
from audiences.front.alerts import ALERTS_LISTED, Alert, and_more
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


@dataclass(frozen=True)
class Facts:
    """What the numbers and the troubles are derived from. ``rejections`` is None when Redis doesn't answer.

    With ``install_id``, only this install was read. What concerns no install is there in any case.
    """

    install_id: int | None
    installs: list[Any]
    waiting: Mapping[int, Backlog]
    blocked: Groups
    parked: list[parked_groups.Group]
    pulse: Pulse
    # Since when the schedule is silent, in seconds; None when it isn't.
    silent_seconds: float | None
    stuck: stalled_work.Stuck | None
    rejections: dict[str, RejectedCalls] | None
    proofs: Mapping[int, Proof]
    # By install id, the longest pause between calls before its sender counts as silent, if there is a limit.
    pauses: Mapping[int, timedelta]
    certificate: Certificate | None
    # By install id, since when too many items are parked.
    growing: Mapping[int, datetime]


def facts(install_id: int | None = None) -> Facts:
    of_install = {} if install_id is None else {"pk": install_id}
    installs = list(Install.objects.filter(**of_install).annotate(called_at=Subquery(last_call())))
    rejections = rejected_calls.last_hour(install.public_id for install in installs)
    return Facts(
        install_id=install_id,
        installs=installs,
        waiting=backlogs.by_install(install_id),
        blocked=blocked_by_cause(install_id),
        parked=[group for group in parked_groups.found() if install_id in (None, group.install)],
        pulse=heartbeats.pulse(),
        # When Redis doesn't respond, nothing else waits for its timeout again.
        silent_seconds=None if rejections is None else schedule.silent_seconds(),
        stuck=stalled_work.stuck(),
        rejections=rejections,
        proofs=probes.proofs(installs),
        pauses=rhythm.limits(installs),
        certificate=None if rejections is None else certificates.known(),
        growing={pk: at for pk, at in growth.by_install().items() if install_id in (None, pk)},
    )


def alerts(facts: Facts) -> list[Alert]:
    """The alerts for these facts, most urgent first."""
    installs, rejections, install_id = facts.installs, facts.rejections or {}, facts.install_id
    found = [
        *calls.unreadable_secret(readiness.encryption_problem()),
        *calls.work_stands_still(facts.stuck, facts.pulse),
        *calls.without_beat(facts.silent_seconds, facts.pulse),
        *calls.failing_tasks(failures.recent()),
        *calls.without_redis(failures.broker_problem()),
        *_unheard(facts.pulse),
        *items.installs_on_hold(installs, facts.waiting),
        *proofs.not_proven(installs, facts.proofs),
        *calls.rejected(installs, rejections),
        *calls.over_the_mark(installs, facts.waiting),
        *calls.over_the_disk_mark(installs),
        *delays.late_events(installs, facts.waiting, without=_stuck_install(facts.stuck)),
        *silence.silent_senders(installs, facts.pauses, facts.waiting, rejections),
        *calls.switched_off(installs),
        *calls.drafts(installs),
        *certificate.alerts(facts.certificate),
        *channels.alerts(),
        *items.blocked_audiences(facts.blocked, install_id),
        *twins.alerts(install_id),
        *audits.alerts(install_id),
        *left_audiences.alerts(install_id),
        *retirements.alerts(install_id),
        *items.recreated_audiences(install_id),
        *similar_slugs.alerts(install_id),
        *items.creations_on_hold(install_id),
        *items.audiences_with_errors(install_id),
        *parked_growth.growing(installs, facts.growing),
        *items.parked_items(facts.parked, install_id),
        *retention.alerts(),
        *items.paused_audiences(install_id),
        *items.ignored_times(),
        *items.times_stored_ahead(),
        *items.new_installs(installs, rejections),
    ]
    found.sort(key=lambda alert: alert.tone != "bad")
    return found


def _stuck_install(stuck: stalled_work.Stuck | None) -> str:
    """The name of the install without any progress of ready work, which has its own alert; empty if there is none."""
    return str(stuck.install) if stuck is not None and not stuck.in_part else ""


def stored(found: list[Alert]) -> list[tuple[Alert, Trouble | None]]:
    """Each alert with its stored trouble, which several alerts of one install and cause share."""
    keys = [_seen(alert).key for alert in found]
    known = {trouble.key: trouble for trouble in Trouble.objects.filter(resolved_at=None, key__in=keys)}
    return [(alert, known.get(key)) for alert, key in zip(found, keys, strict=True)]


def _unheard(pulse: Pulse) -> list[Alert]:
    """Alerts for workers that sent heartbeats within the last hour, then fell silent, and weren't stopped."""
    others = f"Still answering: {len(pulse.answering)}." if pulse.answering else "No other worker answers."
    silent_workers = [
        Alert(
            "worker",
            f"The worker {worker} is silent",
            f"It was killed, or can't reach Redis or PostgreSQL. Other workers take over its audiences. {others}",
            worker.beat_at,
            list_url(Audience, state="behind"),
            "held" if pulse.answering else "bad",
            todo="Start it again. A worker that is gone for good disappears from here after an hour.",
            cause=str(worker),
        )
        for worker in pulse.silent[:ALERTS_LISTED]
    ]
    return silent_workers + and_more("worker", len(pulse.silent), "silent workers", list_url(Audience, state="behind"))


def check() -> None:
    """Store the current troubles, and queue messages about the new and the resolved ones. Unlisted troubles stay open:
    of a kind with more troubles than are listed, and of the kinds that only Redis knows while it doesn't respond.

    The rhythm of the calls is learned from the calls since the last check.
    """
    try:
        rhythm.learn()
        known = facts()
        found = alerts(known)
    except Exception as error:
        _report(error)
        raise
    unknown = {alert.kind for alert in found if alert.is_rest}
    if known.rejections is None:
        unknown |= {*calls.OF_REDIS, certificate.KIND}
    troubles.check([_seen(alert) for alert in [*found, *_rests(found)]], unknown=unknown)


def _report(error: Exception) -> None:
    """Store and report that this check fails, because no other trouble is found meanwhile. The open ones stay open."""
    failure = failures.Failure("check_troubles", failures.first_line(error), 1, now())
    open_kinds = set(Trouble.objects.filter(resolved_at=None).values_list("kind", flat=True))
    troubles.check([_seen(alert) for alert in calls.failing_tasks([failure])], unknown=open_kinds)


def _rests(found: list[Alert]) -> list[Alert]:
    """An alert for each kind of which all troubles are listed and messages don't name all."""
    keys: dict[str, set[str]] = {}
    for alert in found:
        keys.setdefault(alert.kind, set()).add(_seen(alert).key)
    listed_in_part = {alert.kind for alert in found if alert.is_rest}
    many = {kind: len(some) for kind, some in keys.items() if len(some) > troubles.NAMED and kind not in listed_in_part}
    return [
        Alert(
            kind,
            lines.WORDS.get(kind, "{} troubles").format(f"{count - troubles.NAMED:,} more"),
            "",
            None,
            lines.url_of_all("", kind=kind),
            "bad" if any(alert.tone == "bad" for alert in found if alert.kind == kind) else "held",
            is_rest=True,
        )
        for kind, count in many.items()
    ]


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
