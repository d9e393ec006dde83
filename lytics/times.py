"""RFC 3339 times with up to nine fraction digits, as whole nanoseconds since 1970-01-01T00:00:00Z.

Python's ``datetime`` stops at microseconds; two transitions of one customer inside the same microsecond would
then tie, and a tie is decided for the exit.
"""

import re
from datetime import UTC, datetime, timedelta

SECOND = 1_000_000_000
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 — naive on purpose: the offset is subtracted as a number
_LAYOUT = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:[.,](\d+))?\s*([Zz]|[+-][01]\d:?[0-5]\d|[+-]2[0-3]:?[0-5]\d)?", re.ASCII
)
# What a Go program writes for a time that was never set.
_NEVER = "0001-01-01T00:00:00Z"
# What a signed 64-bit column holds; beyond it (before 1678, after 2262) a time is taken as unreadable.
_LIMIT = 2**63


def nanoseconds(text: str) -> int:
    """``text`` as nanoseconds since the epoch; further fraction digits are cut, no offset means UTC.

    Raises ``ValueError`` when it is no such time.
    """
    match = _LAYOUT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not an RFC 3339 time: {text[:40]!r}")
    date, clock, fraction, offset = match.groups()
    since = datetime.fromisoformat(f"{date}T{clock}") - _EPOCH
    seconds = since.days * 86_400 + since.seconds - _offset_seconds(offset)
    value = seconds * SECOND + int((fraction or "0")[:9].ljust(9, "0"))
    if not -_LIMIT <= value < _LIMIT:
        raise ValueError(f"out of range: {text[:40]!r}")
    return value


def _offset_seconds(offset: str | None) -> int:
    if offset is None or offset in "Zz":
        return 0
    digits = offset[1:].replace(":", "")
    seconds = int(digits[:2]) * 3600 + int(digits[2:]) * 60
    return -seconds if offset[0] == "-" else seconds


def is_missing(text: str | None) -> bool:
    """Whether Lytics said nothing: absent, blank, or the zero time of its language."""
    return text is None or not text.strip() or text.strip() == _NEVER


def moment(value: int) -> datetime:
    """``value`` nanoseconds since the epoch as a datetime, cut to microseconds, for people to read."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value // 1000)


def from_moment(at: datetime) -> int:
    """An aware datetime as nanoseconds since the epoch."""
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * SECOND + since.microseconds * 1000
