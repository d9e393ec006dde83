"""Limits on wrong passwords: per account and address, and per address over all accounts."""

from typing import Any

from axes.attempts import get_cool_off_threshold
from axes.handlers.database import AxesDatabaseHandler
from axes.helpers import get_failure_limit
from axes.models import AccessAttempt
from django.conf import settings
from django.db.models import Sum
from django.http import HttpRequest

from audiences import address


def source(request: HttpRequest) -> str | None:
    """The address under which a login is counted: the caller's, or for IPv6 the first one of its /64."""
    return address.neighbourhood(address.of(request))


class Limits(AxesDatabaseHandler):  # type: ignore[misc] # axes has no types
    """django-axes has one limit for everything it counts. The limit per address has to be higher: offices share one."""

    def get_failures(self, request: HttpRequest, credentials: dict[str, Any] | None = None) -> int:
        """The number that axes compares with its limit: at least that limit, if the address has reached its own."""
        failures: int = super().get_failures(request, credentials)
        limit: int = get_failure_limit(request, credentials)
        return max(failures, limit) if _address_is_over_limit(request) else failures


def _address_is_over_limit(request: HttpRequest) -> bool:
    limit: int = settings.LOGIN_ADDRESS_FAILURE_LIMIT
    where: str | None = request.axes_ip_address  # type: ignore[attr-defined] # axes sets it
    if not limit or where is None:  # behind a Unix socket every caller would share the missing address
        return False
    recent = AccessAttempt.objects.filter(ip_address=where, attempt_time__gte=get_cool_off_threshold(request))
    total: int | None = recent.aggregate(total=Sum("failures_since_start"))["total"]
    return total is not None and total >= limit
