"""Download all rows of a filtered list as a CSV file. They are read in pieces of a fixed number of rows."""

import csv
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponseNotAllowed, HttpResponseRedirect, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.timezone import now

from audiences.insight import horizons

if TYPE_CHECKING:
    from audiences.admin.pages import OperatorAdmin

# Rows read at a time: the number of rows that a download holds in memory.
ROWS = 2_000
# A spreadsheet reads a cell that begins with one of these as a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")

# For each column, its heading and the field of the model.
Columns = Sequence[tuple[str, str]]
Finish = Callable[[list[list[Any]]], None]


def download(admin: "OperatorAdmin[Any]", request: HttpRequest) -> HttpResponseBase:
    """Download the filtered list. Only by POST, because the download is recorded in the history."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    if not admin.has_view_permission(request):
        raise PermissionDenied
    try:
        changelist = admin.get_changelist_instance(request)
    except IncorrectLookupParameters:
        return HttpResponseRedirect("..")
    if any(getattr(spec, "error", "") for spec in changelist.filter_specs):
        # The page of the list shows the error in its address.
        return HttpResponseRedirect(f"..{changelist.get_query_string()}")
    _note(request, admin, request.META.get("QUERY_STRING", ""))
    # Newest first in any case, because each piece continues after the last id.
    queryset = changelist.get_queryset(request).order_by("-pk")
    first = horizons.day(admin.pruned_as)
    since = f"from-{first}-until-" if first else ""
    name = f"{admin.opts.verbose_name_plural}-{since}{now():%Y-%m-%dT%H%M%SZ}.csv".replace(" ", "-")
    return StreamingHttpResponse(
        lines(admin.csv_columns, queryset, finish=admin.csv_piece),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"', "X-Accel-Buffering": "no"},
    )


def _note(request: HttpRequest, admin: "OperatorAdmin[Any]", filters: str) -> None:
    narrowed = f"narrowed by {filters}" if filters else "all of it"
    LogEntry.objects.create(
        user_id=cast(User, request.user).pk,
        content_type=ContentType.objects.get_for_model(admin.model),
        object_repr="list",
        action_flag=CHANGE,
        change_message=f"Downloaded as CSV, {narrowed}.",
    )


class _Line:
    """A file for the CSV writer that returns each line and stores nothing."""

    def write(self, text: str) -> str:
        return text


def lines(columns: Columns, queryset: QuerySet[Any], *, finish: Finish | None = None) -> Iterator[bytes]:
    """The file, piece by piece. ``finish`` may change the rows of a piece before they are written."""
    writer = csv.writer(_Line())
    yield writer.writerow([heading for heading, _ in columns]).encode()
    for rows in _pieces(queryset, [source for _, source in columns]):
        if finish:
            finish(rows)
        yield "".join(writer.writerow(map(cell, row)) for row in rows).encode()


def _pieces(queryset: QuerySet[Any], sources: Sequence[str]) -> Iterator[list[list[Any]]]:
    """Newest first, in pieces that continue after the last id of the one before.

    A server-side cursor would keep a transaction open during a slow download; pages by OFFSET would read all earlier
    rows again.
    """
    after = Q()
    while True:
        rows = list(queryset.filter(after).values_list("pk", *sources)[:ROWS])
        yield [list(row[1:]) for row in rows]
        if len(rows) < ROWS:
            return
        after = Q(pk__lt=rows[-1][0])


def cell(value: Any) -> Any:
    """The value as written: a time as ISO 8601, a possible formula behind an apostrophe, None as an empty cell."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return "" if value is None else value
