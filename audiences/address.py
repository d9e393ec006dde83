"""The IP address of a caller: the connection's peer or, behind trusted proxies, the address in X-Forwarded-For."""

from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

from django.conf import settings
from django.http import HttpRequest
from rest_framework.request import Request


def of(request: HttpRequest | Request) -> str | None:
    """The caller's address in a form that PostgreSQL accepts; None behind a Unix socket.

    Each trusted proxy appends the address of its client to ``X-Forwarded-For``. So only the last entries are true, one
    for each trusted proxy; earlier entries can be forged by the client and are ignored.
    """
    nearest: str = request.META.get("REMOTE_ADDR", "")
    proxies: int = settings.TRUSTED_PROXIES if settings.BEHIND_PROXY else 0
    if proxies > 0:
        entries = [entry.strip() for entry in request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")]
        return _known(entries[-min(proxies, len(entries))]) or _known(nearest)
    return _known(nearest)


def neighbourhood(source: str | None) -> str | None:
    """The address under which a caller is counted: for IPv6 the first one of its /64, of which it may use each."""
    known = ip_address(source) if source else None
    if isinstance(known, IPv6Address):
        return str(known.ipv4_mapped or ip_network((int(known), 64), strict=False).network_address)
    return source


@lru_cache(256)
def _known(text: str) -> str | None:
    for candidate in (text, _without_port(text)):
        try:
            # Without its zone, which only has a meaning on one machine. PostgreSQL rejects it.
            return str(ip_address(candidate)).partition("%")[0]
        except ValueError:
            continue
    return None


def _without_port(text: str) -> str:
    """Some proxies write ``192.0.2.7:51234`` or ``[2001:db8::7]:51234``."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0]
