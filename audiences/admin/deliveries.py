"""Deliveries: every request to ODP, what it carried and what came back."""

from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.safestring import SafeString
from django.utils.timezone import now

from audiences import state
from audiences.admin.pages import HistoryAdmin, ago, link, number, pill_and_why, size
from audiences.models import OUTCOMES, Audience, Delivery, Run
from odp.outcomes import Outcome

# Of an audience's deliveries the list shows those of so many of its latest runs.
RUNS_OF_AN_AUDIENCE = 5_000


class OutcomeFilter(admin.SimpleListFilter):
    """By how a delivery or a run ended, without asking the table which outcomes there are."""

    title = "outcome"
    parameter_name = "outcome"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("failed", "Anything but delivered"), *OUTCOMES, ("open", "open")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case None:
                return queryset
            case "open":
                return queryset.filter(closed_at=None)
            case "failed":
                return queryset.filter(closed_at__isnull=False).exclude(outcome=Outcome.DELIVERED)
        return queryset.filter(outcome=self.value())


class SlowerThan(admin.SimpleListFilter):
    title = "latency"
    parameter_name = "slower"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("250", "Slower than 250 ms"), ("1000", "Slower than 1 s"), ("5000", "Slower than 5 s")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> QuerySet[Delivery]:
        value = self.value() or ""
        return queryset.filter(latency_ms__gt=int(value)) if value.isdecimal() else queryset


class Hour(admin.SimpleListFilter):
    """An hour of the last day; ``?hour=2026-01-31T14`` works for any other."""

    title = "hour (UTC)"
    parameter_name = "hour"
    FORM = "%Y-%m-%dT%H"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        hours = [now() - timedelta(hours=back) for back in range(24)]
        return [(f"{hour:{self.FORM}}", f"{hour:%a %H:00}") for hour in hours]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> QuerySet[Delivery]:
        try:
            start = datetime.strptime(f"{self.value()} +0000", f"{self.FORM} %z")
        except ValueError:
            return queryset
        return queryset.filter(opened_at__gte=start, opened_at__lt=start + timedelta(hours=1))


class DeliverySection:
    """What a row of the runs unfolds to."""

    def __init__(self, request: HttpRequest, run: Run) -> None:
        self.request, self.run = request, run

    def render(self) -> str:
        delivery = self.run.delivery
        state_of = state.of_request(delivery) if delivery else None
        return render_to_string(
            "audiences/delivery_of_run.html", {"run": self.run, "delivery": delivery, "state": state_of}
        )


@admin.register(Delivery)
class DeliveryAdmin(HistoryAdmin[Delivery]):
    list_display = ("delivery", "pill", "items_", "size", "latency", "status_", "opened", "install_link")
    list_filter = (OutcomeFilter, SlowerThan, Hour, "install")
    list_select_related = ("install",)
    search_fields = ("pk",)
    search_help_text = "A delivery's number, or an audience by its whole ODP id"
    change_form_outer_after_template = "audiences/runs_of_delivery.html"
    fields = (
        ("install_link", "pill"),
        ("opened_at", "closed_at"),
        ("endpoint", "status_"),
        ("items_", "size"),
        ("latency", "worker"),
        "reason",
        "answer_",
        "version",
    )
    readonly_fields = ("install_link", "pill", "status_", "items_", "size", "latency", "answer_")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Delivery], search_term: str
    ) -> tuple[QuerySet[Delivery], bool]:
        term = search_term.strip().replace(",", "")
        if term.isdecimal():
            return queryset.filter(pk=int(term[:18])), False
        if term:
            runs = Run.objects.filter(audience__in=Audience.objects.filter(odp_id=term), delivery__isnull=False)
            queryset = queryset.filter(
                pk__in=list(runs.order_by("-id").values_list("delivery_id", flat=True)[:RUNS_OF_AN_AUDIENCE])
            )
        return queryset, False

    def page_context(self, request: HttpRequest, delivery: Delivery) -> dict[str, Any]:
        return {"runs": delivery.runs.select_related("audience")}

    @admin.display(description="delivery")
    def delivery(self, delivery: Delivery) -> SafeString | str:
        return link(delivery, f"{delivery.pk:,}")

    @admin.display(description="outcome")
    def pill(self, delivery: Delivery) -> SafeString:
        return pill_and_why(state.of_request(delivery))

    @admin.display(description="items")
    def items_(self, delivery: Delivery) -> str:
        return number(delivery.items)

    @admin.display(description="request")
    def size(self, delivery: Delivery) -> str:
        return size(delivery.bytes)

    @admin.display
    def latency(self, delivery: Delivery) -> str:
        return "—" if delivery.latency_ms is None else f"{delivery.latency_ms:,} ms"

    @admin.display(description="HTTP status")
    def status_(self, delivery: Delivery) -> str:
        return str(delivery.status or "none")

    @admin.display
    def opened(self, delivery: Delivery) -> Any:
        return ago(delivery.opened_at)

    @admin.display(description="answer of ODP")
    def answer_(self, delivery: Delivery) -> str:
        return delivery.answer or (
            "not kept, because all was taken" if delivery.outcome == Outcome.DELIVERED else "none"
        )

    @admin.display(description="install")
    def install_link(self, delivery: Delivery) -> SafeString | str:
        return link(delivery.install)
