"""``GET /metrics``, for callers with METRICS_TOKEN; 404 while that setting is empty."""

import hmac

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from lytics_sync.metrics.collector import registry


def metrics(request: HttpRequest) -> HttpResponse:
    """All web processes give the same numbers, so it is enough to scrape one address."""
    if not settings.METRICS_TOKEN:
        return HttpResponse("METRICS_TOKEN is not set.\n", status=404, content_type="text/plain")
    if not _has_token(request):
        words = "Send METRICS_TOKEN as a bearer token.\n"
        return HttpResponse(words, status=401, content_type="text/plain", headers={"WWW-Authenticate": "Bearer"})
    return HttpResponse(
        generate_latest(registry), content_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"}
    )


def _has_token(request: HttpRequest) -> bool:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    given, wanted = token.strip().encode(), settings.METRICS_TOKEN.encode()
    return hmac.compare_digest(given, wanted) and scheme.lower() == "bearer"
