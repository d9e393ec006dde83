"""Why all calls of an install are answered 503 for some time."""

from django.conf import settings

from audiences.models import Install
from audiences.receiving import backlog, disk_usage

SWITCHED_OFF = "This install is switched off."
TOO_MANY_EVENTS = "Too many events wait for ODP."
DATABASE_TOO_LARGE = "The database is as large as it may get."
ALL = (SWITCHED_OFF, TOO_MANY_EVENTS, DATABASE_TOO_LARGE)


def of(install: Install, *, waiting: int | None = None) -> str:
    """Why no call of this install is stored now; empty when calls are. ``waiting`` saves a query (``backlog.of``)."""
    if not install.enabled:
        return SWITCHED_OFF
    if backlog.is_too_high(install.pk) if waiting is None else waiting > settings.BACKLOG_HIGH_WATER:
        return TOO_MANY_EVENTS
    return DATABASE_TOO_LARGE if disk_usage.is_too_full() else ""


def in_words(install: Install, *, waiting: int | None = None) -> str:
    """The same for people who look at an install that is switched on."""
    reason = of(install, waiting=waiting)
    return f"Calls are answered 503, and Lytics retries later: {reason}" if reason else ""
