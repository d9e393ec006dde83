"""Times as Lytics writes them: RFC 3339, up to nine digits of fraction, `Z` or an offset."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache

SECOND = 1_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def write(moment: int, *, offset_minutes: int = 0) -> str:
    """`moment` is nanoseconds since 1970."""
    seconds, fraction = divmod(moment, SECOND)
    # Lytics drops trailing zeros, and the whole fraction when it is zero.
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{_whole(seconds + offset_minutes * 60)}{digits}{_zone(offset_minutes)}"


@lru_cache(maxsize=4096)
def _whole(seconds: int) -> str:
    return (EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def _zone(minutes: int) -> str:
    if not minutes:
        return "Z"
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
