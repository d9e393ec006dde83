"""Calls with a wrong token: counted for the front page, and rate limited per address.

See docs/decisions/0028-rejected-calls.md: a call with a valid token is accepted from any address.
"""

import threading
import time

import structlog
from django.conf import settings
from rest_framework.exceptions import APIException, AuthenticationFailed, Throttled
from rest_framework.request import Request

from audiences import address
from audiences.models import Install
from audiences.receiving import rejected_calls

log = structlog.get_logger(__name__)

# Addresses counted separately within a minute, per process. Further addresses share one count.
ADDRESSES = 10_000
OTHERS = "others"


class _Minute:
    """Bad tokens by address in the minute that is under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = -1
        self._counts: dict[str, int] = {}

    def count(self, where: str) -> int:
        with self._lock:
            if self._number != _minute():
                self._number, self._counts = _minute(), {}
            if where not in self._counts and len(self._counts) >= ADDRESSES:
                where = OTHERS
            self._counts[where] = self._counts.get(where, 0) + 1
            return self._counts[where]


_this_minute = _Minute()


def _minute() -> int:
    return int(time.monotonic() // 60)


def refusal(request: Request, install: Install | None, *, words: str) -> APIException:
    """The response to a caller without a valid token. ``install`` is None when no install has the URL."""
    source = address.of(request)
    rejected_calls.note(install.public_id if install else rejected_calls.UNKNOWN, source)
    allowed: int = settings.BAD_TOKENS_PER_MINUTE
    count = _this_minute.count(address.neighbourhood(source) or "")
    if not allowed or count <= allowed:
        return AuthenticationFailed(words)
    if count == allowed + 1:
        log.warning("too many wrong tokens", source=source, allowed_per_minute=allowed)
    return Throttled(wait=60 - time.monotonic() % 60, detail="Too many calls with a wrong token.")
