"""Filters of *Who did what*. They need no index: only actions of people add rows, so there are few."""

from datetime import UTC
from typing import Any

from django.contrib import admin
from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.text import capfirst
from django.utils.timezone import now

# What the pages write into the history when something is shown unmasked, or a file is made.
REVEALED = Q(change_message__contains="hown") & Q(change_message__contains="this once.")
DOWNLOADED = Q(change_message__startswith="Downloaded as CSV")
ACTIONS = {
    "seen": ("Revealed or downloaded", REVEALED | DOWNLOADED),
    "revealed": ("Revealed", REVEALED),
    "downloaded": ("Downloaded", DOWNLOADED),
    "searched": ("Looked for a customer", Q(change_message__startswith="Looked for this customer")),
    "added": ("Added", Q(action_flag=ADDITION)),
    "changed": ("Changed or pressed", Q(action_flag=CHANGE) & ~REVEALED & ~DOWNLOADED),
    "deleted": ("Deleted", Q(action_flag=DELETION) | Q(change_message__startswith="Deleted, with its settings")),
}


class Action(admin.SimpleListFilter):
    title = "action"
    parameter_name = "action"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, words) for value, (words, _) in ACTIONS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[LogEntry]) -> QuerySet[LogEntry]:
        chosen = ACTIONS.get(self.value() or "")
        return queryset.filter(chosen[1]) if chosen else queryset


class Thing(admin.SimpleListFilter):
    """A filter by the kind of object. The search box finds an object by name; its history has a page."""

    title = "thing"
    parameter_name = "thing"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        kinds = [(model, capfirst(model._meta.verbose_name)) for model in admin.site._registry]
        found = ContentType.objects.get_for_models(*(model for model, _ in kinds))
        return sorted(((str(found[model].pk), str(name)) for model, name in kinds), key=lambda one: one[1])

    def queryset(self, request: HttpRequest, queryset: QuerySet[LogEntry]) -> QuerySet[LogEntry]:
        value = self.value() or ""
        return queryset.filter(content_type=int(value[:9])) if value.isdecimal() else queryset


def seen_this_month() -> str:
    return f"?action=seen&since={now().astimezone(UTC):%Y-%m}-01"
