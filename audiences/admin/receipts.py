"""Calls: every call from Lytics as it arrived, and what became of its messages."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from audiences.admin.pages import NumberedHistoryAdmin, ago, link, list_url, number, numbered, pill, size
from audiences.admin.periods import ByPeriod
from audiences.insight import state, trace
from audiences.models import Delivery, Install, Parked, Receipt
from lytics.reasons import HINTS


class Verdict(admin.SimpleListFilter):
    """Choices for rare results only: nearly every call has queued events."""

    title = "verdict"
    parameter_name = "verdict"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("parked", "Something parked"), ("empty", "Nothing queued")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Receipt]) -> QuerySet[Receipt]:
        match self.value():
            case "parked":
                return queryset.filter(parked__gt=0)
            case "empty":
                return queryset.filter(queued=0)
        return queryset


@admin.register(Receipt)
class ReceiptAdmin(NumberedHistoryAdmin[Receipt]):
    pruned_as = "receipts"
    empty_words = "No call from Lytics yet."
    list_display = (
        "call",
        "pill",
        "messages_",
        "queued_",
        "parked_",
        "size",
        "job",
        "source",
        "received",
        "install_link",
    )
    sortable_by = ("call", "received")
    list_filter = (Verdict, ByPeriod, "install")
    # By the primary key, or by the index of calls by install: a part of a name would read the whole table.
    search_fields = ("pk",)
    search_help_text = "A call's number, as in its X-Receipt header, or the whole name of an install"
    time_field = "received_at"
    csv_columns = (
        ("call", "pk"),
        ("install", "install__name"),
        ("received_at", "received_at"),
        ("source", "source"),
        ("job", "job"),
        ("bytes", "bytes"),
        ("messages", "messages"),
        ("queued", "queued"),
        ("parked", "parked"),
        ("skipped", "skipped"),
    )
    list_select_related = ("install",)
    fields = (
        ("install_link", "pill"),
        ("received_at", "source"),
        ("job", "size"),
        ("messages_", "queued_"),
        ("parked_", "skipped_"),
        "deliveries",
        "reasons",
    )
    readonly_fields = (
        *("install_link", "pill", "size", "messages_", "queued_", "parked_", "skipped_", "deliveries", "reasons"),
    )

    def rows_named(self, rows: QuerySet[Receipt], name: str) -> QuerySet[Receipt]:
        install = Install.objects.filter(name__iexact=name).order_by("pk").first()
        return rows.filter(install=install) if install else rows.none()

    @admin.display(ordering="id")
    def call(self, receipt: Receipt) -> SafeString | str:
        return link(receipt, f"{receipt.pk:,}")

    @admin.display(description="verdict")
    def pill(self, receipt: Receipt) -> SafeString:
        return pill(state.of_receipt(receipt))

    @admin.display(description="messages")
    def messages_(self, receipt: Receipt) -> str:
        return number(receipt.messages)

    @admin.display(description="events queued")
    def queued_(self, receipt: Receipt) -> str:
        return number(receipt.queued)

    @admin.display(description="items parked")
    def parked_(self, receipt: Receipt) -> str:
        return number(receipt.parked)

    @admin.display(description="unusable identifier values")
    def skipped_(self, receipt: Receipt) -> str:
        return number(receipt.skipped)

    @admin.display
    def size(self, receipt: Receipt) -> str:
        return size(receipt.bytes)

    @admin.display(ordering="id")
    def received(self, receipt: Receipt) -> Any:
        return ago(receipt.received_at)

    @admin.display(description="install")
    def install_link(self, receipt: Receipt) -> SafeString | str:
        return link(receipt.install)

    @admin.display(description="deliveries to ODP")
    def deliveries(self, receipt: Receipt) -> SafeString | str:
        found = numbered(Delivery, trace.deliveries_of(receipt), most=trace.SHOWN)
        return found or f"none among the first {trace.RUNS:,} runs within ten minutes of the call"

    @admin.display(description="why items were parked")
    def reasons(self, receipt: Receipt) -> SafeString | str:
        if not receipt.parked_reasons:
            return "nothing was parked"
        url = list_url(Parked, receipt__id__exact=receipt.pk, resolution="all")
        return format_html_join(
            "",
            '<p><a class="ls-link" href="{}">{} × {}</a> — {}</p>',
            ((url, number(count), reason, HINTS.get(reason, "")) for reason, count in receipt.parked_reasons.items()),
        )
