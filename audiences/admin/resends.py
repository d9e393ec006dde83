"""Resends: current and past ones, who started each and why, and the button that stops it."""

from collections.abc import Iterable
from datetime import timedelta
from statistics import fmean
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from audiences import ledger_size
from audiences.admin import verbs
from audiences.admin.pages import HistoryAdmin, ago, count, link, list_url, number, pill_and_why, shortened, span
from audiences.admin.periods import ByPeriod
from audiences.admin.verbs import Verb
from audiences.delivery import leases
from audiences.insight import state
from audiences.models import Audience, Delivery, Install, Resend
from audiences.operations import resends
from odp.outcomes import Outcome

# The number of ended Resends that a page shows beside the unfinished ones.
PAST_SHOWN = 10
# The number of recent successful deliveries from which durations are estimated, and the most deliveries read to find
# them. An unbounded search would read all failed deliveries since.
MEASURED, EXAMINED = 20, 500


class Stop(Verb[Resend]):
    """The button that stops a Resend of one kind, with the permission of the button that began it."""

    label, icon = "Stop", "stop_circle"

    def __init__(self, kind: Resend.Kind, permission: str) -> None:
        self.kind, self.name, self.permission = kind, f"stop-{kind}", permission

    def offered(self, resend: Resend) -> bool:
        return resend.kind == self.kind and resend.ended_at is None

    def consequence(self, resend: Resend) -> str:
        left = number(max(0, resend.total - resend.done - resend.stayed))
        if resend.kind == Resend.Kind.LEAVE:
            return (
                f"About {left} of {number(resend.total)} customers of the audience that had the ODP id before are left"
                f" out. Those of them who aren't in {resend.audience} stay members under its ODP id for good, and no"
                f" audit names them. What was queued before is still sent to ODP: {progress(resend)}."
            )
        return (
            f"About {left} of {number(resend.total)} are not sent. What was queued before is still sent"
            f" to ODP: {progress(resend)}. A new one starts from the beginning."
        )

    def do(self, resend: Resend, *, by: str, answers: dict[str, Any]) -> str | None:
        return f"Stopped the {resend}." if resends.stop(resend, by=by) else None

    def also(self, request: HttpRequest, resend: Resend) -> None:
        verbs.record(request, [resend.audience or resend.install], f"Stopped the {resend}.")


@admin.register(Resend)
class ResendAdmin(HistoryAdmin[Resend]):
    verbs = (
        Stop(Resend.Kind.REPLAY, "audiences.replay_audience"),
        Stop(Resend.Kind.RESYNC, "audiences.resync_audience"),
        Stop(Resend.Kind.RELEASE, "audiences.release_parked"),
        Stop(Resend.Kind.LEAVE, "audiences.resync_audience"),
        Stop(Resend.Kind.REPAIR, "audiences.resync_audience"),
    )
    empty_words = "Nothing has been sent again yet."
    list_display = ("resend", "pill", "progress_", "asked", "by", "why", "install_link")
    sortable_by = ("asked",)
    list_filter = (ByPeriod, "kind", "install")
    time_field = "asked_at"
    fields = (
        ("kind", "pill"),
        ("install_link", "audience_link"),
        "progress_",
        ("asked_at", "ended_at"),
        ("by", "stopped_by"),
        "reason",
        ("parked_reason", "identifier_field"),
        ("received_from", "received_to"),
    )
    readonly_fields = ("install_link", "audience_link", "pill", "progress_")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Resend]:
        return super().get_queryset(request).select_related("install", "audience__install", "audience__lane")

    @admin.display(description="resend")
    def resend(self, resend: Resend) -> SafeString | str:
        return link(resend)

    @admin.display(description="state")
    def pill(self, resend: Resend) -> SafeString:
        return pill_and_why(state.of_resend(resend))

    @admin.display(description="so far")
    def progress_(self, resend: Resend) -> str:
        return progress(resend)

    @admin.display(ordering="id")
    def asked(self, resend: Resend) -> Any:
        return ago(resend.asked_at)

    @admin.display(description="reason given")
    def why(self, resend: Resend) -> str:
        return shortened(resend.reason, 90) or "—"

    @admin.display(description="install")
    def install_link(self, resend: Resend) -> SafeString | str:
        return link(resend.install)

    @admin.display(description="audience")
    def audience_link(self, resend: Resend) -> SafeString | str:
        return link(resend.audience)


# --- on other pages ------------------------------------------------------------------------------------------


def progress(resend: Resend) -> str:
    """The progress. The total was counted when the Resend was requested; the ledger may have grown since."""
    total = max(resend.total, resend.done)
    if resend.kind != Resend.Kind.RELEASE:
        is_estimate = resend.kind == Resend.Kind.RESYNC and not resend.ended_at and total >= ledger_size.COUNTED
        return f"{number(resend.done)} of {'about ' if is_estimate else ''}{number(total)} queued again"
    stayed = f", {number(resend.stayed)} still can't be read" if resend.stayed else ""
    return f"{number(resend.done)} of {number(total)} released{stayed}"


def about(resend: Resend) -> str:
    """A description for the page of its audience, which doesn't name the audience."""
    match resend.kind:
        case Resend.Kind.REPLAY:
            return f"replay of {resend.received_from:%Y-%m-%d %H:%M} – {resend.received_to:%Y-%m-%d %H:%M} UTC"
        case Resend.Kind.RELEASE:
            by = f", read by {resend.identifier_field}" if resend.identifier_field else ""
            return f"release: {resend.parked_reason.replace('_', ' ')}{by} ({resend.install})"
    return str(resend.get_kind_display())


def section(request: HttpRequest, *, past: int = PAST_SHOWN, **wanted: Any) -> dict[str, Any]:
    """For ``resends.html``: all that is under way and the last that ended, with the address of a list of all."""
    rows = Resend.objects.filter(**wanted).select_related("install", "audience__install", "audience__lane")
    unfinished = list(rows.filter(ended_at=None))
    ended = list(rows.filter(ended_at__isnull=False)[:past])
    return {
        "lines": list(_lines(request, [*unfinished, *ended])),
        "unfinished": unfinished,
        "url": list_url(Resend, **wanted),
    }


def _lines(request: HttpRequest, rows: Iterable[Resend]) -> Iterable[dict[str, Any]]:
    page = admin.site.get_model_admin(Resend)
    assert isinstance(page, ResendAdmin)
    for resend in rows:
        share = 100 * (resend.done + resend.stayed) / max(1, resend.total)
        yield {
            "resend": resend,
            "about": about(resend),
            "state": state.of_resend(resend),
            "progress": progress(resend),
            "percent": min(100, round(share)),
            "buttons": verbs.buttons(page, request, resend),
        }


def _unfinished(kind: Resend.Kind, audience: Audience) -> Resend | None:
    return Resend.objects.filter(audience=audience, kind=kind, ended_at=None).first()


class SendAgain(Verb[Audience]):
    """A button that begins a Resend of an audience, one of a kind at a time."""

    kind: Resend.Kind

    def offered(self, audience: Audience) -> bool:
        is_used = audience.last_sequence > 0 and audience.lane.retired_sequence is None
        return is_used and _unfinished(self.kind, audience) is None

    def too_late(self, audience: Audience) -> str:
        going = _unfinished(self.kind, audience)
        return under_way(going) if going else verbs.STALE


def under_way(resend: Resend) -> str:
    """The message for a person who presses the button while a Resend of this kind is unfinished."""
    what = resend.get_kind_display()
    return f"A {what} is already running: {progress(resend)}. Nothing was started. Stop it first, or wait for its end."


def when(audience: Audience, events: int) -> str:
    """How long sending this many ``events`` again takes or, while nothing is sent, what they wait for."""
    install = audience.install
    if audience.lane.blocked_at is not None:
        return "The audience is blocked: they wait, and are sent after it is unblocked."
    if audience.lane.paused_at is not None:
        return "The audience is paused: they wait, and are sent when it is resumed."
    if not install.enabled:
        return "The install is off: they wait, and are sent when it is on again."
    if install.backoff_until_at is not None:
        return "The install is on hold: they wait, and are sent when ODP accepts requests again."
    return effort(install, events)


def effort(install: Install, events: int) -> str:
    """An estimate: the requests and the time that this many events of one audience take, one request after another."""
    requests = -(-events // leases.capacity_of(install))
    newest = Delivery.objects.filter(install=install).order_by("-id").values_list("outcome", "latency_ms")[:EXAMINED]
    took = [milliseconds or 0 for outcome, milliseconds in newest if outcome == Outcome.DELIVERED][:MEASURED]
    each = max(fmean(took or [0]) / 1000, 1 / install.requests_per_second if install.requests_per_second else 0.0)
    text = f"That is about {count(requests, 'request')}"
    if not each:
        return f"{text}."
    return f"{text}, and about {span(timedelta(seconds=max(1.0, requests * each)))} if nothing else is waiting."
