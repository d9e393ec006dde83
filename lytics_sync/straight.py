"""Calls of Lytics and health checks go past what people with browsers need: sessions, accounts, messages."""

from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import ResolverMatch, resolve
from rest_framework.response import Response

from audiences.receiving.views import UnknownWebhookView, is_for_lytics

HEALTH = ("/health/live", "/health/ready", "/health/workers")

Handler = Callable[[HttpRequest], HttpResponseBase]


def straight_to_webhooks(get_response: Handler) -> Handler:
    """The rest of the middleware costs a tenth of the whole call. What a call needs of it is done here."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if request.path_info in HEALTH and request.method in ("GET", "HEAD"):
            # Before any middleware that asks for the Host: load balancers and kubelets call by address.
            health: HttpResponseBase = resolve(request.path_info).func(request)
            return health
        if not is_for_lytics(request):
            return get_response(request)
        request.get_host()  # raises for a host that ALLOWED_HOSTS doesn't name
        match = request.resolver_match = _match(request.path_info)
        response: HttpResponseBase = match.func(request, *match.args, **match.kwargs)
        if isinstance(response, Response):
            response.render()
            response.headers["Content-Length"] = str(len(response.content))
        return response

    return middleware


_unknown = UnknownWebhookView.as_view()


def _match(path: str) -> ResolverMatch:
    """A page of the admin, or of health, is none of Lytics' either."""
    return resolve(path) if path.startswith("/webhooks/") else ResolverMatch(_unknown, (), {})
