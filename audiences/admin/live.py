"""Live: the newest calls and deliveries, side by side. The page asks for itself again every two seconds.

The page may stay open, because it only reads the newest rows of two tables by primary key.
"""

from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.timezone import now

from audiences import masked_answers
from audiences.admin import verbs
from audiences.insight import state
from audiences.models import Delivery, Receipt

ROWS = 50
PERMISSIONS = ("audiences.view_receipt", "audiences.view_delivery")


def url(admin: Any) -> URLPattern:
    """A URL below the deliveries, because each page of the admin belongs to a model."""

    def view(request: HttpRequest) -> HttpResponse:
        if not request.user.has_perms(PERMISSIONS):
            raise PermissionDenied
        renewal = request.headers.get("HX-Request") == "true"
        context = newest() if renewal else {**admin.admin_site.each_context(request), "title": "Live", **newest()}
        return TemplateResponse(request, f"audiences/live{'_now' if renewal else ''}.html", context)

    return path("live/", verbs.view(admin, view), name="audiences_live")


def newest() -> dict[str, Any]:
    receipts = Receipt.objects.select_related("install").only(
        "install__name", "received_at", "messages", "queued", "parked"
    )
    deliveries = Delivery.objects.select_related("install").only(
        "install__name", "opened_at", "closed_at", "outcome", "items", "status", "latency_ms", "reason"
    )
    newest_deliveries = list(deliveries.order_by("-id")[:ROWS])
    masked_answers.mask_reasons(newest_deliveries)
    return {
        "at": now(),
        "receipts": [(receipt, state.of_receipt(receipt)) for receipt in receipts.order_by("-id")[:ROWS]],
        "deliveries": [(delivery, state.of_request(delivery)) for delivery in newest_deliveries],
    }
