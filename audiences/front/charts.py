"""The charts of the front page and of an install as SVG: they need no script and don't flicker when they refresh.

The SVG holds only shapes and is stretched to the available width; the texts around it are HTML and keep their size.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.db.models import Exists
from django.http import HttpRequest
from django.utils.timezone import now

from audiences import sql
from audiences.admin.pages import number
from audiences.models import Install, Minute, Receipt

# By the hours shown: the minutes of one point, and the minutes between two labels of the time axis.
RANGES = {1: (1, 15), 6: (5, 60), 24: (15, 240)}
# Only for the chart of one install: the minutes of all installs would take a page too long to add up.
WEEK = {168: (120, 1440)}
USUAL = 6
# A minute is rolled up at most one minute after its end; newer minutes would look like a drop to zero.
NOT_YET = timedelta(minutes=1)
# The possible lines of the scale of delays, by milliseconds.
DELAYS = {
    10: "10 ms",
    100: "0.1 s",
    1_000: "1 s",
    10_000: "10 s",
    60_000: "1 min",
    600_000: "10 min",
    3_600_000: "1 h",
    36_000_000: "10 h",
    360_000_000: "100 h",
    3_600_000_000: "1,000 h",
}


class Counted(NamedTuple):
    """The stored figures of one point; the delays in milliseconds, None when nothing was sent."""

    at: datetime
    received: int
    parked: int
    delivered: int
    p50: float | None
    p99: float | None
    again: int


class Arrived(NamedTuple):
    """Delivered events of one point. ``is_earlier`` when they arrived before the chart begins."""

    at: datetime
    is_earlier: bool
    events: int


_SQL = sql.beside(__file__)
_POINTS = _SQL.query("points", Counted._make)
_ARRIVALS = _SQL.query("arrivals", Arrived._make)


@dataclass(frozen=True)
class Point:
    """One point of the charts: counts, and delays in milliseconds or None.

    ``delivered`` counts the events received in these minutes that have been delivered since, so it never exceeds
    ``received``. ``earlier`` counts events delivered in these minutes and received before the chart begins.
    """

    at: datetime
    minutes: int
    received: int = 0
    parked: int = 0
    delivered: int = 0
    p50: float | None = None
    p99: float | None = None
    again: int = 0
    earlier: int = 0


@dataclass(frozen=True)
class Line:
    """One line of a chart: ``path`` in hundredths of its height and width, with its key beside it."""

    name: str
    style: str
    text: str
    path: str


@dataclass(frozen=True)
class Chart:
    title: str
    unit: str
    summary: str
    lines: list[Line] = field(default_factory=list)
    heights: list[tuple[float, str]] = field(default_factory=list)
    times: list[tuple[float, str]] = field(default_factory=list)
    columns: list[tuple[float, float, str]] = field(default_factory=list)
    headings: Sequence[str] = ()
    rows: list[Sequence[str]] = field(default_factory=list)


def charts(install: Install | None, hours: int, points: list[Point]) -> dict[str, Any]:
    """The two charts, of all installs or of one, or the text shown instead."""
    shown: dict[str, Any] = {
        "charts": [],
        "install": install,
        "of_install": f"&install={install.public_id}" if install else "",
    }
    if any(any(_counts(point)) for point in points):
        return {**shown, "charts": [_throughput(points, hours), _delay(points, hours)]}
    return {**shown, "empty": _nothing(hours)}


def chosen_install(request: HttpRequest) -> Install | None:
    chosen = request.GET.get("install", "")
    return Install.objects.filter(public_id=chosen).first() if chosen.isalnum() else None


def chosen_hours(request: HttpRequest, install: Install | None) -> int:
    asked = request.GET.get("hours", "")
    return next((hours for hours, _ in ranges(install) if asked == str(hours)), USUAL)


def ranges(install: Install | None) -> list[tuple[int, str]]:
    """The hours that can be chosen, with their words. Deleted minutes would look like hours without events."""
    kept: int = settings.STATISTICS_KEEP_DAYS
    of_days = [hours for hours in WEEK if install and (kept <= 0 or 24 * kept >= hours)]
    return [*((hours, f"{hours} h") for hours in RANGES), *((hours, "7 days") for hours in of_days)]


def _nothing(hours: int) -> str:
    # Ordered by the key, so that the index is read. With exists(), PostgreSQL may scan the table.
    receipt = Receipt.objects.values_list("pk", Exists(Minute.objects.all())).first()
    if receipt is None:
        return "Nothing has come from Lytics yet. The charts begin with the first call."
    _, has_minutes = receipt
    if not has_minutes:
        return "The charts appear in two minutes. They need the beat process."
    period = f"{_hours(hours)} until {_end(now()):%H:%M} UTC"
    return f"Nothing was received or delivered in the {period}. Newer events appear in two minutes."


def _hours(hours: int) -> str:
    return "hour" if hours == 1 else "7 days" if hours in WEEK else f"{hours} hours"


def _clock(at: datetime, hours: int) -> str:
    """A time on the axis or in the table, with its day where the chart is longer than a day."""
    return f"{at:%H:%M}" if hours in RANGES else f"{at:%d %b}" if not at.hour else f"{at:%d %b %H:%M}"


def read(*, hours: int, install: Install | None = None, at: datetime | None = None) -> list[Point]:
    """The points of the last hours of one install or of all, oldest first. Points without events are included."""
    step = (RANGES | WEEK)[hours][0]
    end = _end(at or now())
    start = _floor(end - timedelta(hours=hours), step)
    asked = {"step": step, "start": start, "end": end, "install": install and install.pk}
    counted = {row.at: row for row in _POINTS.run(**asked).all()}
    arrivals = {(row.at, row.is_earlier): row.events for row in _ARRIVALS.run(**asked).all()}
    points = []
    while start < end:
        minutes = min(step, (end - start) // timedelta(minutes=1))
        point = Point(start, minutes)
        if row := counted.get(start):
            point = Point(minutes=minutes, **row._asdict())
        delivered = min(arrivals.get((start, False), 0), point.received)
        earlier = arrivals.get((start, True), 0) + arrivals.get((start, False), 0) - delivered
        points.append(replace(point, delivered=delivered, earlier=earlier))
        start += timedelta(minutes=step)
    return points


def _end(at: datetime) -> datetime:
    """The end of the last minute that is rolled up."""
    return at.replace(second=0, microsecond=0) - NOT_YET


def _floor(at: datetime, minutes: int) -> datetime:
    return at - timedelta(minutes=(at.hour * 60 + at.minute) % minutes)


COUNTS = ("received", "delivered", "earlier", "again", "parked")


# --- the two charts -----------------------------------------------------------------------------------------


def _throughput(points: list[Point], hours: int) -> Chart:
    top = _nice(max(max(_counts(point)) / point.minutes for point in points))

    def rates(name: str) -> list[float | None]:
        return [(getattr(point, name) / point.minutes) / top for point in points]

    totals = {name: sum(getattr(point, name) for point in points) for name in COUNTS}
    lines = [
        Line("received", "area", number(totals["received"]), _area(rates("received"))),
        Line("delivered", "line", number(totals["delivered"]), _path(rates("delivered"))),
    ]
    for name, (words, style) in {
        "earlier": ("earlier backlog, delivered", "dashed"),
        "again": ("sent again", "dashed"),
        "parked": ("parked", "bad"),
    }.items():
        if totals[name]:
            some = [rate or None for rate in rates(name)]  # None for 0: a line at zero would cover the others
            lines.append(Line(words, style, number(totals[name]), _path(some)))
    beside = "".join(
        f", {number(totals[name])} {words}"
        for name, words in (("earlier", "of an earlier backlog delivered"), ("again", "sent again"))
        if totals[name]
    )
    return Chart(
        title="Events per minute",
        unit="events per minute",
        summary=f"In the last {_hours(hours)}: {number(totals['received'])} events received,"
        f" {number(totals['delivered'])} of them delivered{beside}, {number(totals['parked'])} items parked.",
        lines=lines,
        heights=[(100 - 50 * half, _rate(top * half / 2)) for half in range(3)],
        times=_times(points, hours),
        columns=_columns(points, hours, _counts_in_words),
        headings=("from (UTC)", "received", "of them delivered", "earlier backlog", "sent again", "parked"),
        rows=[
            (_clock(point.at, hours), *map(number, _counts(point))) for point in reversed(points) if any(_counts(point))
        ],
    )


def _counts(point: Point) -> list[int]:
    return [getattr(point, name) for name in COUNTS]


def _counts_in_words(point: Point) -> str:
    text = f"{number(point.received)} received, {number(point.delivered)} of them delivered"
    text += f", {number(point.earlier)} of an earlier backlog delivered" if point.earlier else ""
    text += f", {number(point.again)} sent again" if point.again else ""
    return f"{text}, {number(point.parked)} parked" if point.parked else text


def _delay(points: list[Point], hours: int) -> Chart:
    title, unit = "Time from Lytics' call to ODP's response", "logarithmic scale"
    timed = [point for point in points if point.p50 is not None and point.p99 is not None]
    if not timed:
        return Chart(title, "", f"Nothing was sent to ODP in the {_hours(hours)} shown.")
    slowest, fastest = max(point.p99 or 0 for point in timed), min(point.p50 or 0 for point in timed)
    low = max((line for line in DELAYS if line <= fastest), default=min(DELAYS))
    high = min((line for line in DELAYS if line >= slowest and line > low), default=max(DELAYS))

    def height(value: float | None) -> float | None:
        if value is None:
            return None
        return (math.log(min(max(value, low), high)) - math.log(low)) / (math.log(high) - math.log(low))

    newest = timed[-1]
    p50, p99 = delay(newest.p50), delay(newest.p99)
    return Chart(
        title=title,
        unit=unit,
        summary=f"At {newest.at:%H:%M} UTC half of the events were delivered within {p50} and 99 of 100 within {p99}."
        f" The slowest of the last {_hours(hours)}: {delay(slowest)}.",
        lines=[
            Line("half within", "line", p50, _path([height(point.p50) for point in points])),
            Line("99 of 100 within", "dashed", p99, _path([height(point.p99) for point in points])),
        ],
        heights=[(100 - 100 * (height(line) or 0), words) for line, words in DELAYS.items() if low <= line <= high],
        times=_times(points, hours),
        columns=_columns(points, hours, _delays_in_words),
        headings=("from (UTC)", "half within", "99 of 100 within"),
        rows=[(_clock(point.at, hours), delay(point.p50), delay(point.p99)) for point in reversed(timed)],
    )


def _delays_in_words(point: Point) -> str:
    return (
        "nothing was sent"
        if point.p50 is None
        else f"half within {delay(point.p50)}, 99 of 100 within {delay(point.p99)}"
    )


def delay(ms: float | None) -> str:
    """Milliseconds as text with two digits, in the largest unit of which there is one or more."""
    if ms is None:
        return "—"
    for unit, of_ms in (("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if ms >= of_ms:
            return f"{ms / of_ms:.{0 if ms >= 10 * of_ms else 1}f} {unit}"
    return f"{ms:.0f} ms"


# --- how they are drawn --------------------------------------------------------------------------------------


def _nice(largest: float) -> float:
    """The top of a scale from nothing up: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(largest, 1)))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= largest)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"


def _x(place: int, of: int) -> float:
    return 100 * (place + 0.5) / of


def _spells(heights: Sequence[float | None]) -> Iterator[list[tuple[float, float]]]:
    """The points of a line in pieces: it is broken where there is nothing to show."""
    piece: list[tuple[float, float]] = []
    for place, height in enumerate(heights):
        if height is None:
            if piece:
                yield piece
            piece = []
        else:
            piece.append((_x(place, len(heights)), 100 - 100 * height))
    if piece:
        yield piece


def _path(heights: Sequence[float | None]) -> str:
    """A single point is drawn as wide as its minutes, because it would be invisible otherwise."""
    half = 50 / len(heights)
    return " ".join(
        _through(piece if len(piece) > 1 else [(piece[0][0] - half, piece[0][1]), (piece[0][0] + half, piece[0][1])])
        for piece in _spells(heights)
    )


def _area(heights: Sequence[float | None]) -> str:
    return " ".join(f"{_through([(piece[0][0], 100.0), *piece, (piece[-1][0], 100.0)])}Z" for piece in _spells(heights))


def _through(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)


def _times(points: list[Point], hours: int) -> list[tuple[float, str]]:
    between = (RANGES | WEEK)[hours][1]
    return [
        (100 * place / len(points), _clock(point.at, hours))
        for place, point in enumerate(points)
        if (point.at.hour * 60 + point.at.minute) % between == 0
    ]


def _columns(points: list[Point], hours: int, words: Callable[[Point], str]) -> list[tuple[float, float, str]]:
    """Invisible shapes with the tooltips."""
    width = 100 / len(points)
    return [
        (place * width, width, f"{_clock(point.at, hours)} UTC: {words(point)}") for place, point in enumerate(points)
    ]
