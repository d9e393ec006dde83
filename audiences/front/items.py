"""Front page alerts about installs, audiences and parked items: the problem, since when, and the button to press."""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from django.db.models import BigIntegerField, Count, F, Func, Max, Min, Window
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.timezone import now

from audiences.admin import blocked, parked_groups, together
from audiences.admin.filters import COUNTED
from audiences.admin.pages import count, list_url, number, span, up_to_bound, url_of
from audiences.admin.parked_verbs import Release
from audiences.annotations import required
from audiences.front.alerts import (
    Alert,
    Bulk,
    Extent,
    Offer,
    and_more,
    buttons,
    link,
    listed_rows,
    way_to,
)
from audiences.front.groups import Group, Groups, on_hold_by_reason
from audiences.insight import blocks, future_times, state
from audiences.insight.backlogs import Backlog
from audiences.insight.sentences import sentence
from audiences.models import Audience, FutureTime, Install, Lane, Parked
from audiences.operations import take_over
from audiences.receiving import backlog
from audiences.receiving.rejected_calls import RejectedCalls, has_calls
from lytics.reasons import NO_IDENTIFIER, UNUSABLE_IDENTIFIER

# A timestamp as nanoseconds since 1970.
_NANOSECONDS = "(extract(epoch FROM %(expressions)s) * 1000000000)::bigint"

# An ODP that fails answers now 502, now 503 or 504: that is one trouble.
_ANY_5XX = re.compile(r"\b5\d\d\b")


def installs_on_hold(installs: list[Any], waiting: Mapping[int, Backlog]) -> list[Alert]:
    """Alerts for installs in backoff. For those that are off nothing is tried, and they have an alert of their own."""
    held = [install for install in installs if state.is_on_hold(install)]
    retried = [install for install in held if not state.needs_key(install)]
    retry_all = _retry_all(retried[0], len(retried)) if retried else None
    return [
        Alert(
            "on_hold",
            f"{install} is on hold{': ODP rejects its API key' if state.needs_key(install) else ''}",
            f"{state.hold_of_install(install)}. {count(_waiting(waiting, install), 'event')} waiting; nothing is lost.",
            install.backoff_since_at,
            url_of(install),
            todo=state.remedy(install),
            offers=(
                *([way_to(install, "id_odp_api_key", "Enter a key", "key")] if state.needs_key(install) else []),
                buttons(install, "retry", "check"),
            ),
            install=install.pk,
            cause="key" if state.needs_key(install) else "",
            bulk=None if state.needs_key(install) else retry_all,
        )
        for install in held
    ]


def _retry_all(first: Install | Audience, many: int) -> Bulk:
    url = together.url(first, "retry-alike")
    return Bulk(url, "audiences.retry_install", f"Retry all {number(many)} now", "refresh", url)


def _waiting(waiting: Mapping[int, Backlog], install: Install) -> int:
    return waiting[install.pk].waiting if install.pk in waiting else 0


# What a person may do about a block.
REMEDIES = ("unblock", "accept", "take-ours", "reuse-id", "other-id", "set-aside")


def blocked_audiences(found: Groups, extent: Extent) -> list[Alert]:
    """One alert for each cause, for any number of audiences that it blocks."""
    everywhere = _unblock_everywhere(found)
    shown_alerts = [
        _blocked_alike(group, everywhere.get(blocked.cause(group.first))) for group in found.read[: extent.most]
    ]
    return shown_alerts + and_more(
        "blocked",
        found.count,
        "reasons for blocked audiences",
        list_url(Audience, state="blocked", **extent.of_install),
        extent,
        things=_unlisted(found, extent),
    )


def _unlisted(found: Groups, extent: Extent) -> int:
    return found.lanes - sum(group.lanes for group in found.read[: extent.most])


def _unblock_everywhere(found: Groups) -> dict[str, Bulk]:
    """For each cause in several installs, the button for all of them."""
    alike: dict[str, list[Group]] = {}
    for group in found.read:
        alike.setdefault(blocked.cause(group.first), []).append(group)
    is_whole = len(found.read) == found.count
    return {
        cause: _unblock_all(
            some[0].first, "unblock_everywhere", sum(group.lanes for group in some) if is_whole else None
        )
        for cause, some in alike.items()
        if len(some) > 1
    }


def _unblock_all(first: Lane, name: str, many: int | None) -> Bulk:
    """``many`` is None where only the dialog counts them."""
    url = together.url(first.audience, name)
    label = "Unblock all of this cause" if many is None else f"Unblock all {number(many)} of this cause"
    return Bulk(url, "audiences.unblock_audience", label, "lock_open", url)


def _blocked_alike(group: Group, everywhere: Bulk | None) -> Alert:
    first, alone = group.first, group.lanes == 1
    install = first.audience.install
    waiting = count(group.waiting, "event")
    url_of_all = list_url(Audience, state="blocked", install__id__exact=install.pk)
    who = f"{first.audience} is" if alone else f"{count(group.lanes, 'audience')} are"
    return Alert(
        "blocked",
        f"{who} blocked ({install})",
        f"Reason: {sentence(first.block_reason if alone else blocked.cause(first))}"
        f" {waiting} waiting. Other audiences are not affected.",
        state.blocked_since(first),
        url_of(first.audience) if alone else url_of_all,
        todo=blocks.remedy(first, others_where="" if alone else " on the page of each audience"),
        offers=(buttons(first.audience, *REMEDIES),) if alone else (),
        install=install.pk,
        cause=blocked.cause(first),
        many=group.lanes,
        bulk=None if alone else _unblock_all(first, "unblock_cause", group.lanes),
        wider=everywhere,
    )


def recreated_audiences(extent: Extent) -> list[Alert]:
    """New audiences with the slug of an older audience, until a person chooses what to do."""
    shown_alerts = []
    pairs, total = take_over.undecided_pairs(extent.most, extent.install_id)
    for audience, old in pairs:
        shown_alerts.append(
            Alert(
                "made_anew",
                f"{audience.latest_slug} was recreated in Lytics ({audience.install})",
                f"Segment {audience.segment_id} has the slug of {old}, which is segment {old.segment_id}. It goes to"
                f" ODP as {audience}, beside the old one.",
                audience.created_at,
                url_of(audience),
                tone="held",
                todo="Press Keep both. Or press Take over the old id: campaigns that use it then get the new audience.",
                offers=(buttons(audience, "keep-both", "take-over", known_offered=True),),
                install=audience.install_id,
            )
        )
    url = list_url(Audience, **extent.of_install)
    return shown_alerts + and_more("made_anew", total, "recreated audiences", url, extent, tone="held")


def creations_on_hold(extent: Extent) -> list[Alert]:
    """Audiences that can't be created or checked in ODP, grouped by reason."""
    found = on_hold_by_reason(extent)
    shown_alerts = []
    for group in found.read[: extent.most]:
        first, alone = group.first.audience, group.lanes == 1
        is_new = first.provisioned_at is None
        who = str(first) if alone else count(group.lanes, "audience")
        shown_alerts.append(
            Alert(
                "creation",
                f"{who} can't be {'created' if is_new else 'checked'} in ODP ({first.install})",
                f"{state.hold(first)}. "
                + (f"{count(group.waiting, 'event')} waiting; nothing is lost." if is_new else "Deliveries continue."),
                first.hold_since_at,
                url_of(first) if alone else list_url(Audience, state="hold", install__id__exact=first.install_id),
                "bad" if is_new else "held",
                todo=state.remedy_of_hold(first),
                offers=(
                    *(
                        [way_to(first.install, "id_odp_api_key", "Enter a key", "key")]
                        if state.rejects_key(first.hold_reason)
                        else []
                    ),
                    *([buttons(first, "retry")] if alone else []),
                ),
                install=first.install_id,
                cause=f"{is_new} {_ANY_5XX.sub('5xx', first.hold_reason.partition(':')[0])}",
                many=group.lanes,
                bulk=None if alone or state.rejects_key(first.hold_reason) else _retry_all(first, group.lanes),
            )
        )
    return shown_alerts + and_more(
        "creation",
        found.count,
        "reasons for audiences on hold",
        list_url(Audience, state="hold", **extent.of_install),
        extent,
        things=_unlisted(found, extent),
    )


def audiences_with_errors(extent: Extent) -> list[Alert]:
    """Audiences that an unexpected error of this service holds, of installs that are on. Their button for all retries
    those of every install, so the page of one install doesn't have it.
    """
    faulty = Lane.objects.filter(backlog.FAULTY, blocked_at=None, paused_at=None, audience__install__enabled=True)
    faulty = faulty.filter(audience__last_sequence__gt=F("delivered_sequence"))
    alike = Window(Count("*"), partition_by=[F("fault_reason")])
    lanes, total = listed_rows(
        faulty.select_related("audience__install")
        .defer("audience__install__odp_api_key")
        .annotate(alike=alike)
        .order_by("fault_since_at"),
        extent,
    )
    retry_all: dict[str, Bulk] = {}
    for lane in lanes:
        bulk = _retry_all(lane.audience, required(lane, "alike", int))
        retry_all.setdefault(lane.fault_reason, bulk)
    shown_alerts = [
        Alert(
            "error",
            f"{lane.audience} can't be delivered ({lane.audience.install})",
            f"{state.fault(lane)}. {count(state.backlog(lane), 'event')} waiting; nothing is lost."
            " Other audiences are not affected.",
            lane.fault_since_at,
            url_of(lane.audience),
            todo='This is an error of Lytics Sync. The worker\'s log has its traceback under "a delivery failed".',
            offers=(buttons(lane.audience, "retry"),),
            install=lane.audience.install_id,
            cause=lane.fault_reason,
            bulk=retry_all[lane.fault_reason] if extent.install_id is None else None,
        )
        for lane in lanes
    ]
    url = list_url(Audience, state="hold", **extent.of_install)
    return shown_alerts + and_more("error", total, "audiences on hold", url, extent)


def paused_audiences(extent: Extent) -> list[Alert]:
    paused = Lane.objects.filter(backlog.PAUSED).select_related("audience__install")
    paused = paused.defer("audience__install__odp_api_key")
    lanes, total = listed_rows(paused.order_by("-paused_at"), extent)
    shown_alerts = [
        Alert(
            "paused",
            f"{lane.audience} is {'set aside' if lane.blocked_at else 'paused'} ({lane.audience.install})",
            f"by {lane.paused_by}: {lane.pause_reason}",
            lane.paused_at,
            url_of(lane.audience),
            tone="held",
            offers=(buttons(lane.audience, "resume"),),
            install=lane.audience.install_id,
            message="The page Now shows who did this, and why.",
        )
        for lane in lanes
    ]
    url = list_url(Audience, state="paused", **extent.of_install)
    return shown_alerts + and_more("paused", total, "paused audiences", url, extent, tone="held")


def parked_items(parked: Sequence[parked_groups.Group], extent: Extent) -> list[Alert]:
    url = list_url(Parked, **extent.of_install)
    shown = parked_groups.in_words(parked[: extent.most])
    newest = Parked.objects.filter(pk__in=[group["newest"] for group in shown]).defer("raw")
    details = {parked.pk: parked.detail for parked in newest}
    back = urlencode({"next": reverse("admin:index")})
    return [
        Alert(
            "parked",
            f"{group['count_in_words']} parked: {group['words']} ({group['install_name']})",
            f"Newest: {details[group['newest']]}." if details.get(group["newest"]) else "",
            group["since_at"],
            group["url"],
            todo="Being released now." if group["going"] else group["hint"],
            offers=(
                *([_field_of(group)] if group["reason"] in (NO_IDENTIFIER, UNUSABLE_IDENTIFIER) else []),
                *(
                    [link(Release.permission, "Release all", "outbox", f"{group['release']}?{back}")]
                    if not group["going"] and group["can_release"]
                    else []
                ),
            ),
            install=group["install"],
            cause=group["reason"],
            message="",
        )
        for group in shown
    ] + and_more("parked", len(parked), "groups of parked items", url, extent)


def _field_of(group: dict[str, Any]) -> Offer:
    install = Install(pk=group["install"])
    return way_to(install, "id_identifier_field", "Identifier field", "badge")


def ignored_times() -> list[Alert]:
    """Transition times of the last day that were not believed, with the largest lead."""
    recent = FutureTime.objects.filter(received_at__gte=now() - timedelta(days=1)).order_by("-received_at")
    # Ahead of the call that brought the time, whose distance to now grows.
    ahead_ns = F("claimed_ns") - Func(F("received_at"), template=_NANOSECONDS, output_field=BigIntegerField())
    seen = recent.annotate(ahead_ns=ahead_ns)[:COUNTED].aggregate(
        count=Count("sequence"), most=Max("ahead_ns"), first=Min("received_at")
    )
    if not seen["count"]:
        return []
    lead = span(timedelta(microseconds=seen["most"] // 1000))
    of_newest = f" of the newest {number(COUNTED)}" if seen["count"] >= COUNTED else ""
    were = "time was" if seen["count"] == 1 else "times were"
    return [
        Alert(
            "ignored_times",
            f"{up_to_bound(seen['count'])} transition {were} ahead of the clock",
            f"Within a day; the furthest{of_newest} by {lead}. These events were delivered with the time of their"
            " message, or of their call.",
            seen["first"],
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
            "times_ahead",
            f"{more}{number(found.memberships)} {have} ahead of the clock",
            f"Stored by an older version; the furthest by {span(found.furthest - now())}.",
            found.since,
            reverse("find_customer"),
            "held",
            todo="The customer's next event corrects it. manage.py audit_log lists them.",
        )
    ]


def new_installs(installs: list[Any], rejections: dict[str, RejectedCalls]) -> list[Alert]:
    return [
        Alert(
            "no_call",
            f"{install} has had no call yet",
            "The Lytics job has not called. Its settings are in the install instructions.",
            install.created_at,
            url_of(install),
            "held",
            install=install.pk,
        )
        for install in installs
        if install.enabled and install.called_at is None and not has_calls(install.public_id, rejections)
    ]
