"""The pages of audits: the differences person by person, and the buttons Audit, Stop and Repair."""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminSelectWidget

from audiences.admin import verbs
from audiences.admin.customer import PERMISSION as FIND_CUSTOMER
from audiences.admin.pages import HistoryAdmin, ago, count, link, list_url, mask, number, pill_and_why, url_of
from audiences.admin.periods import ByPeriod
from audiences.admin.verbs import AskReason, Verb
from audiences.agreement import audits, repairs, words
from audiences.insight.state import State
from audiences.models import Audience, Audit, Difference
from audiences.operations import resends

# The most differences on the page of an audit, and the most audits in the chart of an audience.
SHOWN, DRAWN = 200, 40
# The chart, in units of the SVG: the width of a bar with its gap, and the heights of the tallest and the lowest bar.
SLOT, HEIGHT, LOW = 20, 60, 3


def state_of(audit: Audit) -> State:
    if audit.ended_at is None:
        return State("under way", words.result(audit))
    if audit.problem:
        return State("failing", audit.problem, alert=True)
    if audit.differing or audit.only_in_odp:
        return State("differs", words.result(audit), alert=True)
    return State("unknown" if words.compared_nobody(audit) else "done", words.result(audit))


class AskMode(forms.Form):
    mode = forms.ChoiceField(choices=Audit.Mode.choices, widget=UnfoldAdminSelectWidget, initial=Audit.Mode.FULL)
    sample = forms.IntegerField(
        min_value=1,
        max_value=1_000_000,
        initial=1_000,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="People of a sample about whom ODP is asked.",
    )


class AuditNow(Verb[Audience]):
    name, label, icon, permission = "audit", "Audit", "balance", "audiences.resync_audience"
    form = AskMode

    def offered(self, audience: Audience) -> bool:
        return (
            audience.provisioned_at is not None and not Audit.objects.filter(audience=audience, ended_at=None).exists()
        )

    def consequence(self, audience: Audience) -> str:
        return (
            f"The members of {audience} are compared person by person: Lytics' scan, this service's"
            f" {count(audience.lane.member_count, 'member')}, and what ODP shows. Nothing is changed. Reading is slow"
            " on purpose, so that deliveries keep their share of the accounts' limits. Without a Lytics API token only"
            " ODP is compared."
        )

    def do(self, audience: Audience, *, by: str, answers: dict[str, Any]) -> str | None:
        asked = audits.ask(audience, mode=answers["mode"], by=by, sample=answers["sample"])
        return f"{asked} has begun." if asked else None


class Repair(Verb[Audit]):
    name, label, icon, permission = "repair", "Repair", "healing", "audiences.resync_audience"
    form = AskReason

    def offered(self, audit: Audit) -> bool:
        return audit.ended_at is not None and resends.may_repair(audit)

    def seen(self, audit: Audit) -> str:
        return str(repairs.plan(audit))

    def consequence(self, audit: Audit) -> str:
        plan = repairs.plan(audit)
        many = (
            f" That is more than {settings.REPAIR_PERCENT:g} % of the {words.people(audit):,} people compared."
            " Look at the differences first: if the audit is wrong, so is the repair."
            if repairs.needs_confirmation(audit)
            else ""
        )
        left = f" {count(plan.left_out, 'person')} can't be repaired and stay." if plan.left_out else ""
        return (
            f"{number(plan.enter)} enter and {number(plan.leave)} leave as Lytics had them when its scan began, and"
            f" {number(plan.again)} are sent to ODP again as this service has them.{left} Newer events win. Another"
            f" audit follows.{many}"
        )

    def do(self, audit: Audit, *, by: str, answers: dict[str, Any]) -> str | None:
        done = resends.repair(audit, by=by, reason=answers["reason"])
        return f"The repair by {audit} has begun." if done else None

    def also(self, request: HttpRequest, audit: Audit) -> None:
        verbs.record(request, [audit.audience], f"Began the repair by {audit}.")


class Stop(Verb[Audit]):
    name, label, icon, permission = "stop", "Stop", "stop_circle", "audiences.resync_audience"

    def offered(self, audit: Audit) -> bool:
        return audit.ended_at is None

    def consequence(self, audit: Audit) -> str:
        return f"{audit} ends without a result. {words.result(audit)}."

    def do(self, audit: Audit, *, by: str, answers: dict[str, Any]) -> str | None:
        return f"Stopped {audit}." if audits.stop(audit, by=by) else None


@admin.register(Audit)
class AuditAdmin(HistoryAdmin[Audit]):
    pruned_as = "audits"
    verbs = (Repair(), Stop())
    empty_words = "No audit yet. Press Audit on the page of an audience."
    list_display = ("audit", "pill", "mode", "asked", "by", "audience_link", "install_link")
    sortable_by = ("asked",)
    list_filter = (ByPeriod, "mode", "install")
    time_field = "asked_at"
    change_form_template = "audiences/audit.html"
    fields = (
        ("audience_link", "install_link"),
        ("mode", "by"),
        ("asked_at", "ended_at"),
        "sizes",
        "compared",
        "array_identifiers",
        "note",
    )
    readonly_fields = ("audience_link", "install_link", "sizes", "compared", "array_identifiers")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Audit]:
        return super().get_queryset(request).select_related("install", "audience__lane", "audience__install")

    def page_context(self, request: HttpRequest, audit: Audit) -> dict[str, Any]:
        plain = request.user.has_perm(FIND_CUSTOMER)
        found = list(Difference.objects.filter(audit=audit)[: SHOWN + 1])
        return {
            "state": state_of(audit),
            "differences": [
                (one.identifier if plain else mask(one.identifier), one.get_kind_display(), one.why)
                for one in found[:SHOWN]
            ],
            "more": max(0, audit.differing - SHOWN) if len(found) > SHOWN else 0,
        }

    @admin.display(description="audit")
    def audit(self, audit: Audit) -> SafeString | str:
        return link(audit, f"{audit.pk:,}")

    @admin.display(description="result")
    def pill(self, audit: Audit) -> SafeString:
        return pill_and_why(state_of(audit))

    @admin.display(ordering="id")
    def asked(self, audit: Audit) -> Any:
        return ago(audit.asked_at)

    @admin.display(description="sizes")
    def sizes(self, audit: Audit) -> str:
        return words.sizes(audit)

    @admin.display(description="people compared")
    def compared(self, audit: Audit) -> str:
        return (
            f"{audit.compared_with_lytics:,} with Lytics, {audit.compared_with_odp:,} with ODP,"
            f" {audit.moving:,} left out because an event came after the audit began"
        )

    @admin.display(description="array identifiers")
    def array_identifiers(self, audit: Audit) -> str:
        return words.arrays(audit) or "the identifier field held no list"

    @admin.display(description="audience")
    def audience_link(self, audit: Audit) -> SafeString | str:
        return link(audit.audience)

    @admin.display(description="install")
    def install_link(self, audit: Audit) -> SafeString | str:
        return link(audit.install)


def section(audience: Audience) -> dict[str, Any]:
    """The audits of an audience for its page: the newest one, the one whose result counts if that is another, and a
    chart with the differences of each.
    """
    of_audience = Audit.objects.filter(audience=audience).select_related("install", "audience__lane")
    newest = list(of_audience.order_by("-id")[:DRAWN])
    listed = dict.fromkeys([*newest[:1], *of_audience.filter(is_newest=True)])
    ended = [one for one in reversed(newest) if one.ended_at and not one.problem and one.mode != Audit.Mode.QUICK]
    most = max((one.differing for one in ended), default=0)
    return {
        "listed": [(one, state_of(one)) for one in listed],
        "most": most,
        "width": DRAWN * SLOT,
        "height": HEIGHT,
        "bars": [_bar(one, place, most) for place, one in enumerate(ended)],
        "url": list_url(Audit, audience__id__exact=audience.pk),
    }


def _bar(audit: Audit, place: int, most: int) -> dict[str, Any]:
    """The bar of one audit in the chart. An audit without differences has a low bar, so that it is visible."""
    height = max(LOW, round(HEIGHT * audit.differing / most)) if audit.differing else LOW
    return {
        "title": words.result(audit),
        "url": url_of(audit),
        "bad": bool(audit.differing),
        "x": place * SLOT,
        "y": HEIGHT - height,
        "width": SLOT - 4,
        "height": height,
    }
