"""Audiences: the state of each, its reason, and the buttons that change it."""

from datetime import datetime
from functools import partial
from typing import Any

from django.contrib import admin
from django.db.models import F, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Lower
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from audiences import masked_answers
from audiences.admin import audits, blocked, last_delivered, together, verbs
from audiences.admin.alike import RESYNC_ALIKE, RETRY_ALIKE
from audiences.admin.audience_verbs import (
    KeepBoth,
    Pause,
    Resume,
    Resync,
    RetryNow,
    SetAside,
    TakeOver,
    Unblock,
    UseOtherId,
)
from audiences.admin.audits import AuditNow
from audiences.admin.definition_verbs import AcceptDefinition, TakeOurs
from audiences.admin.pages import CountedPaginator, OperatorAdmin, ago, count, link, list_url, number, pill_and_why
from audiences.admin.parameters import whole_number
from audiences.admin.replay import Replay
from audiences.admin.resends import section
from audiences.admin.retire_verbs import Retire, ReuseId, TakeBack
from audiences.admin.runs_chart import chart
from audiences.annotations import optional
from audiences.insight import blocks, retirements, similar_slugs, state, trials
from audiences.models import Audience, Delivery, Event, Lane, Parked, Run
from audiences.operations import job_looks, twins
from audiences.receiving import backlog, resend_causes

RUNS_SHOWN = 50


class AudienceState(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("blocked", "Blocked"),
            ("hold", "On hold"),
            ("paused", "Paused"),
            ("behind", "With a backlog"),
            ("idle", "Up to date"),
            ("differs", "Different in ODP"),
            ("left", "Left the Lytics job"),
            ("retired", "Retired"),
            ("test", "Of test customers"),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Audience]) -> QuerySet[Audience]:
        match self.value():
            case "blocked":
                return queryset.filter(lane__in=Lane.objects.filter(backlog.BLOCKED))
            case "hold":
                return queryset.filter(Q(hold_failures__gt=0) | Q(lane__in=Lane.objects.filter(backlog.FAULTY)))
            case "paused":
                return queryset.filter(lane__paused_at__isnull=False)
            case "behind":
                return queryset.filter(last_sequence__gt=F("lane__delivered_sequence"))
            case "idle":
                return queryset.filter(last_sequence=F("lane__delivered_sequence"))
            case "differs":
                return queryset.filter(twin__isnull=False).exclude(twin__finding="")
            case "left":
                return queryset.filter(pk__in=job_looks.gone().values("pk"))
            case "retired":
                return queryset.filter(lane__retired_sequence__isnull=False)
            case "test":
                return queryset.filter(segment_id=trials.SEGMENT_ID)
        # Without a filter or a search, the list leaves out the audience of the test customers.
        return queryset if request.GET.get("q") else queryset.exclude(segment_id=trials.SEGMENT_ID)


@admin.register(Audience)
class AudienceAdmin(OperatorAdmin[Audience]):
    verbs = (
        Pause(),
        Resume(),
        Unblock(),
        AcceptDefinition(),
        TakeOurs(),
        ReuseId(),
        UseOtherId(),
        SetAside(),
        KeepBoth(),
        TakeOver(),
        RetryNow(),
        Resync(),
        Replay(),
        AuditNow(),
        TakeBack(),
        Retire(),
    )
    empty_words = "No audience yet. An audience appears with its first event."
    list_display = ("name", "pill", "members", "waiting", "head", "last_delivered", "install_link")
    list_filter = (AudienceState, "install")
    search_fields = ("odp_id", "latest_slug")
    search_help_text = "Part of a slug or of an ODP id"
    # A table of thousands of rows at most, so that each of these is cheap. The last delivery is looked up in the runs:
    # cheap for a page, and not for all audiences.
    sortable_by = ("name", "members", "waiting", "head", "install_link")
    paginator = CountedPaginator
    actions = ("unblock_selected",)
    change_list_template = "audiences/history.html"
    change_form_template = "audiences/audience.html"
    csv_columns = (
        ("audience", "odp_id"),
        ("install", "install__name"),
        ("slug", "latest_slug"),
        ("segment", "segment_id"),
        ("state", "pk"),
        ("members", "lane__member_count"),
        ("backlog", "backlog"),
        ("oldest_waiting", "head_at"),
        ("last_delivered", "delivered_at"),
        ("created_at", "created_at"),
        ("reason", "pk"),
    )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Audience | None = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Audience]:
        head = Event.objects.filter(
            audience=OuterRef("pk"),
            sequence=OuterRef("lane__delivered_sequence") + 1,
            part__range=(OuterRef("waiting_part"), OuterRef("part")),
        )
        return (
            super()
            .get_queryset(request)
            .select_related("install", "lane")
            .annotate(
                backlog=F("last_sequence") - F("lane__delivered_sequence"),
                head_at=Subquery(head.values("received_at")[:1]),
                delivered_at=Subquery(last_delivered.of_audience(OuterRef("pk"), OuterRef("lane__delivered_sequence"))),
            )
        )

    def get_urls(self) -> list[Any]:
        of_cause = verbs.view(self, partial(blocked.of_cause, self))
        everywhere = verbs.view(self, partial(blocked.of_cause, self, everywhere=True))
        return [
            path("<int:pk>/unblock-cause/", of_cause, name="audiences_audience_unblock_cause"),
            path("<int:pk>/unblock-everywhere/", everywhere, name="audiences_audience_unblock_everywhere"),
            *together.urls(self, RETRY_ALIKE, RESYNC_ALIKE),
            *super().get_urls(),
        ]

    def csv_piece(self, rows: list[list[Any]]) -> None:
        place = [source for _, source in self.csv_columns].index("pk")
        lanes = Lane.objects.select_related("audience__install").in_bulk([row[-1] for row in rows])
        for row in rows:
            lane_state = state.of_lane(lanes[row[-1]])
            row[place], row[-1] = lane_state.word, lane_state.why

    def has_unblock_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(Unblock.permission)

    @admin.action(description="Unblock", permissions=["unblock"])
    def unblock_selected(self, request: HttpRequest, queryset: QuerySet[Audience]) -> HttpResponse:
        ids = list(queryset.order_by().values_list("pk", flat=True))
        back = request.get_full_path()
        return blocked.unblock(self, request, ids, back=back, hidden={"action": "unblock_selected"})

    @admin.display(description="audience", ordering="odp_id")
    def name(self, audience: Audience) -> SafeString:
        notes = format_html_join("", '<span class="ls-note">{}</span>', ((w,) for w in state.warnings(audience.lane)))
        return format_html("{}{}", link(audience), notes)

    @admin.display(description="state")
    def pill(self, audience: Audience) -> SafeString:
        return pill_and_why(state.of_lane(audience.lane))

    @admin.display(ordering="lane__member_count")
    def members(self, audience: Audience) -> str:
        return number(audience.lane.member_count)

    @admin.display(description="backlog", ordering="backlog")
    def waiting(self, audience: Audience) -> str:
        return number(state.backlog(audience.lane))

    @admin.display(description="oldest waiting", ordering=F("head_at").asc(nulls_last=True))
    def head(self, audience: Audience) -> str:
        return ago(optional(audience, "head_at", datetime))

    @admin.display
    def last_delivered(self, audience: Audience) -> str:
        return ago(optional(audience, "delivered_at", datetime))

    @admin.display(description="install", ordering=Lower("install__name"))
    def install_link(self, audience: Audience) -> str:
        return link(audience.install)

    def page_context(self, request: HttpRequest, audience: Audience) -> dict[str, Any]:
        before = request.GET.get("before", "")
        runs = Run.objects.filter(audience=audience).select_related("delivery", "skip").defer("delivery__request")
        runs = runs.order_by("-id")
        if (number_before := whole_number(before)) is not None:
            runs = runs.filter(pk__lt=number_before)
        page = list(runs[: RUNS_SHOWN + 1])
        masked_answers.mask_reasons(run.delivery for run in page if run.delivery)
        caused = resend_causes.causes(page)
        return {
            "state": state.of_lane(audience.lane),
            "numbers": {
                "members": number(audience.lane.member_count),
                "backlog": number(state.backlog(audience.lane)),
                "head": ago(optional(audience, "head_at", datetime)),
                "delivered": ago(optional(audience, "delivered_at", datetime)),
                "accepted": number(audience.last_sequence),
            },
            "twin": twins.of(audience),
            "presence": job_looks.of(audience),
            "audits": audits.section(audience),
            "warnings": [
                *_next_steps(audience.lane),
                *retirements.words(audience),
                *state.warnings(audience.lane),
                *similar_slugs.warnings(audience),
            ],
            "runs": [(run, state.of_request(run.delivery or run), caused[run.pk]) for run in page[:RUNS_SHOWN]],
            "chart": chart(page[:RUNS_SHOWN]),
            "deliveries_url": list_url(Delivery, audience=audience.odp_id, install__id__exact=audience.install_id),
            "failed_url": list_url(Run, audience=audience.odp_id, install=audience.install_id, outcome="failed"),
            "newest": request.path if before else "",
            "older": page[RUNS_SHOWN - 1].pk if len(page) > RUNS_SHOWN else None,
            "sent_again": section(request, audience__id__exact=audience.pk),
            "parked_url": list_url(Parked, audience__id__exact=audience.pk, resolution="open"),
        }


def _next_steps(lane: Lane) -> list[str]:
    """What a block or a failing creation means for the audience's events, and what to do, as *Now* says."""
    waiting = f"{count(state.backlog(lane), 'event')} waiting."
    if lane.retired_sequence is not None:
        return []
    if lane.blocked_at is not None and not state.is_set_aside(lane):
        return [f"{waiting} Other audiences are not affected. {blocks.remedy(lane)}"]
    if lane.paused_at is None and lane.audience.hold_failures and not lane.audience.provisioned_at:
        return [f"{waiting} {state.remedy_of_hold(lane.audience)}"]
    return []
