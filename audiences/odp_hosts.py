"""The ODP hosts that an install may use. Without this limit, an operator could make this server send requests to any
machine it reaches and read the response on a page (server-side request forgery).
"""

import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

from django.conf import settings

from odp.regions import HOSTS

LOCAL = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "sandbox")  # noqa: S104


def is_local(url: str) -> bool:
    return urlsplit(url).hostname in LOCAL


def problem_of(host: str) -> str:
    """Why an entered ODP host is rejected; empty when it is valid."""
    if not host:
        return ""
    try:
        parts = urlsplit(host)
        parts.port  # noqa: B018 — reading it is what finds a wrong one
    except ValueError:
        return "This is no address of a host."
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "An ODP host starts with https://."
    # An empty query or fragment too: a path put behind it would be part of that.
    if parts.username is not None or parts.path.strip("/") or "?" in host or "#" in host:
        return "An ODP host is scheme, name and port, with nothing behind: https://api.example.com"
    if is_allowed(parts.hostname):
        if parts.scheme == "http" and parts.hostname not in LOCAL:
            return "An ODP host starts with https://: over http the API key would be readable on its way."
        return ""
    return f"{parts.hostname} is none of ODP's own hosts, and ALLOWED_ODP_HOSTS does not name it."


def is_allowed(name: str) -> bool:
    known = {urlsplit(host).hostname for host in HOSTS.values()} | set(settings.ALLOWED_ODP_HOSTS)
    return name in known or (is_local(settings.PUBLIC_URL) and not _is_link_local(name))


def _is_link_local(name: str) -> bool:
    """Whether clouds serve a machine's credentials at the host: it is link-local, or Google's metadata server."""
    try:
        address = ip_address(name.partition("%")[0])
    except ValueError:
        # Other spellings of an address, such as one number, are resolved by the C library alone.
        try:
            address = ip_address(socket.inet_aton(name))
        except (OSError, UnicodeError):
            return name.rstrip(".") == "metadata.google.internal"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_link_local


def problem_of_key(key: str) -> str:
    """A key goes into a header line, so nothing may be in it that could end the line."""
    return (
        ""
        if key.isascii() and key.isprintable() and " " not in key
        else "An API key has only ASCII characters, and no blanks in it."
    )
