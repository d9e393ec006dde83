"""Front page alerts for audiences that are being retired, and for retired ones that get events again."""

from django.db.models import F
from django.http import HttpRequest
from django.urls import reverse

from audiences.admin import verbs
from audiences.admin.pages import ago, count, list_url, url_of
from audiences.front.alerts import ALERTS_LISTED, Alert, and_more, page
from audiences.insight import retirements, state
from audiences.models import Audience, Lane, Retirement
from audiences.operations import retiring


def alerts(request: HttpRequest) -> list[Alert]:
    return [*_with_events(request), *_under_way(request)]


def _with_events(request: HttpRequest) -> list[Alert]:
    """The question that an event of a retired audience asks."""
    here = reverse("admin:index")
    lanes = Lane.objects.filter(retired_at__isnull=False, audience__last_sequence__gt=F("retired_sequence"))
    found = list(lanes.select_related("audience__install").order_by("retired_at")[: ALERTS_LISTED + 1])
    total = lanes.count() if len(found) > ALERTS_LISTED else len(found)
    listed = [
        Alert(
            f"{lane.audience} is retired and gets events ({lane.audience.install})",
            f"{count(state.held_behind_end(lane), 'event')} came since it was retired. They are stored and held, and"
            " nothing is sent.",
            ago(lane.retired_at),
            url_of(lane.audience),
            tone="held",
            todo="Take back uses the audience again. If it is to stay retired, remove it from the Lytics job.",
            buttons=verbs.buttons(page(Audience), request, lane.audience, back=here, only=("take-back",)),
        )
        for lane in found[:ALERTS_LISTED]
    ]
    return listed + and_more(total, "retired audiences with events", list_url(Audience, state="retired"))


def _under_way(request: HttpRequest) -> list[Alert]:
    here = reverse("admin:index")
    unfinished = Retirement.objects.filter(retiring.UNFINISHED)
    rows = unfinished.select_related("audience__install", "audience__lane").order_by("pk")
    found = list(rows[: ALERTS_LISTED + 1])
    total = unfinished.count() if len(found) > ALERTS_LISTED else len(found)
    listed = [_moving(request, retirement, here) for retirement in found[:ALERTS_LISTED]]
    return listed + and_more(total, "retirements under way", list_url(Audience, state="retired"))


def _moving(request: HttpRequest, retirement: Retirement, here: str) -> Alert:
    audience = retirement.audience
    if retirement.undone_at is not None:
        return Alert(
            f"{audience} is being taken back ({audience.install})",
            f"by {retirement.undone_by}: {retirement.undone_reason}",
            ago(retirement.undone_at),
            url_of(audience),
            tone="held",
        )
    return Alert(
        f"{audience} is being retired ({audience.install})",
        f"by {retirement.by}: {retirement.reason} {retirements.step(retirement)}{_waits(audience)}",
        ago(retirement.asked_at),
        url_of(audience),
        tone="held",
        buttons=verbs.buttons(page(Audience), request, audience, back=here, only=("take-back",)),
    )


def _waits(audience: Audience) -> str:
    """What a retirement waits for that a person can change."""
    if not audience.install.enabled:
        return " It waits: the install is off."
    if audience.hold_failures:
        return f" It waits: {state.hold(audience)}."
    if audience.lane.blocked_at is not None:
        return f" It waits: the audience is blocked. {audience.lane.block_reason}"
    return " It waits: the audience is paused." if audience.lane.paused_at is not None else ""
