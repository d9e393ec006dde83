"""Health checks and metrics answer for every Host, and requests that may come from Lytics have URLs without a 404."""

from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from audiences.receiving.views import is_for_lytics
from lytics_sync import health
from lytics_sync.metrics.view import metrics

HEALTH = {"/health/live": health.live, "/health/ready": health.ready, "/health/workers": health.workers}

# Load balancers, kubelets and Prometheus call by address, which ALLOWED_HOSTS lacks.
FOR_EVERY_HOST = {**HEALTH, "/metrics": metrics}

CALL_URLS = "lytics_sync.webhook_urls"

Handler = Callable[[HttpRequest], HttpResponseBase]


def is_call(request: HttpRequest) -> bool:
    """Whether ``routing`` took the request for a call of Lytics."""
    return getattr(request, "urlconf", None) == CALL_URLS


def routing(get_response: Handler) -> Handler:
    def middleware(request: HttpRequest) -> HttpResponseBase:
        if request.path_info in FOR_EVERY_HOST and request.method in ("GET", "HEAD"):
            # Before CommonMiddleware, which rejects hosts outside ALLOWED_HOSTS.
            return FOR_EVERY_HOST[request.path_info](request)
        if is_for_lytics(request):
            request.urlconf = CALL_URLS
        return get_response(request)

    return middleware
