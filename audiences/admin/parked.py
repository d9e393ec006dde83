"""Parked items by reason, with the remedy for each reason and its buttons."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import connection
from django.db.models import QuerySet
from django.db.models.functions import Length
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audiences.admin import verbs
from audiences.admin.fragments import masked_ends
from audiences.admin.masks import masked, written
from audiences.admin.pages import (
    HistoryAdmin,
    ago,
    count,
    link,
    list_url,
    mask,
    number,
    pill,
    shortened,
    size,
    up_to_bound,
)
from audiences.admin.parameters import whole_number
from audiences.admin.parked_groups import ANY_NUMBER, counted, found, in_words, items, unfinished
from audiences.admin.parked_reasons import ALL_HINTS, STAYED, can_be_released, hint, released_and_stayed, words
from audiences.admin.parked_verbs import Discard, Release, Reveal, ask_field, read_by
from audiences.admin.periods import ByPeriod
from audiences.admin.resends import section, under_way
from audiences.admin.verbs import AskReason, NoQuestion
from audiences.encryption import UNREADABLE, decrypt
from audiences.insight import state
from audiences.models import Install, Parked, Resend
from audiences.operations import parked_items, resends
from audiences.partial_decryption import PART, decrypt_ends

# Ticked items that are released within the request: each is parsed again in its own transaction.
AT_ONCE = 300
# The largest item, as stored, that its page shows whole: parsed and written out, it takes a hundred times its size of
# memory.
SHOWN_BYTES = 200_000

_PART = "SELECT substring(raw FROM %(first)s FOR %(length)s) FROM audiences_parked WHERE id = %(parked)s"


class Resolution(admin.SimpleListFilter):
    """A filter by result. By default the list has the open items, which need a person."""

    title = "result"
    parameter_name = "resolution"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        closed = [(value, label.capitalize()) for value, label in Parked.Resolution.choices if value]
        return [("open", "Open"), *closed, ("all", "All")]

    def choices(self, changelist: Any) -> Any:
        chosen = self.value() or "open"
        for value, title in self.lookup_choices:
            query = changelist.get_query_string({self.parameter_name: value})
            yield {"selected": value == chosen, "query_string": query, "display": title}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Parked]) -> QuerySet[Parked]:
        match self.value():
            case None | "open":
                return queryset.filter(resolution=Parked.Resolution.OPEN)
            case "all":
                return queryset
        return queryset.filter(resolution=self.value())


class Reason(admin.SimpleListFilter):
    title = "reason"
    parameter_name = "reason"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(reason, words(reason)) for reason in ALL_HINTS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Parked]) -> QuerySet[Parked]:
        return queryset.filter(reason=self.value()) if self.value() else queryset


@admin.register(Parked)
class ParkedAdmin(HistoryAdmin[Parked]):
    pruned_as = "parked"
    verbs = (Release(), Discard(), Reveal())
    actions = ("release_selected", "discard_selected")
    empty_words = "Nothing is parked."
    list_display = ("item", "why", "detail_", "who", "parked_", "pill", "install_link")
    sortable_by = ("item", "parked_")
    list_filter = (Resolution, ByPeriod, Reason, "install")
    time_field = "parked_at"
    list_select_related = ("install", "audience")
    list_before_template = "audiences/parked_groups.html"
    fields = (
        ("install_link", "pill"),
        "why",
        "hint_",
        "detail",
        ("audience_link", "who"),
        ("receipt_link", "delivery_link"),
        "parked_at",
        "raw_",
    )
    readonly_fields = (
        *("install_link", "pill", "why", "hint_", "audience_link", "who", "receipt_link", "delivery_link", "raw_"),
    )

    def has_release_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(Release.permission)

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(Discard.permission)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Parked]:
        """Leave out the column with the item: the items of one page can have gigabytes."""
        return super().get_queryset(request).defer("raw")

    def get_urls(self) -> list[Any]:
        group = path(
            "all/<int:install>/<slug:reason>/release/",
            verbs.view(self, self.release_group),
            name="audiences_parked_release_group",
        )
        discard = path(
            "all/<int:install>/<slug:reason>/discard/",
            verbs.view(self, self.discard_group),
            name="audiences_parked_discard_group",
        )
        return [group, discard, *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        sent_again = section(request, past=3, kind__exact=Resend.Kind.RELEASE.value)
        groups = in_words(found(), sent_again["unfinished"])
        context = {"groups": groups, "sent_again": sent_again, **(extra_context or {})}
        return super().changelist_view(request, context)

    def page_context(self, request: HttpRequest, parked: Parked) -> dict[str, Any]:
        request.unmasked = request.session.pop("unmasked", None)  # type: ignore[attr-defined] # for get_object
        return {}

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Parked | None:
        """The item. ``is_unmasked`` says whether this request shows it unmasked: columns get the item alone."""
        parked = super().get_object(request, object_id, from_field)
        if parked is not None:
            parked.is_unmasked = getattr(request, "unmasked", None) == parked.pk
        return parked

    # --- several at once -------------------------------------------------------------------------------------

    @admin.action(description="Release", permissions=["release"])
    def release_selected(self, request: HttpRequest, queryset: QuerySet[Parked]) -> HttpResponse | None:
        return self._selected(request, queryset, verb="Release", form=NoQuestion)

    @admin.action(description="Discard", permissions=["discard"])
    def discard_selected(self, request: HttpRequest, queryset: QuerySet[Parked]) -> HttpResponse | None:
        return self._selected(request, queryset, verb="Discard", form=AskReason)

    def _selected(self, request: HttpRequest, queryset: QuerySet[Parked], *, verb: str, form: Any) -> HttpResponse:
        items = list(queryset.filter(closed_at=None))
        back, version_tag = request.get_full_path(), _version_tag(item.pk for item in items)
        confirmed = "seen" in request.POST
        if not items or (confirmed and request.POST["seen"] != version_tag):
            return verbs.go(request, back, warning=verbs.STALE)
        if verb == "Release" and not all(can_be_released(item.reason) for item in items):
            hopeless = ", ".join(sorted({words(item.reason) for item in items if not can_be_released(item.reason)}))
            message = f"Nothing was released: reading these again can't help ({hopeless}). Discard them."
            return verbs.go(request, back, warning=message)
        if verb == "Release" and len(items) > AT_ONCE:
            message = (
                f"Nothing was released: at most {number(AT_ONCE)} at a time, or all of a reason with “Release all”."
            )
            return verbs.go(request, back, warning=message)
        asked = form(request.POST if confirmed else None)
        if confirmed and asked.is_valid():
            return self._done(request, items, verb=verb, reason=asked.cleaned_data.get("reason", ""), back=back)
        consequences = {
            "Release": f"Reads or sends again {count(len(items), 'item')}. What still can't be read stays here.",
            "Discard": f"{count(len(items), 'item')} will be discarded: they never reach ODP and can't be released"
            " any more.",
        }
        return verbs.confirmation(
            request,
            self,
            title=f"{verb} {count(len(items), 'parked item')}",
            label=f"{verb} {number(len(items))}",
            danger=verb == "Discard",
            consequence=consequences[verb],
            form=asked,
            hidden={"action": f"{verb.lower()}_selected", "seen": version_tag},
            selected=[item.pk for item in items],
            back=back,
        )

    def _done(self, request: HttpRequest, items: list[Parked], *, verb: str, reason: str, back: str) -> HttpResponse:
        """Release or discard the ticked items, and record the result in the history of each."""
        ids, by = [item.pk for item in items], request.user.get_username()
        if verb == "Discard":
            done = parked_items.discard_each(ids, by=by)
            discarded = [item for item in items if item.pk in done]
            verbs.record(request, discarded, f"{verbs.with_others('Discarded', len(discarded))} Reason: {reason}")
            message = f"Discarded {number(len(discarded))}."
            if closed := len(items) - len(discarded):
                message += f" {count(closed, 'item')} had been released or discarded before."
                return verbs.go(request, back, warning=message)
            return verbs.go(request, back, success=message)
        results: dict[int, bool | None] = {}
        try:
            for pk in ids:
                results[pk] = parked_items.release_one(pk, by=by)
        finally:  # even if an error ends the work midway
            released = [item for item in items if results.get(item.pk)]
            stayed = [item for item in items if results.get(item.pk) is False]
            verbs.record(request, released, verbs.with_others("Released", len(released)))
            verbs.record(request, stayed, STAYED)
        message = released_and_stayed(len(released), len(stayed))
        return verbs.go(request, back, warning=message) if stayed else verbs.go(request, back, success=message)

    def release_group(self, request: HttpRequest, install: int, reason: str) -> HttpResponse:
        """Release all items of one reason, up to the newest one at the time of the confirmation page."""
        if not self.has_release_permission(request):
            raise PermissionDenied
        back = verbs.way_back(request, list_url(Parked))
        total, newest = counted(install, reason, upto=_upto(request))
        seen = f"{total}-{newest}"
        going = unfinished().filter(install_id=install, parked_reason=reason).first()
        if going is not None:
            return verbs.go(request, back, warning=under_way(going))
        if newest is None or (request.method == "POST" and request.POST.get("seen") != seen):
            return verbs.go(request, back, warning=verbs.STALE)
        if not can_be_released(reason):
            return verbs.go(request, back, warning=f"Reading again can't help: {words(reason)}. Discard them.")
        owner = Install.objects.get(pk=install)
        asked = ask_field(request.POST if request.method == "POST" else None, owner, reason)
        if request.method == "POST" and asked.is_valid():
            by, field = request.user.get_username(), str(asked.cleaned_data.get("read_by", ""))
            # The release reads all of them anyway, and shows how far it is.
            everything = parked_items.count(install, reason, upto=newest)
            if not resends.release_all(owner, reason, upto=newest, total=everything, by=by, identifier_field=field):
                return verbs.go(request, back, warning=verbs.STALE)
            message = (
                f"Releasing {count(everything, 'item')} parked for {words(reason)}; this page shows how far it is."
            )
            message += read_by(field)
            verbs.record(request, [owner], message)
            return verbs.go(request, back, success=message)
        return verbs.confirmation(
            request,
            self,
            title=f"Release all parked for: {words(reason)}",
            label=f"Release {up_to_bound(total)}",
            danger=False,
            consequence=f"Reads or sends again {items(total)}. What still can't be read stays here.",
            form=asked,
            hidden={"seen": seen, "upto": newest},
            back=back,
        )

    def discard_group(self, request: HttpRequest, install: int, reason: str) -> HttpResponse:
        """Discard all items of one reason, up to the newest one at the time of the confirmation page."""
        if not self.has_discard_permission(request):
            raise PermissionDenied
        back = verbs.way_back(request, list_url(Parked))
        confirmed = "seen" in request.POST
        total, newest = counted(install, reason, upto=_upto(request))
        seen = f"{total}-{newest}"
        if newest is None or (confirmed and request.POST["seen"] != seen):
            return verbs.go(request, back, warning=verbs.STALE)
        asked = AskReason(request.POST if confirmed else None)
        if confirmed and asked.is_valid():
            by = request.user.get_username()
            done = parked_items.discard_all(install, reason, upto=newest, by=by)
            message = f"Discarded {count(done, 'item')} parked for {words(reason)}."
            owner = Install.objects.get(pk=install)
            verbs.record(request, [owner], f"{message} Reason: {asked.cleaned_data['reason']}")
            if counted(install, reason, upto=newest).rows:
                return verbs.go(request, back, warning=f"{message} More are left: press Discard all again.")
            return verbs.go(request, back, success=message)
        return verbs.confirmation(
            request,
            self,
            title=f"Discard all parked for: {words(reason)}",
            label=f"Discard {up_to_bound(total)}",
            danger=True,
            consequence=f"{items(total)} will be discarded: they never reach ODP and can't be released any more.",
            form=asked,
            hidden={"seen": seen, "upto": newest},
            back=back,
        )

    # --- how it is written -----------------------------------------------------------------------------------

    @admin.display(ordering="id")
    def item(self, parked: Parked) -> SafeString | str:
        return link(parked, f"{parked.pk:,}")

    @admin.display(description="reason")
    def why(self, parked: Parked) -> SafeString:
        return format_html("<strong>{}</strong>", words(parked.reason))

    @admin.display(description="what to do")
    def hint_(self, parked: Parked) -> str:
        return hint(parked.reason)

    @admin.display(description="detail")
    def detail_(self, parked: Parked) -> str:
        return shortened(parked.detail, 120) or "—"

    @admin.display(description="customer")
    def who(self, parked: Parked) -> str:
        return mask(parked.identifier) or "—"

    @admin.display(description="since", ordering="id")
    def parked_(self, parked: Parked) -> Any:
        return ago(parked.parked_at)

    @admin.display(description="state")
    def pill(self, parked: Parked) -> SafeString:
        return pill(state.of_parked(parked))

    @admin.display(description="install")
    def install_link(self, parked: Parked) -> SafeString | str:
        return link(parked.install)

    @admin.display(description="audience")
    def audience_link(self, parked: Parked) -> SafeString | str:
        return link(parked.audience)

    @admin.display(description="call")
    def receipt_link(self, parked: Parked) -> SafeString | str:
        return link(parked.receipt)

    @admin.display(description="delivery")
    def delivery_link(self, parked: Parked) -> SafeString | str:
        return link(parked.delivery)

    @admin.display(description="item as it came")
    def raw_(self, parked: Parked) -> SafeString | str:
        unmasked = getattr(parked, "is_unmasked", False)
        stored = _stored_bytes(parked)
        if stored is None:
            whole = parked.identifier if unmasked else mask(parked.identifier)
            return format_html('<pre class="ls-pre">customer {}, event {}</pre>', whole, number(parked.sequence))
        try:
            if stored > SHOWN_BYTES:
                return _both_ends(parked, stored, unmasked=unmasked)
            raw = decrypt(bytes(parked.raw or b"")).decode("utf-8", "replace")
        except ImproperlyConfigured:
            return f"It {UNREADABLE}."
        return format_html('<pre class="ls-pre">{}</pre>', _pretty(raw) if unmasked else masked(raw))


def _upto(request: HttpRequest) -> int:
    """The id of the newest item in the question to the person; before the question, no limit."""
    sent = whole_number(request.POST.get("upto", ""))
    return ANY_NUMBER if sent is None else sent


def _stored_bytes(parked: Parked) -> int | None:
    """Without the item itself, which may have tens of megabytes."""
    stored: int | None = Parked.objects.filter(pk=parked.pk).values_list(Length("raw"), flat=True).get()
    return stored


def _both_ends(parked: Parked, stored: int, *, unmasked: bool) -> SafeString:
    def read(start: int, length: int) -> bytes:
        with connection.cursor() as cursor:
            cursor.execute(_PART, {"first": start + 1, "length": length, "parked": parked.pk})
            (part,) = cursor.fetchone()
        return bytes(part)

    ends = decrypt_ends(read, stored)
    first, last = (end.decode("utf-8", "replace") for end in (ends.first, ends.last))
    if not unmasked:
        first, last = masked_ends(first, last)
    return format_html(
        '<p class="ls-note">{}: too much for a page. Its first and last {} follow; release and discard take all of it.'
        '</p><pre class="ls-pre">{}</pre><p class="ls-note">…</p><pre class="ls-pre">{}</pre>',
        size(ends.size), size(PART), first, last,
    )  # fmt: skip


def _pretty(raw: str) -> str:
    try:
        return written(json.loads(raw), indent=2)
    except (ValueError, RecursionError):
        return raw


def _version_tag(ids: Iterable[int]) -> str:
    return hashlib.sha256(repr(sorted(ids)).encode()).hexdigest()[:16]
