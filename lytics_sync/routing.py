"""Requests that need no session, account or page: health checks, metrics and the calls of Lytics.

They are answered here. The middleware that follows in the settings is for pages: a call has a token and no cookie.
"""

from collections.abc import Callable
from functools import lru_cache

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template.response import SimpleTemplateResponse
from django.urls import ResolverMatch, resolve

from audiences.receiving.views import is_for_lytics
from lytics_sync import health
from lytics_sync.metrics.view import metrics

HEALTH = {"/health/live": health.live, "/health/ready": health.ready, "/health/workers": health.workers}

# Load balancers, kubelets and Prometheus call by address, which ALLOWED_HOSTS lacks.
FOR_EVERY_HOST = {**HEALTH, "/metrics": metrics}

CALL_URLS = "lytics_sync.webhook_urls"

# The most paths whose view is remembered. Jobs use few; strangers may use any.
PATHS_AT_MOST = 256

Handler = Callable[[HttpRequest], HttpResponseBase]


def routing(get_response: Handler) -> Handler:
    def middleware(request: HttpRequest) -> HttpResponseBase:
        if request.path_info in FOR_EVERY_HOST and request.method in ("GET", "HEAD"):
            return FOR_EVERY_HOST[request.path_info](request)
        return answer_call(request) if is_for_lytics(request) else get_response(request)

    return middleware


@lru_cache(PATHS_AT_MOST)
def _resolved(path: str) -> ResolverMatch:
    """The view of a call. Searching it among Django's patterns takes a twentieth of the CPU of a call."""
    return resolve(path, urlconf=CALL_URLS)


def answer_call(request: HttpRequest) -> HttpResponse:
    """Raises ``DisallowedHost`` for a host outside ALLOWED_HOSTS, which ``views.bad_request`` answers."""
    request.get_host()
    match = _resolved(request.path_info)
    response: HttpResponse = match.func(request, *match.args, **match.kwargs)
    if isinstance(response, SimpleTemplateResponse):
        response.render()
    # Without it the web server would send the body in chunks.
    response.headers.setdefault("Content-Length", str(len(response.content)))
    return response
