"""``Retry-After``: the wait that a server asks for."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# Seconds. The default cap of a Retry-After, so that a misconfigured gateway can't stop an install for a week.
LONGEST_RETRY_AFTER = 3600.0


def retry_after_seconds(
    header: str | None, *, longest: float = LONGEST_RETRY_AFTER, now: datetime | None = None
) -> float | None:
    """``Retry-After`` in seconds from now, from either of its two forms; None when absent or unreadable."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            moment = parsedate_to_datetime(header)
            # ``-0000`` and asctime have no time zone; HTTP dates are in UTC.
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            seconds = (moment - (now or datetime.now(UTC))).total_seconds()
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return min(max(seconds, 0.0), longest) if seconds == seconds else None
