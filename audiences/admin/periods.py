"""The filter of a list by a period of time, and how its rows are found without an index of their times.

Rows get their numbers in the order of their times, give or take a wait for locks and the clocks of several machines.
Two bisections of the primary key, each ``SLACK`` beyond an end, give two numbers: all rows of the period are between
them, and their times are checked one by one. So a list stays sorted by number, and the indexes of its other filters,
which end with the number, find the rows of a period too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from django.contrib import admin
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.utils.timezone import now

from audiences import sql

M = TypeVar("M", bound=Model)

SINCE, UNTIL = "since", "until"
# How far times may decrease from one number to a later one. After a larger decrease, such as a clock that was set back,
# a list could miss rows near the ends of its period.
SLACK = timedelta(minutes=5)
# The ends of a period that is open at that end. Times beyond them, which people can type, become these.
EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
# What an address may have, and how long it lasts: the last minute or day of a period is part of it.
MINUTE_LAYOUT, DAY_LAYOUT = "%Y-%m-%dT%H:%M", "%Y-%m-%d"
LAYOUTS = {MINUTE_LAYOUT: MINUTE, DAY_LAYOUT: DAY}


class Number(NamedTuple):
    number: int


_NUMBER_AT = sql.beside(__file__).query("number_at", Number._make)


@dataclass(frozen=True)
class Period:
    """From ``start`` on and before ``end``."""

    start: datetime = EARLIEST
    end: datetime = LATEST

    @property
    def is_everything(self) -> bool:
        return (self.start, self.end) == (EARLIEST, LATEST)

    def numbers(self, model: type[Model], field: str) -> range:
        """All rows of the period are among those with these numbers."""
        first = 0 if self.start == EARLIEST else _number_at(model, field, self.start - SLACK)
        beyond = 2**63 - 1 if self.end == LATEST else _number_at(model, field, self.end + SLACK)
        return range(first, beyond)

    def of(self, rows: QuerySet[M], field: str) -> QuerySet[M]:
        """Those of the rows that have their time, ``field``, in the period."""
        if self.is_everything:
            return rows
        numbers = self.numbers(rows.model, field)
        in_time = Q(**{f"{field}__gte": self.start, f"{field}__lt": self.end})
        return rows.filter(in_time, pk__gte=numbers.start, pk__lt=numbers.stop)


def _number_at(model: type[Model], field: str, at: datetime) -> int:
    statement = _NUMBER_AT.replace("audiences_delivery", model._meta.db_table).replace("opened_at", field)
    found = statement.run(at=at).one()
    return found.number if found else 0


class NotAPeriodError(ValueError):
    """The address of the list has no valid period. The text is the reason, for the person who typed it."""


def asked(request: HttpRequest) -> Period:
    """The period in the address of a list. Raises ``NotAPeriodError``."""
    since, until = _typed(request, SINCE), _typed(request, UNTIL)
    period = Period(_parsed(since)[0] if since else EARLIEST, _parsed(until)[1] if until else LATEST)
    if period.start >= period.end:
        raise NotAPeriodError(f"The first time, {since}, is after the last, {until}: no row can be between them.")
    return period


def _typed(request: HttpRequest, name: str) -> str:
    return request.GET.get(name, "").strip()


def _parsed(text: str) -> tuple[datetime, datetime]:
    """The first moment of a minute or day, and the first one after it."""
    for layout, length in LAYOUTS.items():
        try:
            start = datetime.strptime(text.replace(" ", "T", 1), layout).replace(tzinfo=UTC)
        except ValueError:
            continue
        start = within_bounds(start)
        return start, start + length
    raise NotAPeriodError(
        f"“{text[:40]}” is not a time. Write 2026-01-31T14:30, or 2026-01-31 for a whole day, in UTC."
    )


def within_bounds(at: datetime) -> datetime:
    """The nearest time to which minutes can be added, and from which they can be subtracted."""
    return min(max(at, EARLIEST), LATEST)


def is_valid(request: HttpRequest) -> bool:
    """Whether the address of a list has a period, or none."""
    try:
        asked(request)
    except NotAPeriodError:
        return False
    return True


def of_address(rows: QuerySet[M], request: HttpRequest, field: str) -> QuerySet[M]:
    """The rows in the period of the address; none if the period isn't valid."""
    try:
        return asked(request).of(rows, field)
    except NotAPeriodError:
        return rows.none()


class ByPeriod(admin.ListFilter):
    """Two boxes for the first and the last minute of the admin's ``time_field``. In an address, a day will do."""

    title = "time (UTC)"
    template = "audiences/period_filter.html"
    # Why the list is empty, if its period isn't valid.
    error = ""
    period = Period()

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        self.field: str = model_admin.time_field
        self.used_parameters = {name: params.pop(name) for name in (SINCE, UNTIL) if name in params}
        try:
            self.period = asked(request)
        except NotAPeriodError as error:
            self.error = str(error)

    def has_output(self) -> bool:
        return True

    def expected_parameters(self) -> list[str | None]:
        return [SINCE, UNTIL]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.none() if self.error else self.narrowed(queryset)

    def narrowed(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        return self.period.of(rows, self.field)

    def choices(self, changelist: Any) -> Iterator[Any]:
        yield {
            "others": {name: value for name, value in changelist.params.items() if name not in (SINCE, UNTIL)},
            "since": self._box(SINCE),
            "until": self._box(UNTIL),
            "is_narrowed": bool(self.used_parameters),
            "without": changelist.get_query_string(remove=[SINCE, UNTIL]),
            "usual": [(words, changelist.get_query_string(dates)) for words, dates in usual(now())],
        }

    def _box(self, name: str) -> str:
        """The minute that its box shows, so that a period with its ends exchanged can be corrected."""
        try:
            first, beyond = _parsed(_typed(self.request, name))
        except NotAPeriodError:
            return ""
        return f"{first if name == SINCE else beyond - MINUTE:{MINUTE_LAYOUT}}"


def usual(at: datetime) -> list[tuple[str, dict[str, str | None]]]:
    """The periods that are one click away, with what the address has for them."""
    today, last_hour = f"{at:{DAY_LAYOUT}}", f"{at - timedelta(hours=1):{MINUTE_LAYOUT}}"
    yesterday, last_week = f"{at - DAY:{DAY_LAYOUT}}", f"{at - 6 * DAY:{DAY_LAYOUT}}"
    return [
        ("Last hour", {SINCE: last_hour, UNTIL: None}),
        ("Today", {SINCE: today, UNTIL: None}),
        ("Yesterday", {SINCE: yesterday, UNTIL: yesterday}),
        ("7 days", {SINCE: last_week, UNTIL: None}),
    ]
