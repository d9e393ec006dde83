"""Front page alerts about installs, audiences and parked items: the problem, since when, and the button to press."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django.db.models import Count, F, Max, Min, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.timezone import now

from audiences.admin import blocked, verbs
from audiences.admin.filters import COUNTED
from audiences.admin.pages import ago, count, list_url, number, span, up_to_bound, url_of
from audiences.admin.parked_verbs import Release
from audiences.admin.verbs import Button
from audiences.front.alerts import ALERTS_LISTED, Alert, and_more, page, way_to
from audiences.front.groups import Group, Groups, on_hold_by_reason
from audiences.insight import future_times, state
from audiences.insight.backlogs import Backlog
from audiences.models import Audience, FutureTime, Install, Lane, Parked
from audiences.operations import take_over
from audiences.receiving import backlog
from audiences.receiving.rejected_calls import RejectedCalls
from lytics import times
from lytics.reasons import NO_IDENTIFIER, UNUSABLE_IDENTIFIER


def installs_on_hold(request: HttpRequest, installs: list[Any], waiting: Mapping[int, Backlog]) -> list[Alert]:
    here = reverse("admin:index")
    return [
        Alert(
            f"{install} is on hold{': ODP rejects its API key' if state.needs_key(install) else ''}",
            f"{state.hold_of_install(install)}. {count(_waiting(waiting, install), 'event')} waiting; nothing is lost.",
            ago(install.backoff_since_at),
            url_of(install),
            todo=state.remedy(install),
            buttons=[
                *(way_to(request, install, "id_odp_api_key", "Enter a key", "key") if state.needs_key(install) else []),
                *verbs.buttons(page(Install), request, install, back=here, only=("retry", "check")),
            ],
        )
        for install in installs
        if install.backoff_until_at is not None
    ]


def _waiting(waiting: Mapping[int, Backlog], install: Install) -> int:
    return waiting[install.pk].waiting if install.pk in waiting else 0


# What a person may do about a block.
MENDS = ("unblock", "accept", "take-ours", "reuse-id", "other-id", "set-aside")


def blocked_audiences(request: HttpRequest, found: Groups) -> list[Alert]:
    """One alert for each cause, for any number of audiences that it blocks."""
    shown_alerts = [_blocked_alike(request, group) for group in found.read[:ALERTS_LISTED]]
    return shown_alerts + and_more(found.count, "reasons for blocked audiences", list_url(Audience, state="blocked"))


def _blocked_alike(request: HttpRequest, group: Group) -> Alert:
    first, alone = group.first, group.lanes == 1
    install, here = first.audience.install, reverse("admin:index")
    waiting = count(group.waiting, "event")
    listed = list_url(Audience, state="blocked", install__id__exact=install.pk)
    if alone:
        buttons = verbs.buttons(page(Audience), request, first.audience, back=here, only=MENDS)
    elif request.user.has_perm("audiences.unblock_audience"):
        url = reverse("admin:audiences_audience_unblock_cause", args=[first.pk])
        label = f"Unblock all {number(group.lanes)} of this cause"
        buttons = [Button(label, "lock_open", f"{url}?{urlencode({'next': here})}")]
    else:
        buttons = []
    who = f"{first.audience} is" if alone else f"{count(group.lanes, 'audience')} are"
    return Alert(
        f"{who} blocked ({install})",
        f"Reason: {_sentence(first.block_reason if alone else blocked.cause(first))}"
        f" {waiting} waiting. Other audiences are not affected.",
        ago(state.blocked_since(first)),
        url_of(first.audience) if alone else listed,
        todo=(
            "Fix the cause in ODP, then press Unblock. Waiting events are sent in order."
            " What can't be fixed there gets another ODP id, or is set aside."
        ),
        buttons=buttons,
    )


def audiences_made_anew(request: HttpRequest) -> list[Alert]:
    """New audiences with the slug of an older audience, until a person chooses what to do."""
    here = reverse("admin:index")
    shown_alerts = []
    pairs, total = take_over.undecided_pairs(ALERTS_LISTED)
    for audience, old in pairs:
        shown_alerts.append(
            Alert(
                f"{audience.latest_slug} was made anew in Lytics ({audience.install})",
                f"Segment {audience.segment_id} has the slug of {old}, which is segment {old.segment_id}. It goes to"
                f" ODP as {audience}, beside the old one.",
                ago(audience.created_at),
                url_of(audience),
                tone="held",
                todo="Keep both, or let the new one take over the old one's ODP id, so that what uses it goes on.",
                buttons=verbs.buttons(
                    page(Audience), request, audience, back=here, only=("keep-both", "take-over"), known_offered=True
                ),
            )
        )
    return shown_alerts + and_more(total, "audiences made anew", list_url(Audience))


def creations_on_hold(request: HttpRequest) -> list[Alert]:
    """Audiences that can't be created or checked in ODP, grouped by reason."""
    here = reverse("admin:index")
    found = on_hold_by_reason()
    shown_alerts = []
    for group in found.read[:ALERTS_LISTED]:
        first, alone = group.first.audience, group.lanes == 1
        is_new = first.provisioned_at is None
        who = str(first) if alone else f"{count(group.lanes, 'audience')} of {first.install}"
        shown_alerts.append(
            Alert(
                f"{who} can't be {'created' if is_new else 'checked'} in ODP",
                f"{state.hold(first)}. "
                + (f"{count(group.waiting, 'event')} waiting; nothing is lost." if is_new else "Deliveries continue."),
                ago(first.hold_since_at),
                url_of(first) if alone else list_url(Audience, state="hold", install__id__exact=first.install_id),
                "bad" if is_new else "held",
                todo=state.remedy_of_hold(first),
                buttons=[
                    *(
                        way_to(request, first.install, "id_odp_api_key", "Enter a key", "key")
                        if state.rejects_key(first.hold_reason)
                        else []
                    ),
                    *(verbs.buttons(page(Audience), request, first, back=here, only=("retry",)) if alone else []),
                ],
            )
        )
    return shown_alerts + and_more(found.count, "reasons for audiences on hold", list_url(Audience, state="hold"))


def audiences_with_errors(request: HttpRequest) -> list[Alert]:
    """Audiences that an unexpected error of this service holds."""
    here = reverse("admin:index")
    faulty = Lane.objects.filter(backlog.FAULTY, blocked_at=None, paused_at=None)
    faulty = faulty.filter(audience__last_sequence__gt=F("delivered_sequence"))
    lanes, total = _first(faulty.order_by("fault_since_at"))
    shown_alerts = [
        Alert(
            f"{lane.audience} can't be delivered",
            f"{state.fault(lane)}. {count(state.backlog(lane), 'event')} waiting; nothing is lost."
            " Other audiences are not affected.",
            ago(lane.fault_since_at),
            url_of(lane.audience),
            todo='This is an error of Lytics Sync. The worker\'s log has its traceback under "a delivery failed".',
            buttons=verbs.buttons(page(Audience), request, lane.audience, back=here, only=("retry",)),
        )
        for lane in lanes
    ]
    return shown_alerts + and_more(total, "audiences on hold", list_url(Audience, state="hold"))


def _first(lanes: QuerySet[Lane]) -> tuple[list[Lane], int]:
    """The lanes that are listed, and the number of all."""
    found = list(lanes.select_related("audience__install")[: ALERTS_LISTED + 1])
    return found[:ALERTS_LISTED], lanes.count() if len(found) > ALERTS_LISTED else len(found)


def _sentence(words: str) -> str:
    return words if words.endswith((".", "!", "?")) else f"{words}."


def paused_audiences(request: HttpRequest) -> list[Alert]:
    here = reverse("admin:index")
    lanes, total = _first(Lane.objects.filter(backlog.PAUSED).order_by("-paused_at"))
    shown_alerts = [
        Alert(
            f"{lane.audience} is {'set aside' if lane.blocked_at else 'paused'} ({lane.audience.install})",
            f"by {lane.paused_by}: {lane.pause_reason}",
            ago(lane.paused_at),
            url_of(lane.audience),
            tone="held",
            buttons=verbs.buttons(page(Audience), request, lane.audience, back=here, only=("resume",)),
        )
        for lane in lanes
    ]
    return shown_alerts + and_more(total, "paused audiences", list_url(Audience, state="paused"))


def parked_groups(request: HttpRequest, parked: list[dict[str, Any]]) -> list[Alert]:
    may = request.user.has_perm(Release.permission)
    shown = parked[:ALERTS_LISTED]
    newest = Parked.objects.filter(pk__in=[group["newest"] for group in shown]).defer("raw")
    details = {parked.pk: parked.detail for parked in newest}
    back = urlencode({"next": reverse("admin:index")})
    return [
        Alert(
            f"{group['count_in_words']} parked: {group['words']} ({group['install_name']})",
            f"Newest: {details[group['newest']]}." if details.get(group["newest"]) else "",
            group["since"],
            group["url"],
            todo="Being released now." if group["going"] else group["hint"],
            buttons=[
                *(_field_of(request, group) if group["reason"] in (NO_IDENTIFIER, UNUSABLE_IDENTIFIER) else []),
                *(
                    [Button("Release all", "outbox", f"{group['release']}?{back}")]
                    if may and not group["going"] and group["can_release"]
                    else []
                ),
            ],
        )
        for group in shown
    ]


def _field_of(request: HttpRequest, group: dict[str, Any]) -> list[Button]:
    install = Install(pk=group["install"])
    return way_to(request, install, "id_identifier_field", "Identifier field", "badge")


def ignored_times() -> list[Alert]:
    """Transition times of the last day that were not believed, with the largest lead."""
    recent = FutureTime.objects.filter(received_at__gte=now() - timedelta(days=1)).order_by("-received_at")
    seen = recent[:COUNTED].aggregate(count=Count("sequence"), most=Max("claimed_ns"), first=Min("received_at"))
    if not seen["count"]:
        return []
    lead = span(times.moment(seen["most"]) - now())
    of_newest = f" of the newest {number(COUNTED)}" if seen["count"] >= COUNTED else ""
    were = "time was" if seen["count"] == 1 else "times were"
    return [
        Alert(
            f"{up_to_bound(seen['count'])} transition {were} ahead of the clock",
            f"Within a day; the furthest{of_newest} by {lead}. These events were delivered with the time of their"
            " message, or of their call.",
            ago(seen["first"]),
            reverse("find_customer"),
            "held",
            todo="Check the clocks of the systems that send data to Lytics, and of this server."
            " CLOCK_TOLERANCE_SECONDS is how far"
            " ahead a time may be.",
        )
    ]


def times_stored_ahead() -> list[Alert]:
    """Memberships with a future transition time, which only older versions stored."""
    found = future_times.stored()
    if found is None:
        return []
    more = "at least " if found.memberships == future_times.COUNTED else ""
    have = "membership has a time" if found.memberships == 1 else "memberships have times"
    return [
        Alert(
            f"{more}{number(found.memberships)} {have} ahead of the clock",
            f"Stored by an older version; the furthest by {span(found.furthest - now())}.",
            ago(found.since),
            reverse("find_customer"),
            "held",
            todo="The customer's next event corrects it. manage.py audit_log lists them.",
        )
    ]


def new_installs(installs: list[Any], rejections: dict[str, RejectedCalls]) -> list[Alert]:
    return [
        Alert(
            f"{install} has had no call yet",
            "The Lytics job has not called. Its settings are in the install instructions.",
            ago(install.created_at),
            url_of(install),
            "held",
        )
        for install in installs
        if install.enabled and install.called_at is None and install.public_id not in rejections
    ]
