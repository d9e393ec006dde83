"""The 503 page for when PostgreSQL is unreachable: plain words, and it reloads automatically."""

import sys
import time

import structlog
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template.loader import render_to_string
from django.views import defaults

from audiences import sessions

log = structlog.get_logger(__name__)

RELOAD_SECONDS = 5
# Seconds without such a response after which the next one counts as a new outage and is logged.
QUIET_SECONDS = 60.0

_logged_at = -QUIET_SECONDS


class DatabaseAway(HttpResponse):
    """Says that the database can't be reached, and why in ``words`` for the log."""

    def __init__(self, words: str) -> None:
        page = render_to_string("audiences/database_away.html", {"seconds": RELOAD_SECONDS})
        super().__init__(page, status=503, headers={"Retry-After": str(RELOAD_SECONDS), "Cache-Control": "no-store"})
        self.words = words
        # Django would log a traceback for each of them.
        self._has_been_logged = True


def server_error(request: HttpRequest) -> HttpResponseBase:
    """Django's handler for an exception that no view has caught."""
    error = sys.exc_info()[1]
    if error is not None and sessions.is_away(error):
        return DatabaseAway(next(iter(str(error).splitlines()), ""))
    return defaults.server_error(request)


def note(response: DatabaseAway) -> None:
    """Log the outage once, for any number of pages."""
    global _logged_at
    before, _logged_at = _logged_at, time.monotonic()
    if _logged_at - before >= QUIET_SECONDS:
        log.error("PostgreSQL does not answer; pages are answered 503", error=response.words)
