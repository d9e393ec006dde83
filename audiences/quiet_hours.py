"""Hours in which only bad troubles are notified: ``ALERT_QUIET_HOURS``, such as ``22:00-07:00 Europe/Berlin``."""

import re
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

_FORM = re.compile(r"(\d{1,2}:\d\d)-(\d{1,2}:\d\d)(?:\s+(\S+))?")


def end_of(setting: str, at: datetime) -> datetime | None:
    """The end of the quiet hours around ``at``; None outside of them. Raises ``ValueError`` for a wrong setting."""
    if not setting.strip():
        return None
    starts, ends, zone = _read(setting)
    today = at.astimezone(zone).date()
    for day in (today - timedelta(days=1), today):
        # Compared in UTC: between two local times of one zone, Python takes an hour that a change of the clocks repeats
        # for one hour.
        begin = datetime.combine(day, starts, zone).astimezone(UTC)
        end = datetime.combine(day if ends > starts else day + timedelta(days=1), ends, zone).astimezone(UTC)
        if begin <= at < end:
            return end
    return None


def _read(setting: str) -> tuple[time, time, ZoneInfo]:
    found = _FORM.fullmatch(setting.strip())
    if found is None:
        raise ValueError("it has the form 22:00-07:00 Europe/Berlin")
    starts, ends = (datetime.strptime(part, "%H:%M").time() for part in found.group(1, 2))  # noqa: DTZ007 — no date
    try:
        return starts, ends, ZoneInfo(found[3] or "UTC")
    except (KeyError, OSError) as error:
        raise ValueError(f"there is no time zone {found[3]}") from error
