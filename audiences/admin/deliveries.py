"""Deliveries: every request to ODP, what it carried and what came back."""

import json
from functools import partial
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.safestring import SafeString

from audiences import masked_answers, request_bodies
from audiences.admin import live
from audiences.admin.filters import BecauseOf, ByAudience, OutcomeFilter, SlowerThan
from audiences.admin.masks import mask_items, written
from audiences.admin.pages import NumberedHistoryAdmin, ago, count, link, number, numbered, pill_and_why, size
from audiences.admin.periods import ByPeriod
from audiences.admin.verbs import Verb
from audiences.insight import horizons, state, trace
from audiences.models import Delivery, Receipt, Run
from audiences.receiving import resend_causes
from odp.client import headers_of_a_write
from odp.regions import host_of

HIDDEN = "•" * 12


class DeliverySection:
    """The delivery that a row of the list of runs unfolds to."""

    def __init__(self, request: HttpRequest, run: Run) -> None:
        self.request, self.run = request, run

    def render(self) -> str:
        delivery = self.run.delivery
        state_of = state.of_request(delivery or self.run)
        return render_to_string(
            "audiences/delivery_of_run.html",
            {"run": self.run, "delivery": delivery, "state": state_of},
            request=self.request,
        )


class Reveal(Verb[Delivery]):
    name, label, icon, permission = "reveal", "Show unmasked", "visibility", "audiences.reveal_parked"

    def offered(self, delivery: Delivery) -> bool:
        return delivery.request is not None

    def consequence(self, delivery: Delivery) -> str:
        return (
            f"The request is shown once as it was sent, with the identifiers of {count(delivery.items, 'item')} in it."
            " This is logged in its history."
        )

    def do(self, delivery: Delivery, *, by: str, answers: dict[str, Any]) -> str | None:
        return "Request shown unmasked, this once."

    def also(self, request: HttpRequest, delivery: Delivery) -> None:
        request.session["unmasked_delivery"] = delivery.pk


@admin.register(Delivery)
class DeliveryAdmin(NumberedHistoryAdmin[Delivery]):
    pruned_as = "deliveries"
    verbs = (Reveal(),)
    empty_words = "Nothing has been sent to ODP yet."
    list_display = ("delivery", "pill", "items_", "size", "latency", "status_", "opened", "because", "install_link")
    sortable_by = ("delivery", "opened")
    list_filter = (OutcomeFilter, ByPeriod, ByAudience, SlowerThan, "install", BecauseOf)
    time_field = "opened_at"
    csv_columns = (
        ("delivery", "pk"),
        ("install", "install__name"),
        ("opened_at", "opened_at"),
        ("closed_at", "closed_at"),
        ("outcome", "outcome"),
        ("http_status", "status"),
        ("items", "items"),
        ("bytes", "bytes"),
        ("latency_ms", "latency_ms"),
        ("reason", "reason"),
        ("endpoint", "endpoint"),
        ("worker", "worker"),
        ("version", "version"),
        ("because_of", "pk"),
    )
    list_select_related = ("install",)
    search_fields = ("pk",)
    search_help_text = "A delivery's number"
    change_form_outer_after_template = "audiences/request_of_delivery.html"
    fields = (
        ("install_link", "pill"),
        ("opened_at", "closed_at"),
        ("items_", "size"),
        ("latency", "worker"),
        "reason_",
        ("calls", "version"),
        "because",
    )
    readonly_fields = ("install_link", "pill", "items_", "size", "latency", "reason_", "calls", "because")

    def get_urls(self) -> list[Any]:
        return [live.url(self), *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        """Leave out the request body: it is long, and only the page of one delivery shows it."""
        return super().get_queryset(request).defer("request", "answer")

    def get_paginator(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        paginator: Any = super().get_paginator(request, *args, **kwargs)
        if ByAudience.alone(request):
            paginator.quick_count = partial(ByAudience.count, request, Delivery)
        return paginator

    def csv_piece(self, rows: list[list[Any]]) -> None:
        place = [source for _, source in self.csv_columns].index("reason")
        masked = masked_answers.reasons({row[0]: row[place] for row in rows})
        for row in rows:
            row[place] = masked[row[0]]
        caused = resend_causes.causes_of_deliveries([row[0] for row in rows])
        for row in rows:
            row[-1] = caused[row[0]]

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """With the masked reason and the cause of each delivery of the page, looked up for all of them at once."""
        changelist = super().get_changelist_instance(request)
        masked_answers.mask_reasons(changelist.result_list)
        caused = resend_causes.causes_of_deliveries([delivery.pk for delivery in changelist.result_list])
        for delivery in changelist.result_list:
            delivery.caused = caused[delivery.pk]
        return changelist

    def page_context(self, request: HttpRequest, delivery: Delivery) -> dict[str, Any]:
        unmasked = request.session.pop("unmasked_delivery", None) == delivery.pk
        body = None if delivery.request is None else request_bodies.unpack(bytes(delivery.request))
        items = None if body is None else request_bodies.items(body)
        install = delivery.install
        return {
            "runs": delivery.runs.select_related("audience"),
            "host": host_of(api_key=install.odp_api_key, region=install.region, host=install.odp_host),
            "headers": headers_of_a_write(HIDDEN, size=delivery.bytes),
            "items": items,
            "cut": body is not None and len(body.encode()) < delivery.bytes,
            "unmasked": unmasked,
            "horizon": "" if body else horizons.words("requests"),
            "reason": masked_answers.reason(delivery),
            "body": "" if items is None else pretty(items if unmasked else mask_items(items)),
            "answer": pretty_text(
                masked_answers.whole_answer(delivery) if unmasked else masked_answers.answer(delivery)
            ),
        }

    @admin.display(description="delivery", ordering="id")
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

    @admin.display(description="reason")
    def reason_(self, delivery: Delivery) -> str:
        return masked_answers.reason(delivery) or "—"

    @admin.display(description="calls from Lytics")
    def calls(self, delivery: Delivery) -> SafeString | str:
        found = numbered(Receipt, trace.receipts_of(delivery), most=trace.SHOWN)
        return found or "none in the log: sent again by this service, or deleted since"

    @admin.display(description="because of")
    def because(self, delivery: Delivery) -> str:
        caused: str | None = getattr(delivery, "caused", None)
        return (resend_causes.causes_of_deliveries([delivery.pk])[delivery.pk] if caused is None else caused) or "—"

    @admin.display(description="HTTP status")
    def status_(self, delivery: Delivery) -> str:
        return str(delivery.status or "none")

    @admin.display(ordering="id")
    def opened(self, delivery: Delivery) -> Any:
        return ago(delivery.opened_at)

    @admin.display(description="install")
    def install_link(self, delivery: Delivery) -> SafeString | str:
        return link(delivery.install)


def pretty(items: list[Any]) -> str:
    """One item per line: 500 indented items would have 3,000 lines."""
    return "[\n" + ",\n".join(f"  {written(item)}" for item in items) + "\n]"


def pretty_text(text: str) -> str:
    try:
        return written(json.loads(text), indent=2)
    except (ValueError, RecursionError):
        return text
