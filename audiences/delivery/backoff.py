"""The brake of an install: until when nothing goes to its ODP account, and why. The only writer of those columns.

The row is the retry state: it outlives workers and brokers, and people can read it. Nobody's events are blamed for
a server that is down, so a brake parks nothing and blocks nothing.
"""

import random

import structlog
from django.conf import settings
from django.db import connection

from audiences.models import Install
from odp.outcomes import Answer

# How the reason begins when the failure is this service's own and not ODP's.
UNEXPECTED = "Unexpected error in delivery: "

log = structlog.get_logger(__name__)

# Requests that were under way together fail together; only the first of them raises the count of failures. The
# others started when the count was lower; by the clock alone they couldn't be told from a later try, because a pause
# with full jitter may be over before they fail.
_APPLY = """
UPDATE audiences_install SET
    brake_failures = brake_failures + CASE WHEN brake_failures IN (0, %(failures)s) THEN 1 ELSE 0 END,
    brake_since_at = coalesce(brake_since_at, clock_timestamp()),
    brake_until_at = greatest(brake_until_at, clock_timestamp() + make_interval(secs => %(seconds)s)),
    brake_reason = %(reason)s
WHERE id = %(install)s
RETURNING brake_failures
"""


def apply(install: Install, answer: Answer) -> None:
    """Hold the install back after an answer that says nothing about its events."""
    seconds = pause_seconds(failures=install.brake_failures, answer=answer)
    with connection.cursor() as cursor:
        cursor.execute(
            _APPLY,
            {
                "seconds": seconds,
                "reason": answer.reason,
                "install": install.pk,
                "failures": install.brake_failures,
            },
        )
        row = cursor.fetchone()
    if row and (row[0] == 1 or answer.slow_probe):
        log.warning("braked", install=install.name, seconds=round(seconds, 1), reason=answer.reason)


def pause_seconds(*, failures: int, answer: Answer) -> float:
    """How long to wait: slowly for what a person has to mend, else backoff with full jitter; never less than asked."""
    if answer.slow_probe:
        return max(settings.PROBE_SECONDS, answer.retry_after or 0.0)
    longest = min(settings.BRAKE_LONGEST_SECONDS, settings.BRAKE_FIRST_SECONDS * 2.0 ** min(failures, 30))
    return max(random.uniform(0, longest), answer.retry_after or 0.0)  # noqa: S311 — spreading load, not secrets


def release(install: Install) -> None:
    """Go on at once: ODP took a request, or a person says so."""
    released = Install.objects.filter(pk=install.pk, brake_failures__gt=0).update(
        brake_failures=0, brake_since_at=None, brake_until_at=None, brake_reason=""
    )
    if released:
        log.info("brake released", install=install.name)


def learn_batch_size(install: Install, size: int) -> None:
    """Remember that ODP takes no more than ``size`` items of ours in one request."""
    Install.objects.filter(pk=install.pk).update(learned_batch_size=max(1, size))
    log.warning("ODP takes smaller requests only", install=install.name, items=size)


def forget_batch_size(install: Install) -> bool:
    """Let full requests be tried again. False when nothing smaller had been learned."""
    learned = Install.objects.filter(pk=install.pk, learned_batch_size__isnull=False)
    return bool(learned.update(learned_batch_size=None))
