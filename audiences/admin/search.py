"""The search box of every page: installs, audiences, calls, deliveries, runs, parked items and customers.

A search is a POST, because the text may be a customer's identifier, and a URL ends up in logs and browser histories.
Each kind is searched for people who may see it, with at most ``SHOWN`` results and without scanning a log or the
ledger. A customer that is found is recorded like a search on *Find a customer*.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Model, Q, QuerySet
from django.db.models.functions import Lower
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.http import urlencode

from audiences.admin import customer
from audiences.admin.pages import list_url, url_of
from audiences.insight import customer_records
from audiences.models import Audience, Delivery, Install, Parked, Receipt, Run
from lytics.facts import IDENTIFIER_BYTES

# The most results shown of each kind. The list of that kind has the others.
SHOWN = 10

# A number, alone or after the name of its kind, as pages write it: "delivery 1,234".
_NUMBER = re.compile(r"(?:(call|delivery|run|parked)\s+)?#?([0-9][0-9,]{0,24})", re.IGNORECASE)
_NUMBERED: Sequence[tuple[str, type[Model]]] = (
    ("call", Receipt),
    ("delivery", Delivery),
    ("run", Run),
    ("parked", Parked),
)
# The largest id that a column can have.
LARGEST = 2**63 - 1


class Search(forms.Form):
    text = forms.CharField(max_length=IDENTIFIER_BYTES)


@dataclass(frozen=True)
class Result:
    words: str
    note: str
    url: str


@dataclass(frozen=True)
class Kind:
    """The results of one kind. ``more`` is the address of its list if that has further results; else empty."""

    title: str
    results: list[Result]
    more: str = ""


def find(request: HttpRequest) -> HttpResponse:
    """The page of results for the text that was posted; the empty form for a GET."""
    request.current_app = admin.site.name
    form = Search(request.POST if request.method == "POST" else None)
    text = form.cleaned_data["text"] if form.is_valid() else ""
    context: dict[str, Any] = {"title": "Search", "text": text, "problems": form.errors.get("text", [])}
    if text:
        context |= {"kinds": [kind for kind in _kinds(request, text) if kind.results], "person": _person(request, text)}
    return TemplateResponse(request, "audiences/search.html", {**admin.site.each_context(request), **context})


def _kinds(request: HttpRequest, text: str) -> Iterator[Kind]:
    if request.user.has_perm("audiences.view_install"):
        installs = Install.objects.filter(Q(name__icontains=text) | Q(public_id=text)).order_by(Lower("name"), "pk")
        yield _kind("Installs", installs, f"{list_url(Install)}?{urlencode({'q': text})}")
    if request.user.has_perm("audiences.view_audience"):
        named = Q(odp_id__icontains=text) | Q(latest_slug__icontains=text) | Q(segment_id=text)
        audiences = Audience.objects.filter(named).select_related("install").order_by("odp_id", "pk")
        yield _kind("Audiences", audiences, f"{list_url(Audience)}?{urlencode({'q': text})}")
    found = _NUMBER.fullmatch(text)
    number = int(found[2].replace(",", "")) if found else 0
    if found and number <= LARGEST:
        for word, model in _NUMBERED:
            if (found[1] or word).lower() == word and request.user.has_perm(f"audiences.view_{model._meta.model_name}"):
                yield _kind(f"{word.capitalize()} {number}", _row(model, number))


def _row(model: type[Model], number: int) -> QuerySet[Model]:
    rows: QuerySet[Model] = model._default_manager.filter(pk=number)
    return rows.select_related("audience__install" if model is Run else "install")


def _kind(title: str, rows: QuerySet[Model], more: str = "") -> Kind:
    found = list(rows[: SHOWN + 1])
    results = [Result(str(row), _note(row), url_of(row)) for row in found[:SHOWN]]
    return Kind(title, results, more if len(found) > SHOWN else "")


def _note(row: Any) -> str:
    """The install of a result, because two installs may have audiences of one name."""
    if isinstance(row, Install):
        return ""
    return str(row.audience.install if isinstance(row, Run) else row.install)


def _person(request: HttpRequest, text: str) -> list[Install] | None:
    """The installs that have a customer with this identifier; None for people who may not find customers."""
    if not request.user.has_perm(customer.PERMISSION):
        return None
    found = customer_records.installs_with(text)
    if found:
        customer.write_down(request, text)
    return found
