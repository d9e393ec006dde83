"""Times as whole nanoseconds since 1970-01-01T00:00:00Z: RFC 3339 with up to nine fraction digits, or a number.

Python's ``datetime`` stops at microseconds; two transitions of one customer inside the same microsecond would
then tie, and a tie is decided for the exit.
"""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache

SECOND = 1_000_000_000
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 — naive on purpose: the offset is subtracted as a number
_HOUR = re.compile(r"\d{4}-\d\d-\d\d[Tt ](?:[01]\d|2[0-3])", re.ASCII)
# Go prints the zone's name behind the offset, or the offset again, and sometimes the reading of its monotonic clock.
_UTC = r"[Zz]|(?:[+-]00:?00\s*)?(?:UTC|GMT)"
_NAME = r"(?:\s*(?!UTC|GMT)[A-Z]{3,5}|\s+[+-]\d\d(?:\d\d)?)?"
_CLOCK = r"(?:\s+m=[+-]\d+\.\d+)?"
_LAYOUT = re.compile(
    rf"({_HOUR.pattern}:\d\d:\d\d)(?:[.,](\d+))?"
    rf"\s*(?:(?:{_UTC}|([+-](?:[01]\d|2[0-3]):?[0-5]\d){_NAME}){_CLOCK})?",
    re.ASCII,
)
# Go's zero time, as a date or as a number in seconds to nanoseconds; a date of zeros, as databases write it; and zero.
_NEVER = re.compile(
    r"(?:0001-01-01|0000-0[01]-0[01])[Tt ]00:00:00(?:[.,]0+)?"
    rf"\s*(?:(?:{_UTC}|[+-]00:?00{_NAME}){_CLOCK})?"
    r"|-62135596800(?:000){0,3}(?:\.0+)?|-?0+(?:\.0+)?"
)
# The range of a signed 64-bit column, 1677 to 2262. A time outside of it becomes its first or last moment.
_LIMIT = 2**63
# A tolerance that accepts every time.
NO_LIMIT = _LIMIT
# The beginning of 2000, long before Lytics. Software writes an earlier time for no time: the beginning of 1970 in some
# time zone, or of 1900.
EARLIEST = 946_684_800 * SECOND
# Units of a number since 1970: the smallest value, and the nanoseconds per unit. Each unit covers 1973 to 5138, so the
# ranges don't overlap. Another number, or a time before 2000, is a date written as a number, or a mistake.
_LARGEST = 10**20
_UNITS = ((10**17, 1), (10**14, 1_000), (10**11, 1_000_000), (10**8, SECOND))
_NUMBER = re.compile(r"\d{1,30}(?:\.\d{1,30})?(?:[eE][+]?\d{1,2})?", re.ASCII)


def quoted(text: str) -> str:
    """Quote an invalid time or event for the detail of a parked item: shortened, and never an e-mail address."""
    return "a text with an @" if "@" in text else repr(text[:40])


def nanoseconds(text: str) -> int:
    """``text`` as nanoseconds since the epoch. Digits after the ninth are dropped; without an offset it is UTC.

    Raises ``ValueError`` if it isn't an RFC 3339 time.
    """
    # Fast path for the layout of Lytics: the pattern below takes longer than the rest of a message.
    in_hour = _IN_HOUR.get(text[13:19])
    if in_hour is not None and text[-1] == "Z" and (hour := _hour(text[:13])) is not None:
        fraction = text[20:-1]
        if text[19] == "." and fraction.isdecimal() and fraction.isascii():
            return hour + in_hour + int(fraction if len(fraction) == 9 else fraction[:9].ljust(9, "0"))
        if len(text) == 20:
            return hour + in_hour
    match = _LAYOUT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not an RFC 3339 time: {quoted(text)}")
    whole, fraction, offset = match.groups(default="")
    try:
        seconds = _seconds(whole) - _offset_seconds(offset)
    except ValueError:
        raise ValueError(f"not an RFC 3339 time: {quoted(text)}") from None
    if whole.endswith(":60") and seconds % 86_400:
        raise ValueError(f"a leap second that is not the last second of a day: {quoted(text)}")
    return _within_column(seconds * SECOND + int(fraction[:9].ljust(9, "0")))


def _within_column(value: int) -> int:
    return max(-_LIMIT, min(value, _LIMIT - 1))


def read(value: str | int | float) -> int:
    """A time in any supported form, as nanoseconds since the epoch.

    A number, or a number as text, counts seconds, milliseconds, microseconds or nanoseconds since 1970; its size
    decides the unit. Raises ``ValueError`` if it isn't a time.
    """
    text = value.strip() if isinstance(value, str) else repr(value)
    if _NUMBER.fullmatch(text) is None:
        return nanoseconds(text)
    number = Decimal(text)
    for least, unit in _UNITS:
        if least <= number < _LARGEST:
            nanoseconds_since_1970 = int(number * unit)
            if nanoseconds_since_1970 >= EARLIEST:
                return _within_column(nanoseconds_since_1970)
            break
    raise ValueError(f"no time since 2000 in seconds, milli-, micro- or nanoseconds: {text[:40]!r}")


# Minutes and seconds as text, to nanoseconds since the beginning of the hour.
_IN_HOUR = {f":{at // 60:02}:{at % 60:02}": at * SECOND for at in range(3600)}


@lru_cache(maxsize=1024)
def _hour(text: str) -> int | None:
    """The beginning of an hour in nanoseconds; None if ``text`` is no hour, or a part of it is out of range."""
    if _HOUR.fullmatch(text) is None:
        return None
    try:
        begins = _seconds(f"{text}:00:00") * SECOND
    except ValueError:
        return None
    return begins if abs(begins) < _LIMIT - 3600 * SECOND else None


def _seconds(whole: str) -> int:
    """Seconds since the epoch, for a date and time without fraction. A leap second is the next second."""
    is_leap = whole.endswith(":60")
    since = datetime.fromisoformat((whole[:-2] + "59" if is_leap else whole).upper()) - _EPOCH
    return since.days * 86_400 + since.seconds + is_leap


def _offset_seconds(offset: str) -> int:
    if not offset:
        return 0
    digits = offset[1:].replace(":", "")
    seconds = int(digits[:2]) * 3600 + int(digits[2:]) * 60
    return -seconds if offset[0] == "-" else seconds


def is_missing(value: str | int | float | None) -> bool:
    """Whether the time is absent, blank, zero, or Go's zero time."""
    if not value:
        return True
    text = value.strip() if isinstance(value, str) else repr(value)
    return not text or _NEVER.fullmatch(text) is not None


def moment(value: int) -> datetime:
    """``value`` nanoseconds since the epoch as a datetime, cut to microseconds, for people to read."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value // 1000)


def from_moment(at: datetime) -> int:
    """An aware datetime as nanoseconds since the epoch."""
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * SECOND + since.microseconds * 1000


def text(value: int) -> str:
    """``value`` nanoseconds since the epoch as Lytics would write it."""
    return f"{moment(value):%Y-%m-%dT%H:%M:%S}.{value % SECOND:09d}Z"
