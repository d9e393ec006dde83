"""The front page: numbers, and for each problem what it is, since when, and the button that corrects it."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django.db.models import Subquery
from django.http import HttpRequest
from django.utils.timezone import now

from audiences import readiness
from audiences.admin.pages import ago, count, last_call, list_url, number, span
from audiences.admin.parked_groups import groups, sum_in_words
from audiences.front import calls
from audiences.front.alerts import ALERTS_LISTED, Alert, Number, and_more
from audiences.front.audits import alerts as of_audits
from audiences.front.charts import charts
from audiences.front.groups import blocked_by_cause
from audiences.front.items import (
    audiences_made_anew,
    audiences_with_errors,
    blocked_audiences,
    creations_on_hold,
    ignored_times,
    installs_on_hold,
    new_installs,
    parked_groups,
    paused_audiences,
    times_stored_ahead,
)
from audiences.front.proofs import not_proven, proof_number
from audiences.front.retirements import alerts as of_retirements
from audiences.front.similar_slugs import alerts as of_ids_alike
from audiences.front.twins import alerts as of_twins
from audiences.insight import backlogs, failures, heartbeats, probes, stalled_work
from audiences.insight.backlogs import Backlog
from audiences.insight.heartbeats import Pulse
from audiences.models import Audience, Install, Parked
from audiences.receiving import rejected_calls

# The permissions needed for this page: it names installs and audiences, and quotes parked items.
NEEDED = ("audiences.view_install", "audiences.view_audience", "audiences.view_parked")


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    if not all(request.user.has_perm(name) for name in NEEDED):
        return {**context, "title": "Now", "no_role": True}
    shown = {**context, "title": "Now", **front(request)}
    # The first part refreshes often, the charts rarely.
    return shown if request.headers.get("HX-Target") == "front-now" else {**shown, **charts(request)}


def front(request: HttpRequest) -> dict[str, Any]:
    installs = list(Install.objects.annotate(called_at=Subquery(last_call())))
    waiting = backlogs.by_install()
    blocked = blocked_by_cause()
    parked = groups()
    pulse = heartbeats.pulse()
    stuck = stalled_work.stuck()
    rejections = rejected_calls.last_hour(install.public_id for install in installs)
    proofs = probes.proofs(installs)
    alerts = [
        *calls.unreadable_secret(readiness.encryption_problem()),
        *calls.work_stands_still(stuck, pulse),
        *calls.failing_tasks(failures.recent()),
        *calls.without_redis(failures.broker_problem()),
        *_unheard(pulse),
        *installs_on_hold(request, installs, waiting),
        *not_proven(request, installs, proofs),
        *calls.wrong_tokens(request, installs, rejections or {}),
        *calls.over_the_mark(installs, waiting),
        *calls.over_the_disk_mark(installs),
        *calls.switched_off(request, installs),
        *calls.drafts(installs),
        *blocked_audiences(request, blocked),
        *of_twins(request),
        *of_audits(request),
        *of_retirements(request),
        *audiences_made_anew(request),
        *of_ids_alike(request),
        *creations_on_hold(request),
        *audiences_with_errors(request),
        *parked_groups(request, parked),
        *paused_audiences(request),
        *ignored_times(),
        *times_stored_ahead(),
        *new_installs(installs, rejections or {}),
    ]
    alerts.sort(key=lambda alert: alert.tone != "bad")
    return {
        "numbers": [
            *_numbers(installs, waiting, blocked.lanes, parked),
            calls.rejected_number(installs, rejections),
            _workers(pulse, is_stuck=stuck is not None),
            proof_number(installs, proofs),
        ],
        "alerts": alerts,
    }


def _numbers(
    installs: list[Any], waiting: Mapping[int, Backlog], blocked: int, parked: list[dict[str, Any]]
) -> list[Number]:
    heads = [backlog.oldest_at for backlog in waiting.values() if backlog.oldest_at]
    oldest = now() - min(heads) if heads else timedelta(0)
    on_hold = sum(install.backoff_until_at is not None for install in installs)
    events = sum(backlog.waiting for backlog in waiting.values())
    items = [group["count"] for group in parked]
    return [
        Number(
            "oldest undelivered",
            span(oldest) if heads else "none",
            list_url(Audience, state="behind"),
            oldest < timedelta(minutes=1),
            f"{count(events, 'event')} waiting" if events else "everything is delivered",
        ),
        Number("installs on hold", number(on_hold), list_url(Install), not on_hold, f"of {len(installs)}"),
        Number("blocked audiences", number(blocked), list_url(Audience, state="blocked"), not blocked),
        Number("parked items", sum_in_words(items), list_url(Parked), not items),
    ]


def _workers(pulse: Pulse, *, is_stuck: bool) -> Number:
    alive = len(pulse.answering)
    well = not pulse.silent and (alive > 0 or not is_stuck)
    value = number(alive) if alive else "silent" if pulse.silent or is_stuck else "none yet"
    worked = max((worker.worked_at for worker in pulse.answering if worker.worked_at), default=None)
    note = f"last work {span(now() - worked)} ago" if worked else ""
    return Number("workers answering", value, list_url(Audience, state="behind"), well, note)


def _unheard(pulse: Pulse) -> list[Alert]:
    """Workers that answered within the last hour and weren't stopped."""
    others = f"Still answering: {len(pulse.answering)}." if pulse.answering else "No other worker answers."
    silent_workers = [
        Alert(
            f"The worker {worker} is silent",
            f"It was killed, or can't reach Redis or PostgreSQL. Other workers take over its audiences. {others}",
            ago(worker.beat_at),
            list_url(Audience, state="behind"),
            "held" if pulse.answering else "bad",
            todo="Start it again. A worker that is gone for good disappears from here after an hour.",
        )
        for worker in pulse.silent[:ALERTS_LISTED]
    ]
    return silent_workers + and_more(len(pulse.silent), "silent workers", list_url(Audience, state="behind"))
