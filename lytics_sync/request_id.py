"""One id per request, from the response header to every log line that the request causes."""

import random
import re
from collections.abc import Callable

import structlog
from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase

HEADER = "X-Request-ID"
# What an id from a proxy may look like; anything else could break a log line.
_PLAIN = re.compile(r"[A-Za-z0-9._:-]{1,64}")

Handler = Callable[[HttpRequest], HttpResponseBase]


def request_id(get_response: Handler) -> Handler:
    """Put ``request_id`` on each log line and ``X-Request-ID`` on each response; a proxy's own id is kept."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        given = request.headers.get(HEADER, "") if settings.BEHIND_PROXY else ""
        name = given if _PLAIN.fullmatch(given) else f"{random.getrandbits(128):032x}"
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=name)
        response = get_response(request)
        response.headers[HEADER] = name
        return response

    return middleware
