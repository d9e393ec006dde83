"""Troubles in the admin, current and past: when each was notified and resolved, and the button Mute."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.timezone import now
from unfold.widgets import UnfoldAdminSelectWidget

from audiences.admin import alert_channels, together
from audiences.admin.pages import HistoryAdmin, ago, count, link, pill
from audiences.admin.periods import ByPeriod
from audiences.admin.together import Together
from audiences.admin.verbs import AskReason, NoQuestion, Verb
from audiences.insight.state import State
from audiences.models import Trouble, TroubleMessage
from audiences.operations import troubles

HOURS = ((1, "1 hour"), (8, "8 hours"), (24, "1 day"), (168, "7 days"))
# The most messages that the page of a trouble lists.
SHOWN = 20


def is_muted(trouble: Trouble) -> bool:
    return trouble.muted_until is not None and trouble.muted_until > now()


def mute_in_words(trouble: Trouble) -> str:
    reason = f": {trouble.mute_reason}" if trouble.mute_reason else ""
    return f"by {trouble.muted_by} until {trouble.muted_until:%Y-%m-%d %H:%M} UTC{reason}"


def state_of(trouble: Trouble) -> State:
    if trouble.resolved_at is not None:
        return State("resolved", f"at {trouble.resolved_at:%Y-%m-%d %H:%M} UTC")
    if is_muted(trouble):
        return State("muted", mute_in_words(trouble))
    return State("bad" if trouble.tone == "bad" else "warning", trouble.why, alert=True)


class AskHours(AskReason):
    hours = forms.TypedChoiceField(label="For", choices=HOURS, coerce=int, initial=8, widget=UnfoldAdminSelectWidget)


class Mute(Verb[Trouble]):
    name, label, icon, permission = "mute", "Mute", "notifications_off", "audiences.mute_trouble"
    form = AskHours

    def offered(self, trouble: Trouble) -> bool:
        return trouble.resolved_at is None and not is_muted(trouble)

    def consequence(self, trouble: Trouble) -> str:
        return (
            "No message is sent when this trouble gets worse, or is resolved and comes back. If a message about it was"
            " sent before, its resolution is sent too. The page Now shows it with your name and reason."
        )

    def do(self, trouble: Trouble, *, by: str, answers: dict[str, Any]) -> str | None:
        hours = answers["hours"]
        is_muted = troubles.mute(trouble, hours=hours, by=by, reason=answers["reason"])
        return f"Muted for {count(hours, 'hour')}." if is_muted else None


class Unmute(Verb[Trouble]):
    name, label, icon, permission = "unmute", "Unmute", "notifications_active", "audiences.mute_trouble"
    form = NoQuestion

    def offered(self, trouble: Trouble) -> bool:
        return is_muted(trouble)

    def consequence(self, trouble: Trouble) -> str:
        return "If the trouble lasts and no message about it was sent, one is sent within a minute."

    def do(self, trouble: Trouble, *, by: str, answers: dict[str, Any]) -> str | None:
        return "Unmuted." if troubles.unmute(trouble) else None


def _open_like(trouble: Trouble, *, of_cause: bool) -> list[Trouble]:
    """The open troubles of the same kind, or of the same kind and cause, that nobody has muted."""
    found = Trouble.objects.filter(resolved_at=None, kind=trouble.kind).order_by("pk")
    if of_cause:  # the last part of a key is the digest of the cause
        found = found.filter(key__endswith=trouble.key.rpartition("/")[2])
    return [one for one in found if not is_muted(one)]


def _muted(of: Sequence[Trouble], names: str) -> str:
    return (
        f"No message is sent when one of these troubles gets worse, or is resolved and comes back: {names}. The page"
        " Now shows each with your name and reason."
    )


def _together(name: str, *, of_cause: bool) -> Together[Trouble]:
    return Together(Mute(), name, "trouble", "Muted", partial(_open_like, of_cause=of_cause), _muted)


class OpenOrResolved(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("open", "open"), ("resolved", "resolved")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(resolved_at__isnull=self.value() == "open") if self.value() else queryset


class WasOpen(ByPeriod):
    """By a period in which the trouble was open, not only found: the ones beside it explain each other."""

    title = "time open (UTC)"

    def narrowed(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """All rows are read: a trouble may have been open long before the period, and there are few."""
        still = Q(resolved_at=None) | Q(resolved_at__gt=self.period.start)
        return rows.filter(still, since_at__lt=self.period.end)


@admin.register(Trouble)
class TroubleAdmin(HistoryAdmin[Trouble]):
    pruned_as = "troubles"
    verbs = (Mute(), Unmute())
    empty_words = "No trouble was found. A worker checks every minute."
    list_display = ("trouble", "pill", "install_link", "since", "notified", "resolved")
    list_filter = (OpenOrResolved, WasOpen, "install")
    time_field = "since_at"
    list_before_template = "audiences/alert_channels.html"
    fields = (
        ("install_link", "tone"),
        "what",
        "why",
        "todo",
        ("since_at", "first_seen_at", "last_seen_at"),
        ("notified", "resolved_at"),
        ("muted_until", "muted_by", "mute_reason"),
        "messages",
    )
    readonly_fields = ("install_link", "notified", "messages")

    def get_urls(self) -> list[Any]:
        mute = (_together("mute-cause", of_cause=True), _together("mute-kind", of_cause=False))
        return [alert_channels.url(self), *together.urls(self, *mute), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        return super().changelist_view(request, {"channels": alert_channels.tested(), **(extra_context or {})})

    def get_queryset(self, request: HttpRequest) -> QuerySet[Trouble]:
        return super().get_queryset(request).select_related("install")

    @admin.display(description="trouble")
    def trouble(self, trouble: Trouble) -> SafeString | str:
        return link(trouble)

    @admin.display(description="state")
    def pill(self, trouble: Trouble) -> SafeString:
        return pill(state_of(trouble))

    @admin.display(description="install")
    def install_link(self, trouble: Trouble) -> SafeString | str:
        return link(trouble.install)

    @admin.display()
    def since(self, trouble: Trouble) -> Any:
        return ago(trouble.since_at)

    @admin.display()
    def notified(self, trouble: Trouble) -> Any:
        return ago(trouble.notified_at)

    @admin.display()
    def resolved(self, trouble: Trouble) -> Any:
        return ago(trouble.resolved_at)

    @admin.display(description="messages")
    def messages(self, trouble: Trouble) -> str:
        found = TroubleMessage.objects.filter(trouble=trouble)[:SHOWN]
        return "; ".join(f"{message}: {alert_channels.end_of(message).why}" for message in found) or "none"
