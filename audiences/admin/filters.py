"""Filters of the lists of the sync history. Each filter has an index, so a search without results ends quickly, too."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.contrib import admin
from django.contrib.admin.views.main import ORDER_VAR, PAGE_VAR
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from audiences import naming, sql
from audiences.admin import periods
from audiences.admin.parameters import whole_number
from audiences.admin.periods import SINCE, UNTIL
from audiences.index_order import index_order
from audiences.models import FAILED, OUTCOMES, SKIPPED, SLOW_MS, Again, Audience, Delivery, Install, Run
from audiences.receiving import resend_causes
from odp.outcomes import Outcome

PER_PAGE = 50
# Lists count their rows up to 10,000. They read this number of rows at most to count.
COUNTED = 10_001
OUTCOME, AUDIENCE = "outcome", "audience"


def ended(queryset: QuerySet[Any], how: str | None) -> QuerySet[Any]:
    """The deliveries or runs with this outcome, or with one of the words *open* and *failed*."""
    match how:
        case None:
            return queryset
        case "open":
            return queryset.filter(closed_at=None)
        case "failed":
            return queryset.filter(FAILED).exclude(outcome=SKIPPED)
    return queryset.filter(outcome=how)


class OutcomeFilter(admin.SimpleListFilter):
    """A filter by outcome. The choices are fixed: collecting the outcomes of all rows would scan the table.

    *Delivered* is not a choice: nearly all rows are, and the unfiltered list shows them.
    """

    title = "outcome"
    parameter_name = OUTCOME

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        failures = [(outcome, words) for outcome, words in OUTCOMES if outcome != Outcome.DELIVERED]
        skipped = [(SKIPPED, SKIPPED)] if model_admin.model is Run else []
        return [("failed", "Not delivered"), *failures, *skipped, ("open", "open")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return ended(queryset, self.value())


class BecauseOf(admin.SimpleListFilter):
    """A filter by the cause of a run or a delivery. A page shows the newest rows of a cause, a download (POST) all.

    Calls of Lytics are not a choice: they cause nearly all rows, and the unfiltered list shows them.
    """

    title = "because of"
    parameter_name = "because"
    # What the list says below its rows.
    note = ""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(cause.value, str(cause.label)) for cause in Again.Cause]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        cause = str(self.value())
        if cause not in Again.Cause.values:
            return queryset
        if request.method == "POST":
            if queryset.model is Run:
                return resend_causes.all_runs_because_of(queryset, cause)
            return resend_causes.all_deliveries_because_of(queryset, cause)
        runs = resend_causes.runs_because_of(cause)
        if resend_causes.has_more_than_its_newest_runs(cause):
            self.note = "Only the newest rows of this cause are listed. The CSV file contains all of them."
        if queryset.model is Run:
            return queryset.filter(pk__in=runs)
        return queryset.filter(pk__in=Run.objects.filter(pk__in=runs).values("delivery_id"))


class SlowerThan(admin.SimpleListFilter):
    """A filter by duration. Only thresholds with a partial index are choices; others could read the whole table."""

    title = "latency"
    parameter_name = "slower"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(ms), f"Slower than {ms} ms" if ms < 1000 else f"Slower than {ms // 1000} s") for ms in SLOW_MS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> QuerySet[Delivery]:
        chosen = [ms for ms in SLOW_MS if str(ms) == self.value()]
        return queryset.filter(latency_ms__gt=chosen[0]) if chosen else queryset


def is_oldest_first(request: HttpRequest, model_admin: Any) -> bool:
    """Whether a list whose columns sort by number has its oldest rows first. Django ignores any other column."""
    for part in request.GET.get(ORDER_VAR, "").split("."):
        _, way, place = part.rpartition("-")
        columns = list(model_admin.get_list_display(request))
        if place.isdecimal() and int(place[:3]) < len(columns) and columns[int(place[:3])] in model_admin.sortable_by:
            return not way
    return False


def rows_up_to_page(request: HttpRequest) -> int:
    """The rows of a list up to the page that was requested, and one more, which shows that another page follows."""
    page = request.GET.get(PAGE_VAR, "")
    return (int(page[:4]) if page.isdecimal() else 1) * PER_PAGE + 1


def named(name: str) -> list[int]:
    """The audiences with this name, at most one per install."""
    found = Q(odp_id=name) | Q(odp_id=naming.odp_id(name)) | Q(latest_slug=name)
    return list(Audience.objects.filter(found).order_by().values_list("pk", flat=True))


class TypedFilter(admin.SimpleListFilter):
    """A filter with a text box. ``placeholder`` is shown in the empty box, ``no_choice`` on the link that clears it."""

    template = "audiences/typed_filter.html"
    placeholder = ""
    no_choice = ""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return []

    def has_output(self) -> bool:
        return True

    def choices(self, changelist: Any) -> Iterator[Any]:
        yield {
            "others": {name: value for name, value in changelist.params.items() if name != self.parameter_name},
            "value": self.value() or "",
            "without": changelist.get_query_string(remove=[self.parameter_name]),
            "placeholder": self.placeholder,
            "all": self.no_choice,
        }


class ByAudience(TypedFilter):
    """By a typed slug or ODP id, because there may be thousands of audiences."""

    title = "audience"
    parameter_name = AUDIENCE
    placeholder, no_choice = "slug or ODP id", "All audiences"

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any) -> None:
        self.oldest_first = is_oldest_first(request, model_admin)
        super().__init__(request, params, model, model_admin)

    @classmethod
    def alone(cls, request: HttpRequest, *others: str) -> bool:
        """Whether a list is narrowed by this, and by nothing else but a period, or these others."""
        typed = request.GET.get(cls.parameter_name, "").strip()
        return bool(typed) and set(request.GET) <= {cls.parameter_name, SINCE, UNTIL, PAGE_VAR, ORDER_VAR, *others}

    @classmethod
    def count(cls, request: HttpRequest, model: type[Any]) -> int:
        """The bounded count of the runs or deliveries of an audience: each delivery has one run of it."""
        runs = periods.of_address(_sent(model), request, "opened_at")
        audiences = named(request.GET[cls.parameter_name].strip())
        with index_order():
            return min(COUNTED, sum(_of_audience(runs, one)[:COUNTED].count() for one in audiences))

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        typed, model = (self.value() or "").strip(), queryset.model
        if not typed:
            return queryset
        audiences = named(typed)
        # A part of the runs is enough for a page and its count only if nothing else narrows them.
        if request.method == "POST" or not self.alone(request, OUTCOME):
            if model is Run:
                return queryset.filter(audience__in=audiences)
            runs = ended(_sent(model).filter(audience__in=audiences), request.GET.get(OUTCOME))
            return queryset.filter(pk__in=periods.of_address(runs, request, "opened_at").values("delivery_id"))
        # A delivery and its runs are opened at the same time.
        runs = periods.of_address(ended(_sent(model), request.GET.get(OUTCOME)), request, "opened_at")
        # Its outcome is counted by the list itself.
        bound = rows_up_to_page(request) if self.alone(request) else max(COUNTED, rows_up_to_page(request))
        found = Q(pk__in=())
        for one in audiences:
            part = _of_audience(runs, one, oldest_first=self.oldest_first)[:bound]
            found |= Q(pk__in=part.values("pk" if model is Run else "delivery_id"))
        return queryset.filter(found)


def _sent(model: type[Any]) -> QuerySet[Run]:
    """The runs for a list of this model: for one of deliveries, those that have one."""
    return Run.objects.all() if model is Run else Run.objects.filter(delivery__isnull=False)


def _of_audience(runs: QuerySet[Run], audience: int, *, oldest_first: bool = False) -> QuerySet[Run]:
    """Those of an audience, in the order of the index by audience.

    The audience is part of the order and its condition is a range, so that PostgreSQL has to use that index. With an
    equality it may walk the primary key through the runs that all other audiences have in a period.
    """
    order = ("-audience_id", "id") if oldest_first else ("audience_id", "-id")
    return runs.filter(audience_id__gte=audience, audience_id__lte=audience).order_by(*order)


_SQL = sql.beside(__file__)
_NEWEST_RUNS = _SQL.for_models("newest_runs")
_OLDEST_RUNS = _SQL.for_models("oldest_runs")


class Counted(NamedTuple):
    rows: int


_COUNT_RUNS = _SQL.query("count_runs", Counted._make)


def is_only_by_install(request: HttpRequest) -> bool:
    """Whether a page of runs is narrowed by their install, and by nothing else but a period."""
    value, known = request.GET.get(InstallOfRun.parameter_name, ""), {InstallOfRun.parameter_name, SINCE, UNTIL}
    return value.isdecimal() and set(request.GET) <= known | {PAGE_VAR, ORDER_VAR} and periods.is_valid(request)


def count_runs(request: HttpRequest) -> int:
    """The bounded count of the runs of an install, for an address that ``is_only_by_install``."""
    install = whole_number(request.GET[InstallOfRun.parameter_name])
    with index_order():
        found = _COUNT_RUNS.run(install=install, bound=COUNTED, **_period_of_runs(request)).one()
    return found.rows if found else 0


def _period_of_runs(request: HttpRequest) -> dict[str, Any]:
    """The period as parameters of the statements about runs."""
    period = periods.asked(request)
    numbers = period.numbers(Run, "opened_at")
    return {
        "is_everything": period.is_everything,
        "first": numbers.start,
        "beyond": numbers.stop,
        "start": period.start,
        "end": period.end,
    }


class InstallOfRun(admin.SimpleListFilter):
    """A page shows at most this many runs of one audience; a download, which is a POST, contains all."""

    title = "install"
    parameter_name = "install"

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any) -> None:
        self.oldest_first = is_oldest_first(request, model_admin)
        super().__init__(request, params, model, model_admin)

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(pk), name) for pk, name in Install.objects.values_list("pk", "name")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Run]) -> QuerySet[Run]:
        install = whole_number(self.value() or "")
        if install is None:
            return queryset
        # The newest runs of each audience are enough for a page only if nothing else narrows them.
        if request.method == "POST" or not is_only_by_install(request):
            return queryset.filter(audience__install=install)
        statement = _OLDEST_RUNS if self.oldest_first else _NEWEST_RUNS
        runs = statement.subquery(runs=rows_up_to_page(request), install=install, **_period_of_runs(request))
        return queryset.filter(pk__in=runs)
