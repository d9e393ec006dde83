"""What the front page is made of: numbers, and troubles with the buttons that end them."""

from dataclasses import dataclass, field
from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from audiences.admin.pages import OperatorAdmin, url_of
from audiences.admin.verbs import Button
from audiences.models import Install

# At most this many items of one kind are listed; a page lists all of them.
ALERTS_LISTED = 10


@dataclass(frozen=True)
class Number:
    label: str
    value: str
    url: str
    well: bool
    note: str = ""


@dataclass(frozen=True)
class Alert:
    """``tone`` as a State's; ``todo`` says what mends it when a button alone doesn't."""

    what: str
    why: str
    since: Any
    url: str
    tone: str = "bad"
    todo: str = ""
    buttons: list[Button] = field(default_factory=list)


def page(model: Any) -> OperatorAdmin[Any]:
    found = admin.site.get_model_admin(model)
    assert isinstance(found, OperatorAdmin)
    return found


def way_to(request: HttpRequest, install: Install, at: str, label: str, icon: str) -> list[Button]:
    """A link to a part of an install's page, for people who may change something there."""
    if not request.user.has_perm("audiences.change_install"):
        return []
    return [Button(label, icon, f"{url_of(install)}#{at}", asks=False)]


def and_more(many: int, what: str, url: str) -> list[Alert]:
    """An alert for the rest of ``many`` objects that aren't listed; ``what`` is their plural."""
    return [Alert(f"{many - ALERTS_LISTED:,} more {what}", "", "", url)] if many > ALERTS_LISTED else []
