"""Front page alerts for audiences that are being retired, and for retired ones that get events again."""

from datetime import datetime

from django.db.models import F, OuterRef, Subquery

from audiences.admin.pages import count, list_url, url_of
from audiences.annotations import optional
from audiences.delivery import account_switch
from audiences.front.alerts import Alert, Extent, and_more, buttons, listed_rows
from audiences.insight import retirements, state
from audiences.insight.sentences import sentence
from audiences.models import Audience, Event, GuidedChange, Lane, Retirement
from audiences.operations import retiring

WITH_EVENTS, UNDER_WAY = "retired_with_events", "retiring"


def alerts(extent: Extent) -> list[Alert]:
    url = list_url(Audience, state="retired", **extent.of_install)
    return [*_with_events(extent, url), *_under_way(extent, url)]


def _with_events(extent: Extent, url: str) -> list[Alert]:
    """Alerts for retired audiences with held events: a person decides about these events."""
    lanes = Lane.objects.filter(retired_at__isnull=False, audience__last_sequence__gt=F("retired_sequence"))
    newest = Event.objects.filter(audience=OuterRef("audience"), sequence=OuterRef("audience__last_sequence"))
    lanes = lanes.annotate(newest_at=Subquery(newest.values("received_at")[:1]))
    found, total = listed_rows(lanes.select_related("audience__install").order_by("retired_at"), extent)
    shown = [
        Alert(
            WITH_EVENTS,
            f"{lane.audience} is retired and gets events ({lane.audience.install})",
            f"{count(state.held_behind_end(lane), 'event')} came since it was retired{_last(lane)}. They are stored and"
            " held, and nothing is sent.",
            lane.retired_at,
            url_of(lane.audience),
            tone="held",
            todo="Take back uses the audience again. If it is to stay retired, remove it from the Lytics job. To end"
            " this line after that, press Take back and, once the held events are delivered, Retire.",
            offers=(buttons(lane.audience, "take-back"),),
            install=lane.audience.install_id,
        )
        for lane in found
    ]
    more = and_more(WITH_EVENTS, total, "retired audiences with events", url, extent, tone="held")
    return [*shown, *more]


def _last(lane: Lane) -> str:
    """By it a person sees whether Lytics still sends events."""
    newest_at = optional(lane, "newest_at", datetime)
    return f", the last one at {newest_at:%Y-%m-%d %H:%M} UTC" if newest_at else ""


def _under_way(extent: Extent, url: str) -> list[Alert]:
    unfinished = Retirement.objects.filter(retiring.UNFINISHED).select_related("audience__install", "audience__lane")
    found, total = listed_rows(unfinished.order_by("pk"), extent)
    more = and_more(UNDER_WAY, total, "retirements under way", url, extent, tone="held")
    return [*map(_moving, found), *more]


def _moving(retirement: Retirement) -> Alert:
    audience = retirement.audience
    if retirement.undone_at is not None:
        return Alert(
            UNDER_WAY,
            f"{audience} is being taken back ({audience.install})",
            f"by {retirement.undone_by}: {retirement.undone_reason}",
            retirement.undone_at,
            url_of(audience),
            tone="held",
            install=audience.install_id,
            cause="back",
            message="The page Now shows who did this, and why.",
        )
    return Alert(
        UNDER_WAY,
        f"{audience} is being retired ({audience.install})",
        f"by {retirement.by}: {sentence(retirement.reason)} {retirements.step(retirement)}{_waits(audience)}",
        retirement.asked_at,
        url_of(audience),
        tone="held",
        offers=(buttons(audience, "take-back"),),
        install=audience.install_id,
        message=f"{retirements.step(retirement)}{_waits(audience)}",
    )


def _waits(audience: Audience) -> str:
    """The reason for which a retirement waits, if a person can remove it; empty otherwise."""
    if not audience.install.enabled:
        return " It waits: the install is off."
    if state.is_on_hold(audience.install):
        return f" It waits: the install is on hold. {sentence(audience.install.backoff_reason)}"
    if audience.hold_failures:
        return f" It waits: {state.hold(audience)}."
    if audience.lane.blocked_at is not None:
        return f" It waits: the audience is blocked. {audience.lane.block_reason}"
    if GuidedChange.objects.filter(audience=audience, ended_at=None).exists():
        return " It waits: a change to another mechanism is working on this audience."
    if account_switch.is_changing(audience.install_id):
        return " It waits: the install is changing to another ODP account."
    if retiring.is_read_by_take_over(audience.pk):
        return " It waits: the take-over of its former ODP id is under way."
    return " It waits: the audience is paused." if audience.lane.paused_at is not None else ""
