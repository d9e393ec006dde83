"""Runs: the sync history, each unfolding to the delivery that it went out with."""

from functools import partial
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.safestring import SafeString

from audiences import masked_answers, request_bodies
from audiences.admin import verbs
from audiences.admin.deliveries import DeliverySection
from audiences.admin.filters import (
    BecauseOf,
    ByAudience,
    InstallOfRun,
    OutcomeFilter,
    count_runs,
    is_only_by_install,
    named,
)
from audiences.admin.pages import NumberedHistoryAdmin, ago, link, list_url, mask, number, pill
from audiences.admin.periods import ByPeriod
from audiences.insight import horizons, state
from audiences.models import Delivery, Parked, Run
from audiences.receiving import resend_causes
from odp.mechanisms import membership_in

# Customers shown of an unfolded run.
SHOWN = 20


@admin.register(Run)
class RunAdmin(NumberedHistoryAdmin[Run]):
    pruned_as = "runs"
    empty_words = "Nothing has been sent to ODP yet."
    list_display = (
        "run",
        "audience_link",
        "pill",
        "events",
        "sent",
        "folded",
        "opened",
        "delivery_link",
        "because",
        "install_link",
    )
    sortable_by = ("opened",)
    list_filter = (OutcomeFilter, ByPeriod, ByAudience, InstallOfRun, BecauseOf)
    # By the primary key, or by the index of runs by audience: a part of a name would read the whole table.
    search_fields = ("pk",)
    search_help_text = "A run's number, or an audience's slug or ODP id"
    time_field = "opened_at"
    csv_columns = (
        ("audience", "audience__odp_id"),
        ("install", "audience__install__name"),
        ("first", "first_sequence"),
        ("last", "last_sequence"),
        ("sent", "sent"),
        ("folded", "folded"),
        ("opened_at", "opened_at"),
        ("closed_at", "closed_at"),
        ("outcome", "outcome"),
        ("delivery", "delivery_id"),
        ("because_of", "pk"),
    )
    list_select_related = ("audience__install", "delivery", "skip")
    list_sections = (DeliverySection,)
    fields = (
        ("audience_link", "pill"),
        ("first_sequence", "last_sequence"),
        ("sent", "folded"),
        ("opened_at", "closed_at"),
        "delivery_link",
        "because",
    )
    readonly_fields = ("audience_link", "pill", "delivery_link", "because")

    def get_urls(self) -> list[Any]:
        sent = path("<int:pk>/sent/", verbs.view(self, self.sent_view), name="audiences_run_sent")
        return [sent, *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        return (
            super()
            .get_queryset(request)
            .select_related("audience__install", "delivery", "skip")
            .defer("delivery__request", "delivery__answer")
        )

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """With the masked reason and the cause of each run of the page, looked up for all of them at once."""
        changelist = super().get_changelist_instance(request)
        masked_answers.mask_reasons(run.delivery for run in changelist.result_list if run.delivery)
        cause_of = resend_causes.causes(changelist.result_list)
        for run in changelist.result_list:
            run.cause_of = cause_of[run.pk]
        return changelist

    def get_paginator(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        paginator: Any = super().get_paginator(request, *args, **kwargs)
        if is_only_by_install(request):
            paginator.quick_count = partial(count_runs, request)
        elif ByAudience.alone(request):
            paginator.quick_count = partial(ByAudience.count, request, Run)
        return paginator

    def rows_named(self, rows: QuerySet[Run], name: str) -> QuerySet[Run]:
        return rows.filter(audience__in=named(name))

    def csv_piece(self, rows: list[list[Any]]) -> None:
        cause_of = resend_causes.causes(Run.objects.filter(pk__in=[row[-1] for row in rows]) if rows else ())
        for row in rows:
            row[-1] = cause_of[row[-1]]

    def sent_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The items sent for a run's audience and the response, loaded when the row is unfolded."""
        if not (self.has_view_permission(request) and request.user.has_perm("audiences.view_delivery")):
            raise PermissionDenied
        run = Run.objects.select_related("audience", "delivery").filter(pk=pk).first()
        if run is None or run.delivery is None:
            raise Http404
        return TemplateResponse(request, "audiences/sent_of_run.html", sent_of(run, run.delivery))

    @admin.display(description="run")
    def run(self, run: Run) -> SafeString | str:
        return link(run, f"{run.first_sequence:,}–{run.last_sequence:,}")

    @admin.display(description="audience")
    def audience_link(self, run: Run) -> SafeString | str:
        return link(run.audience)

    @admin.display(description="install")
    def install_link(self, run: Run) -> SafeString | str:
        return link(run.audience.install)

    @admin.display(description="outcome")
    def pill(self, run: Run) -> SafeString:
        return pill(state.of_request(run))

    @admin.display
    def events(self, run: Run) -> str:
        return number(run.last_sequence - run.first_sequence + 1)

    @admin.display(ordering="id")
    def opened(self, run: Run) -> Any:
        return ago(run.opened_at)

    @admin.display(description="because of")
    def because(self, run: Run) -> str:
        cause_of: str | None = getattr(run, "cause_of", None)
        return resend_causes.causes([run])[run.pk] if cause_of is None else cause_of

    @admin.display(description="delivery")
    def delivery_link(self, run: Run) -> SafeString | str:
        if run.delivery is None:
            return str(run.skip or "none: all were folded")
        return link(run.delivery)


def sent_of(run: Run, delivery: Delivery) -> dict[str, Any]:
    kept = delivery.request is not None
    items = request_bodies.items(request_bodies.unpack(bytes(delivery.request))) if delivery.request is not None else []
    changes = [change for item in items if (change := membership_in(item, run.audience.odp_id))]
    return {
        "run": run,
        "delivery": delivery,
        "kept": kept,
        "horizon": "" if kept else horizons.words("requests"),
        "count": len(changes),
        "changes": [(mask(identifier), is_member) for identifier, is_member in changes[:SHOWN]],
        "more": max(0, len(changes) - SHOWN),
        "rejected": Parked.objects.filter(delivery=delivery, audience=run.audience_id).exists(),
        "rejected_url": list_url(
            Parked, delivery__id__exact=delivery.pk, audience__id__exact=run.audience_id, resolution="all"
        ),
    }
