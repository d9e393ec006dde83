"""The front page: numbers that are zero when all is well, and for each trouble what, since when and what to press."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db.models import F, Max, OuterRef, Q, Subquery
from django.http import HttpRequest
from django.urls import reverse
from django.utils.timezone import now

from audiences import state
from audiences.admin import verbs
from audiences.admin.pages import OperatorAdmin, ago, count, list_url, number, span, url_of
from audiences.admin.parked import Release, groups
from audiences.admin.verbs import Button
from audiences.models import Audience, Event, Install, Lane, Parked, Receipt

# Work that nobody has taken for so long, though it was allowed to, means that no worker is there to take it.
SILENT_AFTER = timedelta(seconds=30)
# Troubles of one kind that are told one by one; there is a page with all of them.
TOLD = 10


@dataclass(frozen=True)
class Number:
    label: str
    value: str
    url: str
    well: bool
    note: str = ""


@dataclass(frozen=True)
class Trouble:
    """``tone`` as a State's; ``todo`` says what mends it when a button alone doesn't."""

    what: str
    why: str
    since: Any
    url: str
    tone: str = "bad"
    todo: str = ""
    buttons: list[Button] = field(default_factory=list)


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    return {**context, "title": "Now", **front(request)}


def front(request: HttpRequest) -> dict[str, Any]:
    installs = list(Install.objects.annotate(called_at=Subquery(_last_call())))
    head = Event.objects.filter(audience=OuterRef("audience"), sequence=OuterRef("delivered_sequence") + 1)
    behind = list(
        Lane.objects.filter(audience__last_sequence__gt=F("delivered_sequence"))
        .select_related("audience__install")
        .annotate(head_at=Subquery(head.values("received_at")[:1]))
    )
    held = list(
        Lane.objects.filter(Q(blocked_at__isnull=False) | Q(paused_at__isnull=False)).select_related(
            "audience__install"
        )
    )
    parked = groups()
    silent = _silent_since(behind)
    troubles = [
        *_silent(silent, behind),
        *_braked(request, installs),
        *_blocked(request, held),
        *_parked(request, parked),
        *_paused(request, held),
        *_quiet(installs),
    ]
    return {"numbers": _numbers(installs, behind, held, parked, silent), "troubles": troubles}


def _last_call() -> Any:
    return Receipt.objects.filter(install=OuterRef("pk")).order_by("-id").values("received_at")[:1]


def _numbers(
    installs: list[Any], behind: list[Any], held: list[Lane], parked: list[dict[str, Any]], silent: datetime | None
) -> list[Number]:
    heads = [lane.head_at for lane in behind if lane.head_at]
    oldest = now() - min(heads) if heads else timedelta(0)
    braked = sum(install.brake_until_at is not None for install in installs)
    blocked = sum(lane.blocked_at is not None for lane in held)
    waiting = sum(state.backlog(lane) for lane in behind)
    items = sum(group["count"] for group in parked)
    return [
        Number(
            "oldest undelivered",
            span(oldest) if heads else "none",
            list_url(Audience, state="behind"),
            oldest < timedelta(minutes=1),
            f"{count(waiting, 'event')} waiting" if waiting else "everything is delivered",
        ),
        Number("braked installs", number(braked), list_url(Install), not braked, f"of {len(installs)}"),
        Number("blocked audiences", number(blocked), list_url(Audience, state="blocked"), not blocked),
        Number("parked items", number(items), list_url(Parked), not items),
        Number("workers", "silent" if silent else "answering", list_url(Audience, state="behind"), not silent),
    ]


def _silent_since(behind: list[Any]) -> datetime | None:
    """Since when something may be taken and nobody does; lanes of an install are taken in turn, so any take counts."""
    going = _free(behind)
    # A button may have let something go only now; the row no longer tells since when it may.
    pressed = LogEntry.objects.order_by("-pk").values_list("action_time", flat=True).first()
    since = []
    for install in {lane.audience.install for lane in going}:
        heads = [lane.head_at for lane in going if lane.audience.install_id == install.pk and lane.head_at]
        served = Lane.objects.filter(audience__install=install).aggregate(at=Max("last_served_at"))["at"]
        if heads and install.enabled:
            since.append(max(moment for moment in (min(heads), served, install.brake_until_at, pressed) if moment))
    return min((moment for moment in since if moment < now() - SILENT_AFTER), default=None)


def _free(behind: list[Any]) -> list[Any]:
    return [lane for lane in behind if lane.paused_at is None and lane.blocked_at is None]


def _silent(since: datetime | None, behind: list[Any]) -> list[Trouble]:
    if since is None:
        return []
    return [
        Trouble(
            "No worker takes what waits",
            f"{count(sum(state.backlog(lane) for lane in _free(behind)), 'event')} may go to ODP, and nobody has asked."
            " Lytics is still answered and nothing is lost.",
            ago(since),
            list_url(Audience, state="behind"),
            todo="Start the worker and beat processes, or look at their logs.",
        )
    ]


def _page(model: Any) -> OperatorAdmin[Any]:
    page = admin.site.get_model_admin(model)
    assert isinstance(page, OperatorAdmin)
    return page


def _braked(request: HttpRequest, installs: list[Any]) -> list[Trouble]:
    here = reverse("admin:index")
    return [
        Trouble(
            f"{install} is braked",
            state.of_install(install).why,
            ago(install.brake_since_at),
            url_of(install),
            todo=state.remedy(install),
            buttons=verbs.buttons(_page(Install), request, install, back=here, only=("retry", "check")),
        )
        for install in installs
        if install.brake_until_at is not None
    ]


def _blocked(request: HttpRequest, held: list[Lane]) -> list[Trouble]:
    here = reverse("admin:index")
    blocked = [lane for lane in held if lane.blocked_at]
    told = [
        Trouble(
            f"{lane.audience} is blocked",
            lane.block_reason,
            ago(lane.blocked_at),
            url_of(lane.audience),
            todo="Mend in ODP what the reason names, then unblock.",
            buttons=verbs.buttons(_page(Audience), request, lane.audience, back=here, only=("unblock",)),
        )
        for lane in blocked[:TOLD]
    ]
    return told + _and_more(len(blocked), "blocked audiences", list_url(Audience, state="blocked"))


def _paused(request: HttpRequest, held: list[Lane]) -> list[Trouble]:
    here = reverse("admin:index")
    paused = [lane for lane in held if lane.paused_at and not lane.blocked_at]
    told = [
        Trouble(
            f"{lane.audience} is paused",
            f"by {lane.paused_by}: {lane.pause_reason}",
            ago(lane.paused_at),
            url_of(lane.audience),
            tone="held",
            buttons=verbs.buttons(_page(Audience), request, lane.audience, back=here, only=("resume",)),
        )
        for lane in paused[:TOLD]
    ]
    return told + _and_more(len(paused), "paused audiences", list_url(Audience, state="paused"))


def _parked(request: HttpRequest, parked: list[dict[str, Any]]) -> list[Trouble]:
    may = request.user.has_perm(Release.permission)
    return [
        Trouble(
            f"{number(group['count'])} parked: {group['words']} ({group['install__name']})",
            group["hint"],
            group["since"],
            group["url"],
            buttons=[Button("Release all", "outbox", group["release"], False)] if may else [],
        )
        for group in parked[:TOLD]
    ]


def _quiet(installs: list[Any]) -> list[Trouble]:
    off = [
        Trouble(f"{install} is switched off", "Lytics is asked to come back later.", "", url_of(install), "none")
        for install in installs
        if not install.enabled
    ]
    new = [
        Trouble(
            f"{install} has had no call yet",
            "The Lytics job has not called. Its settings are in the install instructions.",
            ago(install.created_at),
            url_of(install),
            "held",
        )
        for install in installs
        if install.enabled and install.called_at is None
    ]
    return off + new


def _and_more(count: int, what: str, url: str) -> list[Trouble]:
    return [Trouble(f"{number(count - TOLD)} more {what}", "", "", url)] if count > TOLD else []
