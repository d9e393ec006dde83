"""Replay in two steps: the person chooses the time range, and then confirms the number of events in it."""

from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django import forms
from django.http import HttpRequest, HttpResponse
from django.utils.timezone import now
from unfold.widgets import DATETIME_CLASSES, UnfoldAdminTextareaWidget

from audiences.admin import verbs
from audiences.admin.pages import OperatorAdmin, count, number
from audiences.admin.parameters import whole_number
from audiences.admin.periods import within_bounds
from audiences.admin.resends import SendAgain, when
from audiences.insight import horizons
from audiences.models import Audience, Resend
from audiences.operations import resends
from audiences.receiving import log_range
from audiences.receiving.log_range import Stretch

# The page counts distinct customers while the operator waits; above this number of events it doesn't.
COUNTED = 500_000


def _hours_ago(hours: int) -> datetime:
    return now().replace(second=0, microsecond=0) - timedelta(hours=hours)


class _Moment(forms.DateTimeField):
    def __init__(self, label: str, hours_ago: int, help_text: str = "") -> None:
        look = {"type": "datetime-local", "class": " ".join(DATETIME_CLASSES)}
        super().__init__(
            label=label,
            initial=partial(_hours_ago, hours_ago),
            help_text=help_text,
            widget=forms.DateTimeInput(format="%Y-%m-%dT%H:%M", attrs=look),
        )


class AskSpan(forms.Form):
    start = _Moment("Received from, UTC", 1)
    end = _Moment(
        "Received before, UTC", 0, "When the calls from Lytics were received, not when customers entered or left."
    )
    reason = forms.CharField(
        max_length=500,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="Shown to the next person who opens this page.",
    )

    def clean_start(self) -> datetime:
        start: datetime = self.cleaned_data["start"]
        first = horizons.day("events")
        if first and start.date() < first:
            raise forms.ValidationError(f"{horizons.words('events')} A replay can't begin before that day.")
        return within_bounds(start)

    def clean_end(self) -> datetime:
        end: datetime = self.cleaned_data["end"]
        if "start" in self.cleaned_data and end <= self.cleaned_data["start"]:
            raise forms.ValidationError("This must be later than the start.")
        return within_bounds(end)


class Replay(SendAgain):
    kind = Resend.Kind.REPLAY
    name, label, icon, permission = "replay", "Replay", "replay", "audiences.replay_audience"
    form = AskSpan

    def consequence(self, audience: Audience) -> str:
        return (
            f"Events of {audience} received in a time range are sent to ODP again. The next page says how many,"
            " before anything is sent."
        )

    def pressed(self, admin: OperatorAdmin[Audience], request: HttpRequest, pk: int) -> HttpResponse:
        audience, back = verbs.approach(admin, self, request, pk)
        if not self.offered(audience):
            return verbs.go(request, back, warning=self.too_late(audience))
        form = AskSpan(request.POST if request.method == "POST" else None)
        ask = partial(_ask, admin, self, request, audience, back=back)
        if request.method != "POST" or not form.is_valid():
            return ask(consequence=self.consequence(audience), form=form, label="Count the events")
        asked, upto = form.cleaned_data, whole_number(request.POST.get("upto", ""))
        end_of_log = audience.last_sequence if upto is None else min(upto, audience.last_sequence)
        stretch = log_range.find(audience.pk, asked["start"], asked["end"], upto=end_of_log)
        if "seen" not in request.POST:
            if not stretch.events:
                form.add_error("end", f"Nothing of {audience} was received in this time range.")
                return ask(consequence=self.consequence(audience), form=form, label="Count the events")
            hidden = {name: request.POST[name] for name in form.fields}
            seen = {"upto": end_of_log, "seen": _version_tag(audience, stretch)}
            return ask(consequence=_foreseen(audience, stretch, asked), label=self.label, hidden={**hidden, **seen})
        if request.POST["seen"] != _version_tag(audience, stretch) or not resends.replay(
            audience,
            stretch,
            start=asked["start"],
            end=asked["end"],
            by=request.user.get_username(),
            reason=asked["reason"],
        ):
            return verbs.go(request, back, warning=self.too_late(audience))
        done = f"Replaying {count(stretch.events, 'event')} of {audience}, {_span(asked)}."
        verbs.record(request, [audience], f"{done} Reason: {asked['reason']}")
        return verbs.go(request, back, success=done)


def _ask(
    admin: OperatorAdmin[Audience],
    verb: Replay,
    request: HttpRequest,
    audience: Audience,
    *,
    back: str,
    hidden: dict[str, Any] | None = None,
    **context: Any,
) -> HttpResponse:
    return verbs.confirmation(
        request,
        admin,
        title=f"{verb.label}: {audience}",
        danger=False,
        hidden={**(hidden or {}), "next": back},
        back=back,
        opts=admin.opts,
        original=audience,
        **context,
    )


def _version_tag(audience: Audience, stretch: Stretch) -> str:
    entry = verbs.newest_entries([audience]).get(str(audience.pk))
    return f"{stretch.first}-{stretch.last}-{stretch.events}-{entry}"


def _span(asked: dict[str, Any]) -> str:
    return f"received from {asked['start']:%Y-%m-%d %H:%M} and before {asked['end']:%Y-%m-%d %H:%M} UTC"


def _foreseen(audience: Audience, stretch: Stretch, asked: dict[str, Any]) -> str:
    customers = "too many customers to count"
    if stretch.events <= COUNTED:
        events = log_range.events_between(audience.pk, stretch.first, stretch.last, asked["start"], asked["end"])
        customers = count(events.order_by().values("identifier").distinct().count(), "customer")
    return (
        f"{number(stretch.events)} events of {audience}, {_span(asked)}, are sent to ODP again: {customers}."
        f" {when(audience, stretch.events)} Each keeps its original time, so something newer about a"
        " customer still wins. New events continue meanwhile."
    )
