"""The parts of the front page: numbers, and troubles with the buttons that end them."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from django.contrib import admin
from django.db.models import Count, Model, QuerySet, Window
from django.http import HttpRequest
from django.utils.safestring import SafeString

from audiences.admin import verbs
from audiences.admin.addresses import address
from audiences.admin.pages import OperatorAdmin, ago, url_of
from audiences.admin.troubles import is_muted, mute_in_words
from audiences.admin.verbs import Button
from audiences.annotations import required
from audiences.models import Install, Trouble
from audiences.operations.troubles import is_rest

M = TypeVar("M", bound=Model)

# At most this many troubles of one kind are listed on *Now*.
ALERTS_LISTED = 10

# The buttons that the person may press. They depend on the person's permissions; the trouble itself doesn't.
Offer = Callable[[HttpRequest], list[Button]]


@dataclass(frozen=True)
class Number:
    label: str
    value: str
    url: str
    # None when it isn't measured yet, or doesn't say whether something is well.
    well: bool | None
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """An alert as the page shows it to one person."""

    what: str
    why: str
    since: SafeString | str
    url: str
    tone: str
    todo: str
    buttons: list[Button]
    muted: str = ""
    # For a line of several troubles: the first ones, up to a limit, and a link to the others.
    unfolded: Sequence["Shown"] = ()


@dataclass(frozen=True)
class Bulk:
    """A button for all things with the same cause. ``scope`` identifies them, and ``label`` has their number."""

    scope: Hashable
    permission: str
    label: str
    icon: str
    url: str

    @property
    def offer(self) -> Offer:
        return link(self.permission, self.label, self.icon, self.url)


@dataclass(frozen=True)
class Alert:
    """A trouble in words. ``tone`` is like a State's; ``todo`` is the remedy, where a button isn't enough. ``kind``,
    ``install`` and ``cause`` identify the trouble, so they contain no counts or times. ``message`` replaces ``why`` in
    messages where ``why`` names or quotes a person or gives an address. ``is_rest`` is true for the line that
    represents all unlisted troubles of a kind. ``many`` is the number of things that have this trouble, and ``bulk``
    the button for all that have its cause; ``wider`` is one for the same cause in all installs, if ``bulk`` is not.
    """

    kind: str
    what: str
    why: str
    since: datetime | None
    url: str
    tone: str = "bad"
    todo: str = ""
    offers: tuple[Offer, ...] = ()
    install: int | None = None
    cause: str = ""
    message: str | None = None
    is_rest: bool = False
    many: int = 1
    bulk: Bulk | None = None
    wider: Bulk | None = None

    def shown(self, request: HttpRequest, trouble: Trouble | None) -> Shown:
        """The alert for the page. ``trouble`` is its stored trouble with the mute; None until a check has stored it."""
        offers = [*self.offers, *([self.bulk.offer] if self.bulk and self.many > 1 else [])]
        is_its_own = trouble is not None and is_rest(trouble) == self.is_rest
        offers += [buttons(trouble, "mute", "unmute")] if trouble and is_its_own else []
        since = ago(self.since) if self.since else ""
        muted = f"Muted {mute_in_words(trouble)}" if trouble and is_muted(trouble) else ""
        pressed = [button for offer in offers for button in offer(request)]
        return Shown(self.what, self.why, since, self.url, self.tone, self.todo, pressed, muted)


def page(model: Any) -> OperatorAdmin[Any]:
    found = admin.site.get_model_admin(model)
    assert isinstance(found, OperatorAdmin)
    return found


def buttons(instance: Model, *names: str, back: str = "", known_offered: bool = False) -> Offer:
    """The buttons with these names from the page of ``instance``. They return to ``back``, or to the front page."""
    return lambda request: verbs.buttons(
        page(type(instance)),
        request,
        instance,
        back=back or address("admin:index"),
        only=names,
        known_offered=known_offered,
    )


def way_to(install: Install, at: str, label: str, icon: str) -> Offer:
    """A link to a part of an install's page, for people who may change something there."""

    def offer(request: HttpRequest) -> list[Button]:
        if not request.user.has_perm("audiences.change_install"):
            return []
        return [Button(label, icon, f"{url_of(install)}#{at}", asks=False)]

    return offer


def link(permission: str, label: str, icon: str, url: str) -> Offer:
    """A button to a page that asks, for people with the permission."""
    return lambda request: [Button(label, icon, url)] if request.user.has_perm(permission) else []


@dataclass(frozen=True)
class Extent:
    """Which troubles are read: those of one install or of all, and at most ``most`` of each kind one by one."""

    install_id: int | None = None
    most: int = ALERTS_LISTED

    @property
    def of_install(self) -> dict[str, int]:
        """The parameter of a list's address that chooses the rows of the install; none for all."""
        return {} if self.install_id is None else {"install__id__exact": self.install_id}


EVERYWHERE = Extent()


def listed_rows(rows: QuerySet[M], extent: Extent, *, by: str = "audience__install") -> tuple[list[M], int]:
    """The rows that are listed, and the number of all, in one query. ``by`` is the field with the install."""
    chosen = rows if extent.install_id is None else rows.filter(**{by: extent.install_id})
    found = list(chosen.annotate(all_rows=Window(Count("*")))[: extent.most])
    return found, required(found[0], "all_rows", int) if found else 0


def and_more(
    kind: str, many: int, what: str, url: str, extent: Extent, *, tone: str = "bad", things: int | None = None
) -> list[Alert]:
    """An alert for the rest of ``many`` objects that aren't listed; ``what`` is their plural. ``things`` is the number
    of things in the unlisted objects, where these are groups.
    """
    rest, words = many - extent.most, f"{many - extent.most:,} more {what}"
    if rest <= 0:
        return []
    return [Alert(kind, words, "", None, url, tone, install=extent.install_id, is_rest=True, many=things or rest)]
