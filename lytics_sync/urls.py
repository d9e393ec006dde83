"""Where requests go."""

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import path

from audiences.admin import customer, search
from audiences.receiving.views import bad_request
from lytics_sync import database_away, health, webhook_urls
from lytics_sync.metrics.view import metrics


def front(request: HttpRequest) -> HttpResponse:
    return redirect("admin:index")


urlpatterns = [
    path("", front),
    path("admin/find-customer/", admin.site.admin_view(customer.find), name="find_customer"),
    path("admin/search-everything/", admin.site.admin_view(search.find), name="search_everything"),
    path("admin/", admin.site.urls),
    path("health/live", health.live),
    path("health/ready", health.ready),
    path("health/workers", health.workers),
    path("metrics", metrics),
    webhook_urls.webhook,  # for reverse(); requests of Lytics are resolved by webhook_urls alone
]
# Also for a Host that ALLOWED_HOSTS rejects: Django would answer 400 before any view, and Lytics would drop the batch.
handler400 = bad_request
handler500 = database_away.server_error
