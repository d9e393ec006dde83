"""Runs: the sync history, each unfolding to the delivery that it went out with."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from audiences import state
from audiences.admin.deliveries import DeliverySection, OutcomeFilter
from audiences.admin.pages import HistoryAdmin, ago, link, number, pill
from audiences.models import Audience, Run


@admin.register(Run)
class RunAdmin(HistoryAdmin[Run]):
    list_display = ("run", "audience_link", "pill", "events", "sent", "folded", "opened", "delivery_link")
    list_filter = (OutcomeFilter, "audience__install")
    list_select_related = ("audience__install", "delivery")
    list_sections = (DeliverySection,)
    search_fields = ("audience__odp_id",)
    search_help_text = "An audience by its whole ODP id"
    fields = (
        ("audience_link", "pill"),
        ("first_sequence", "last_sequence"),
        ("sent", "folded"),
        ("opened_at", "closed_at"),
        "delivery_link",
    )
    readonly_fields = ("audience_link", "pill", "delivery_link")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        return super().get_queryset(request).select_related("audience__install", "delivery")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Run], search_term: str
    ) -> tuple[QuerySet[Run], bool]:
        """Exactly: a part of a name would read the whole table."""
        if search_term.strip():
            queryset = queryset.filter(audience__in=Audience.objects.filter(odp_id=search_term.strip()))
        return queryset, False

    @admin.display(description="run")
    def run(self, run: Run) -> SafeString | str:
        return link(run, f"{run.first_sequence:,}–{run.last_sequence:,}")

    @admin.display(description="audience")
    def audience_link(self, run: Run) -> SafeString | str:
        return link(run.audience)

    @admin.display(description="outcome")
    def pill(self, run: Run) -> SafeString:
        return pill(state.of_request(run))

    @admin.display
    def events(self, run: Run) -> str:
        return number(run.last_sequence - run.first_sequence + 1)

    @admin.display
    def opened(self, run: Run) -> Any:
        return ago(run.opened_at)

    @admin.display(description="delivery")
    def delivery_link(self, run: Run) -> SafeString | str:
        return link(run.delivery) if run.delivery else "none needed: all were folded"
