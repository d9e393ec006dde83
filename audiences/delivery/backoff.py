"""The backoff of an install: until when nothing is sent to its ODP account, and why. The only writer of those columns.

The row is the retry state: it survives restarts of workers and brokers, and people can read it. A server that is down
is not the fault of any event, so a backoff parks nothing and blocks nothing.
"""

import random
from datetime import timedelta
from typing import NamedTuple

import structlog
from django.conf import settings
from django.db.models.functions import Now

from audiences import sql
from audiences.models import Install
from odp.outcomes import Answer

# The reason begins with this text when the error is one of this service and not of ODP.
UNEXPECTED = "Unexpected error in delivery: "

log = structlog.get_logger(__name__)


class BackedOff(NamedTuple):
    failures: int


_BACK_OFF = sql.beside(__file__).query("back_off", BackedOff._make)


def apply(install: Install, answer: Answer) -> None:
    """Start or prolong the backoff of the install after a response that says nothing about its events."""
    seconds = pause_seconds(failures=install.backoff_failures, answer=answer)
    backed_off = _BACK_OFF.run(
        install=install.pk, failures=install.backoff_failures, seconds=seconds, reason=answer.reason
    ).one()
    if backed_off and (backed_off.failures == 1 or answer.fixed_backoff):
        log.warning("install on hold", install=install.name, seconds=round(seconds, 1), reason=answer.reason)


def pause_seconds(*, failures: int, answer: Answer) -> float:
    """BACKOFF_FIXED_SECONDS if a person has to act, else exponential with full jitter; at least ODP's Retry-After."""
    if answer.fixed_backoff:
        return max(settings.BACKOFF_FIXED_SECONDS, answer.retry_after or 0.0)
    longest = min(settings.BACKOFF_LONGEST_SECONDS, settings.BACKOFF_FIRST_SECONDS * 2.0 ** min(failures, 30))
    return max(random.uniform(0, longest), answer.retry_after or 0.0)  # noqa: S311 — spreading load, not secrets


def longest_wait() -> timedelta:
    """The longest wait or lease that this service sets."""
    return timedelta(
        seconds=max(
            settings.ODP_LONGEST_RETRY_AFTER_SECONDS,
            settings.BACKOFF_LONGEST_SECONDS,
            settings.BACKOFF_FIXED_SECONDS,
            settings.LEASE_SECONDS,
        )
    )


def correct_times(furthest: timedelta) -> int:
    """End backoffs that lie further ahead (``clock.py``). Returns their number."""
    return Install.objects.filter(backoff_until_at__gt=Now() + furthest).update(backoff_until_at=Now())


def release(install: Install) -> None:
    """End the backoff: ODP accepted a request, or a person says so."""
    released = Install.objects.filter(pk=install.pk, backoff_failures__gt=0).update(
        backoff_failures=0, backoff_since_at=None, backoff_until_at=None, backoff_reason=""
    )
    if released:
        log.info("install resumed", install=install.name)


def learn_batch_size(install: Install, size: int) -> None:
    """Remember that ODP accepts at most ``size`` items in one request of this install."""
    Install.objects.filter(pk=install.pk).update(learned_batch_size=max(1, size))
    log.warning("ODP takes smaller requests only", install=install.name, items=size)


def forget_batch_size(install: Install) -> bool:
    """Try full requests again. False when no smaller size had been learned."""
    learned = Install.objects.filter(pk=install.pk, learned_batch_size__isnull=False)
    return bool(learned.update(learned_batch_size=None))
