"""What the pages share: lists with a bounded count, read-only history, pills, links and masks."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from django.contrib.admin import ShowFacets
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import LogEntry
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.paginator import Page, Paginator
from django.db import DataError
from django.db.models import Model, OuterRef, QuerySet
from django.http import HttpRequest
from django.urls import path
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.timezone import now

from audiences.admin import csv_file, verbs
from audiences.admin.addresses import address
from audiences.admin.filters import COUNTED, PER_PAGE
from audiences.admin.parameters import DIGITS, whole_number
from audiences.insight import horizons, trials
from audiences.insight.state import State
from audiences.models import Receipt

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin as UnfoldModelAdmin

    _Mixin = UnfoldModelAdmin
    _Paginator = Paginator[Any]
    _PageOfRows = Page[Any]
else:
    from unfold.admin import ModelAdmin as _ModelAdmin

    class UnfoldModelAdmin(_ModelAdmin):
        def __class_getitem__(cls, _: Any) -> type:
            return cls

    class _Mixin:
        def __class_getitem__(cls, _: Any) -> type:
            return cls

    _Paginator, _PageOfRows = Paginator, Page


M = TypeVar("M", bound=Model)

# The last page of a list. PostgreSQL reads all rows before a page, and people filter instead of reading 500 pages.
LAST_PAGE = 500


# unfold's header looks for this class name before it shows a count.
class InfinitePaginator(_Paginator):
    """A paginator without a full count: one row more than the page size shows whether there is another page.

    Its rows are counted up to 10,000, for people. Pages are numbered without that count.
    """

    object_list: QuerySet[Any]
    template_name = "audiences/pagination.html"
    more = False
    # A quicker count of the same rows, for lists that need one; and whether the list leaves rows out.
    quick_count: Callable[[], int] | None = None
    is_cut = False

    @cached_property
    def count(self) -> int:
        return self.per_page * LAST_PAGE

    def page(self, number: int | str) -> Page[Any]:
        number = self.validate_number(number)
        start = (number - 1) * self.per_page
        rows = self.rows(start, start + self.per_page + 1)
        self.more = len(rows) > self.per_page and number < LAST_PAGE
        return _Page(rows[: self.per_page], number, self)

    def rows(self, start: int, end: int) -> list[Any]:
        return list(self.object_list[start:end])

    @cached_property
    def total(self) -> int:
        """The number of rows, at most ``COUNTED``, in the order of the list, so that PostgreSQL uses the same index."""
        if self.quick_count is not None:
            return self.quick_count()
        return self.object_list[:COUNTED].count()

    @property
    def total_in_words(self) -> str:
        if self.total >= COUNTED:
            return up_to_bound(self.total)
        return f"at least {self.total:,}" if self.is_cut else f"{self.total:,} in all"


class CountedPaginator(InfinitePaginator):
    """For tables of thousands of rows at most, which say how many rows match."""

    def rows(self, start: int, end: int) -> list[Any]:
        """In two queries: PostgreSQL sorts the keys of all rows, and reads whole rows for one page."""
        keys = list(self.object_list.values_list("pk", flat=True)[start:end])
        found = self.object_list.order_by().in_bulk(keys)
        return [found[key] for key in keys if key in found]

    @cached_property
    def total(self) -> int:
        return self.object_list.count()

    @property
    def total_in_words(self) -> str:
        return f"{self.total:,} in all"


class _Page(_PageOfRows):
    """A page that knows by one row whether another follows."""

    paginator: InfinitePaginator

    def has_next(self) -> bool:
        return self.paginator.more


class SafeList(_Mixin[M]):
    """A list whose address can't cause a server error: invalid parameters redirect to the list without filters."""

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest) -> bool:
        """Allow the look-ups that filters and links use. Others, such as ranges, reach PostgreSQL unchecked."""
        is_known = "__" not in lookup or lookup.endswith(("__exact", "__isnull"))
        return is_known and super().lookup_allowed(lookup, value, request)

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Raises ``IncorrectLookupParameters`` for each value that PostgreSQL can't look up, such as NUL."""
        try:
            return super().get_changelist_instance(request)
        except (ValueError, TypeError, DataError) as error:
            raise IncorrectLookupParameters(error) from error


class WithHistory(_Mixin[M]):
    """The history of one object, paginated, because an object may have as many entries as the whole log."""

    def get_paginator(self, request: HttpRequest, queryset: Any, per_page: int, *args: Any, **kwargs: Any) -> Any:
        if queryset.model is LogEntry:
            return InfinitePaginator(queryset, per_page, *args, **kwargs)
        return super().get_paginator(request, queryset, per_page, *args, **kwargs)


class WithButtons(_Mixin[M]):
    """The page of one thing with its verbs as buttons, and with ``page_context``."""

    def may_press(self, request: HttpRequest, instance: Any) -> bool:
        """Whether the buttons are shown at all; each also needs its own permission."""
        return True

    def page_context(self, request: HttpRequest, instance: Any) -> dict[str, Any]:
        """Values for the templates of one object's page, beside the object."""
        return {}

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        page: Any = self
        instance = page.get_object(request, object_id) if object_id else None
        context: dict[str, Any] = {}
        if instance:
            buttons = verbs.buttons(page, request, instance) if self.may_press(request, instance) else []
            context = {"buttons": buttons, **self.page_context(request, instance)}
        return super().changeform_view(request, object_id, form_url, {**context, **(extra_context or {})})


class OperatorAdmin(WithButtons[M], WithHistory[M], SafeList[M], UnfoldModelAdmin[M]):
    """A page of the operator's. Nothing can be deleted on any of them."""

    paginator = InfinitePaginator
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    list_per_page = PER_PAGE
    list_filter_sheet = False
    # Lists aren't counted in full, so "select all N" can't be offered.
    list_disable_select_all = True
    list_display_links: Any = None
    actions: Any = None
    change_form_template = "audiences/thing.html"
    # The name in the menu where it is not the table's own; and what an empty list says.
    title = ""
    empty_words = ""
    # The columns of its CSV file, if it has one; see csv_file.
    csv_columns: csv_file.Columns = ()
    # The time by which ``ByPeriod`` narrows the list.
    time_field = ""
    # The kind in ``horizons.KINDS`` whose old rows are deleted from this list; empty when none are.
    pruned_as = ""
    # In this order at the top of a thing's page; see verbs.py.
    verbs: tuple["verbs.Verb[M]", ...] = ()

    def has_delete_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        return False

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Hide the theme's count beside the title: here ``result_count`` is a bound and not a count."""
        changelist = super().get_changelist_instance(request)
        changelist.full_result_count = changelist.result_count
        changelist.paginator.is_cut = any(getattr(spec, "note", "") for spec in changelist.filter_specs)
        return changelist

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """The title is the name of the list instead of Django's "Select … to change"."""
        title = self.title or capfirst(self.opts.verbose_name_plural)
        context = {"title": title, "horizon": horizons.words(self.pruned_as), **(extra_context or {})}
        return super().changelist_view(request, context)

    def get_urls(self) -> list[Any]:
        own = verbs.urls(self)
        if self.csv_columns:
            download = verbs.view(self, partial(csv_file.download, self))
            own.append(path("csv/", download, name=f"audiences_{self.opts.model_name}_csv"))
        return [*own, *super().get_urls()]

    def response_action(self, request: HttpRequest, queryset: QuerySet[M], *args: Any, **kwargs: Any) -> Any:
        """A selection that isn't of this list, such as letters for a number, is answered as an outdated page."""
        if not all(pk.isdecimal() and len(pk) <= DIGITS for pk in request.POST.getlist(ACTION_CHECKBOX_NAME)):
            return verbs.go(request, request.get_full_path(), warning=verbs.STALE)
        return super().response_action(request, queryset, *args, **kwargs)

    def csv_piece(self, rows: list[list[Any]]) -> None:
        """May change the rows of a piece of the CSV file before they are written."""


class HistoryAdmin(OperatorAdmin[M]):
    """Rows that are never edited, newest first unless sorted otherwise."""

    ordering = ("-id",)
    sortable_by: ClassVar[tuple[str, ...]] = ()
    change_list_template = "audiences/history.html"

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        return False


class NumberedHistoryAdmin(HistoryAdmin[M]):
    """A history whose search finds a row by its number, and rows by name if ``rows_named`` returns any."""

    def rows_named(self, rows: QuerySet[M], name: str) -> QuerySet[M]:
        return rows.none()

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[M], search_term: str
    ) -> tuple[QuerySet[M], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        if (number_sought := whole_number(term.replace(",", ""))) is not None:
            return queryset.filter(pk=number_sought), False
        return self.rows_named(queryset, term), False


def last_call() -> QuerySet[Receipt, Any]:
    """The newest call of the outer query's install.

    The install is part of the order and its condition is a range, so that PostgreSQL has to use the index by install.
    With an equality it may walk the index by time through the calls of all other installs.
    """
    of_install = Receipt.objects.filter(install_id__gte=OuterRef("pk"), install_id__lte=OuterRef("pk"))
    return of_install.exclude(job=trials.JOB).order_by("install_id", "-id").values("received_at")[:1]


# --- how things are written ----------------------------------------------------------------------------------


def url_of(instance: Model) -> str:
    return address(f"admin:{instance._meta.app_label}_{instance._meta.model_name}_change", instance.pk)


def list_url(model: type[Model], **query: str | int) -> str:
    url = address(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    return f"{url}?{urlencode(query)}" if query else url


def link(instance: Model | None, text: object = None) -> SafeString | str:
    if instance is None:
        return "—"
    return format_html('<a class="ls-link" href="{}">{}</a>', url_of(instance), instance if text is None else text)


def numbered(model: type[Model], ids: Sequence[int], *, most: int) -> SafeString:
    """Links to rows by their ids alone, and whether there are more than ``most``; empty when there are none."""
    url = f"admin:{model._meta.app_label}_{model._meta.model_name}_change"
    links = ((address(url, pk), f"{pk:,}") for pk in ids[:most])
    shown = format_html_join(", ", '<a class="ls-link" href="{}">{}</a>', links)
    return format_html("{} and more", shown) if len(ids) > most else shown


def pill(state: State) -> SafeString:
    return format_html('<span class="ls-pill ls-{}" title="{}">{}</span>', state.tone, state.why, state.word)


def pill_and_why(state: State) -> SafeString:
    """For lists: the reason is text beside the word, because a tooltip is invisible without a mouse."""
    return format_html('{}<span class="ls-why">{}</span>', pill(state), shortened(state.why, 90))


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def number(value: int | None) -> str:
    return "—" if value is None else f"{value:,}"


def count(how_many: int, what: str) -> str:
    return f"{how_many:,} {what}{'' if how_many == 1 else 's'}"


def up_to_bound(count: int) -> str:
    """A count that ended at ``COUNTED`` rows."""
    return f"{count:,}" if count < COUNTED else f"more than {COUNTED - 1:,}"


def size(count: int) -> str:
    return f"{count:,} B" if count < 10_000 else f"{count / 1000:,.0f} kB"


def ago(at: datetime | None) -> SafeString | str:
    """The time since or until ``at``, with the time itself as a tooltip."""
    if at is None:
        return "—"
    return format_html(
        '<time datetime="{}" title="{} UTC">{}</time>',
        at.isoformat(),
        f"{at:%Y-%m-%d %H:%M:%S}",
        span(now() - at) + " ago" if at <= now() else "in " + span(at - now()),
    )


def span(length: timedelta) -> str:
    """A duration in years, days, hours, minutes or seconds: the largest unit of which it has two or more."""
    seconds = length.total_seconds()
    for unit, of_seconds in (("years", 31_536_000), ("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * of_seconds:
            return f"{seconds / of_seconds:.0f} {unit}"
    return f"{seconds:.0f} s"


def mask(identifier: str) -> str:
    """The first and last two characters, or the first one of a short identifier."""
    if len(identifier) <= 6:
        return identifier[:1] + "•" * 5 if identifier else ""
    return f"{identifier[:2]}•••{identifier[-2:]}"
