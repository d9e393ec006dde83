"""The certificate of the public address: when it ends, and whether it is trusted.

A scheduled task connects to the address and stores the result in Redis, because a page must not wait for a connection.
The doctor connects itself.
"""

import json
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import urlsplit

import redis
import structlog
from django.conf import settings
from django.utils.timezone import now

from audiences.redis_client import client
from odp import client as http

log = structlog.get_logger(__name__)

# Seconds for the connection.
SECONDS = 5.0
# The time before the end of the certificate from which its state is a warning, and bad; and the same as parts of its
# lifetime, if that is shorter: a certificate of 45 or 6 days is usually renewed when a third of its lifetime is left.
WARNING, BAD = timedelta(days=21), timedelta(days=7)
WARNING_PART, BAD_PART = 4, 12
KEY = "lytics-sync:certificate"
# The age after which a result is dropped, when the address can't be reached from here any more.
KEPT = timedelta(days=2)
RENEW = "Renew the certificate, and find out why it wasn't renewed automatically."
REPLACE = "Serve a certificate for this host name from a public authority, with its intermediate certificates."
# In OpenSSL's words for a certificate that was trusted until its end.
_EXPIRED = "has expired"


@dataclass(frozen=True)
class Certificate:
    """A certificate. ``problem`` is the reason why it isn't trusted; its end is unknown then."""

    ends_at: datetime | None = None
    problem: str = ""
    # None for a result that an older version has stored.
    begins_at: datetime | None = None

    @property
    def word(self) -> Literal["good", "warning", "bad"]:
        if self.ends_at is None:
            return "bad"
        left, lifetime = self.ends_at - now(), self.ends_at - (self.begins_at or datetime.min.replace(tzinfo=UTC))
        if left < min(BAD, lifetime / BAD_PART):
            return "bad"
        return "warning" if left < min(WARNING, lifetime / WARNING_PART) else "good"

    @property
    def words(self) -> str:
        if self.ends_at is None:
            return f"The certificate is not trusted: {self.problem.rstrip('.')}."
        if self.ends_at < now():  # while nothing newer can be read
            return f"The certificate ended on {self.ends_at:%Y-%m-%d}."
        return f"The certificate ends on {self.ends_at:%Y-%m-%d}, in {(self.ends_at - now()).days:,} days."

    @property
    def cure(self) -> str:
        return RENEW if self.ends_at or _EXPIRED in self.problem else REPLACE


def ask(*, seconds: float) -> Certificate | None:
    """The certificate that PUBLIC_URL shows; None when it isn't https. Raises ``OSError`` when it can't be reached."""
    parts = urlsplit(settings.PUBLIC_URL)
    if parts.scheme != "https":
        return None
    context = ssl.create_default_context(cafile=http.TRUSTED if isinstance(http.TRUSTED, str) else None)
    host, port = parts.hostname or "", parts.port or 443
    try:
        with (
            socket.create_connection((host, port), timeout=max(0.1, seconds)) as connection,
            context.wrap_socket(connection, server_hostname=host) as secured,
        ):
            shown = secured.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return Certificate(problem=error.verify_message)
    begins_at, ends_at = (
        datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown[name])), UTC) for name in ("notBefore", "notAfter")
    )
    return Certificate(ends_at, begins_at=begins_at)


def look() -> None:
    """Store the certificate of the address. If this process can't reach the address, the stored result stays."""
    try:
        found = ask(seconds=SECONDS)
    except OSError as error:
        log.info("the certificate of the public address can't be read from here", error=type(error).__name__)
        return
    if found is None:
        client().delete(KEY)
        return
    times = {
        name: at.isoformat() if at else None
        for name, at in (("begins_at", found.begins_at), ("ends_at", found.ends_at))
    }
    stored = json.dumps({"url": settings.PUBLIC_URL, **times, "problem": found.problem})
    client().set(KEY, stored, ex=KEPT)


def known() -> Certificate | None:
    """The newest result for this PUBLIC_URL; None when there is none, or Redis doesn't answer."""
    try:
        stored = client().get(KEY)
    except redis.RedisError:
        return None
    found = json.loads(stored) if stored else {}
    if found.get("url") != settings.PUBLIC_URL:
        return None
    begins_at, ends_at = (
        datetime.fromisoformat(found[name]) if found.get(name) else None for name in ("begins_at", "ends_at")
    )
    return Certificate(ends_at, found["problem"], begins_at)
