"""The front page: numbers, and for each problem what it is, since when, and the button that corrects it."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from django.http import HttpRequest
from django.utils.timezone import now

from audiences.admin.pages import count, list_url, number, span
from audiences.admin.parked_groups import Group, sum_in_words
from audiences.front import calls, lines, troubles
from audiences.front.alerts import Alert, Extent, Number
from audiences.front.charts import Point, charts, chosen_hours, chosen_install, ranges, read
from audiences.front.funnel import funnel
from audiences.front.proofs import proof_number
from audiences.front.troubles import Facts
from audiences.insight import state
from audiences.insight.backlogs import Backlog
from audiences.insight.heartbeats import Pulse
from audiences.models import Audience, Install, Parked

# The permissions needed for this page: it names installs and audiences, and quotes parked items.
NEEDED = ("audiences.view_install", "audiences.view_audience", "audiences.view_parked")


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    if not all(request.user.has_perm(name) for name in NEEDED):
        return {**context, "title": "Now", "no_role": True}
    # The first part refreshes often, the charts rarely; the page of an install has its own charts.
    part = request.headers.get("HX-Target")
    install = chosen_install(request)
    hours = chosen_hours(request, install)
    # The charts of all installs follow the page, unless their hours are chosen: the troubles must not wait for them.
    has_charts = part != "front-now" and (part == "front-charts" or install is not None or "hours" in request.GET)
    # Read once: the steps of an install's events and the charts show the same minutes.
    points = read(hours=hours, install=install) if has_charts or install else []
    present = {} if part == "front-charts" else front(request, install, points)
    history = charts(install, hours, points) if has_charts else {}
    shared = {"title": "Now", "hours": hours, "ranges": ranges(install), "has_charts": has_charts}
    return {**context, **shared, **present, **history}


def front(request: HttpRequest, install: Install | None, points: list[Point]) -> dict[str, Any]:
    """The numbers and troubles of all installs; or the funnel of one install and the troubles that concern it."""
    facts = troubles.facts(Extent(install.pk if install else None))
    found = [alert for alert in troubles.alerts(facts) if install is None or _concerns(alert, install)]
    known, of_install = troubles.stored(found), install.public_id if install else ""
    listed = lines.listed(known, request, of_install=of_install) if request.GET.get(lines.ALL) else None
    return {
        "listed": listed,
        "alerts": listed.alerts if listed else lines.lines(known, request, of_install=of_install),
        "now_of": install,
        "numbers": funnel(install, points, facts.proofs) if install else _all_numbers(facts),
    }


def _concerns(alert: Alert, install: Install) -> bool:
    """Whether it is a trouble of the install, or a red one of the service, which stops every install or may do so."""
    if alert.install is not None:
        return alert.install == install.pk
    return alert.tone == "bad" or alert.kind == calls.DRAFTS


def _all_numbers(facts: Facts) -> list[Number]:
    return [
        *_numbers(facts.installs, facts.waiting, facts.blocked.lanes, facts.parked),
        calls.rejected_number(facts.installs, facts.rejections),
        _workers(facts.pulse, is_stuck=bool(facts.stuck), had_run=facts.silent_seconds is not None),
        proof_number(facts.installs, facts.proofs),
    ]


def _numbers(
    installs: list[Any], waiting: Mapping[int, Backlog], blocked: int, parked: Sequence[Group]
) -> list[Number]:
    heads = [backlog.oldest_at for backlog in waiting.values() if backlog.oldest_at]
    oldest = now() - min(heads) if heads else timedelta(0)
    on_hold = sum(map(state.is_on_hold, installs))
    events = sum(backlog.waiting for backlog in waiting.values())
    items = [group.rows for group in parked]
    return [
        Number(
            "oldest undelivered",
            span(oldest) if heads else "unknown" if events else "none",
            list_url(Audience, state="behind"),
            bool(heads or not events) and oldest < timedelta(minutes=1),
            f"{count(events, 'event')} waiting" if events else "everything is delivered",
        ),
        Number("installs on hold", number(on_hold), list_url(Install), not on_hold, f"of {len(installs)}"),
        Number("blocked audiences", number(blocked), list_url(Audience, state="blocked"), not blocked),
        Number("parked items", sum_in_words(items), list_url(Parked), not items),
    ]


def _workers(pulse: Pulse, *, is_stuck: bool, had_run: bool) -> Number:
    """``had_run``: a task of the schedule ran before, and none runs now."""
    alive = len(pulse.answering)
    well = not pulse.silent and (alive > 0 or not (is_stuck or had_run))
    value = number(alive) if alive else "silent" if pulse.silent or is_stuck else "none" if had_run else "none yet"
    worked = max((worker.worked_at for worker in pulse.answering if worker.worked_at), default=None)
    note = f"last work {span(now() - worked)} ago" if worked else ""
    return Number("workers answering", value, list_url(Audience, state="behind"), well, note)
