"""PostgreSQL's clock that was ahead and was set back: the waits and leases written meanwhile would last too long.

A wait is ended, and a lease is shortened to ``LEASE_SECONDS``, so that a request under way still ends before its lease.
Claims don't check for such times themselves: each claim would pay for it.
"""

import structlog

from audiences.delivery import backoff, holds, provision

log = structlog.get_logger(__name__)


def correct() -> int:
    """End the waits and shorten the leases that lie further ahead than any that this service sets. Returns how many."""
    furthest = backoff.longest_wait()
    corrected = backoff.correct_times(furthest) + holds.correct_times(furthest) + provision.correct_times(furthest)
    if corrected:
        log.warning("waits of a clock that was ahead are over", waits=corrected)
    return corrected
