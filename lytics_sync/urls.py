"""Where requests go."""

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import path, re_path

from audiences.admin import customer
from audiences.receiving.views import UnknownWebhookView, WebhookView, bad_request
from lytics_sync import database_away, health


def front(request: HttpRequest) -> HttpResponse:
    return redirect("admin:index")


urlpatterns = [
    path("", front),
    path("admin/find-customer/", admin.site.admin_view(customer.find), name="find_customer"),
    path("admin/", admin.site.urls),
    path("health/live", health.live),
    path("health/ready", health.ready),
    path("health/workers", health.workers),
    # Lytics never tries again after a 404, so nothing below /webhooks/ answers one.
    re_path(r"^webhooks/lytics/(?P<public_id>[0-9a-zA-Z_-]{1,64})/?$", WebhookView.as_view(), name="webhook"),
    re_path(r"^(?:/*)webhooks(?:/|$)", UnknownWebhookView.as_view()),
]
# Also for a Host that ALLOWED_HOSTS rejects: Django would answer 400 before any view, and Lytics would drop the batch.
handler400 = bad_request
handler500 = database_away.server_error
