"""Find a customer: the events received for one identifier, their status, and the memberships here and in ODP.

A search is a POST, because a URL with an identifier ends up in logs and browser histories; a URL to share contains the
number of an event instead. A search is recorded before it is answered. Follow-up requests (older events, ODP's answer)
carry a signed note of the search and no text that was typed.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from django import forms
from django.contrib import admin
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.safestring import SafeString

from audiences.admin import forgetting, parked_groups, verbs
from audiences.admin.pages import OperatorAdmin, count, list_url, mask, pill, url_of
from audiences.admin.parameters import whole_number
from audiences.admin.parked_groups import Group
from audiences.delivery import odp_account
from audiences.delivery.leases import REJECTED_BY_ODP
from audiences.insight import customer_records, customers, horizons, state
from audiences.insight.customer_records import Place
from audiences.insight.customers import CustomerHistory, EventStatus, MembershipStatus
from audiences.insight.state import State
from audiences.models import Audience, Install, Membership, Parked
from audiences.operations.forgetting_proofs import proofs
from audiences.receiving import resend_causes
from lytics import reasons
from lytics.facts import IDENTIFIER_BYTES
from odp.graphql import MembershipAnswer, audiences_of

PERMISSION = "audiences.find_customer"
# The most seconds to wait for ODP. Only the part of the page with ODP's answer waits.
ODP_SECONDS = 5.0
# Seconds that the note of a search is valid: a working day with an open page.
NOTE_SECONDS = 12 * 3600
# Deliveries named for one event; the others are on the page of its audience.
DELIVERIES_NAMED = 3


class Search(forms.Form):
    identifier = forms.CharField(max_length=IDENTIFIER_BYTES)


@dataclass(frozen=True)
class Row:
    """An audience with what we say, what ODP says, and what to do about the difference."""

    membership: MembershipStatus
    ours: SafeString
    why: str
    theirs: SafeString | str
    difference: State | None
    buttons: Sequence[verbs.Button]


@dataclass(frozen=True)
class Happening:
    """One event on the page."""

    status: EventStatus
    state: State
    deliveries: Sequence[int]
    more: int
    cause: str


@dataclass(frozen=True)
class Part:
    """One install's part of the page. ``answer`` is ODP's, once it was asked."""

    install: Install
    rows: Sequence[Row]
    elsewhere: int
    happenings: Sequence[Happening]
    answer: MembershipAnswer | None

    @property
    def members(self) -> int:
        return sum(row.membership.is_member for row in self.rows)

    @property
    def pending(self) -> str:
        """Events that are not delivered yet, and separately the events of blocked or paused audiences."""
        waiting = {"behind a block": 0, "in a paused audience": 0, "to be delivered": 0}
        for row in self.rows:
            lane = row.membership.audience.lane
            where = "behind a block" if lane.blocked_at else "in a paused audience" if lane.paused_at else ""
            waiting[where or "to be delivered"] += row.membership.waiting
        parts = [
            f"{count(many, 'event')} {'waits' if many == 1 else 'wait'} {where}"
            for where, many in waiting.items()
            if many
        ]
        return ", ".join(parts)

    @property
    def differences(self) -> int:
        return sum(row.difference is not None for row in self.rows)


def find(request: HttpRequest) -> HttpResponse:
    """The form, the result, or, for htmx, the memberships of one install with ODP's answer."""
    if not request.user.has_perm(PERMISSION):
        raise PermissionDenied
    request.current_app = admin.site.name
    if "note" in request.POST:
        noted = _read_note(request)
        for name, answer in (("forget", forgetting.forget), ("export", forgetting.export)):
            if name in request.POST and noted is not None:
                return answer(request, noted, request.POST[name])
        return _page(request, form=Search()) if noted is None else _answer(request, noted)
    if request.method == "GET" and "event" in request.GET:
        return _shared(request, request.GET["event"])
    form = Search(request.POST if request.method == "POST" else None)
    if not form.is_valid():
        return _page(request, form=form)
    identifier = form.cleaned_data["identifier"]
    write_down(request, identifier)
    return _answer(request, identifier)


def _shared(request: HttpRequest, event: str) -> HttpResponse:
    """An address to share names an event, by number: no identifier comes into logs and histories."""
    audience, _, sequence = event.partition("-")
    identifier = None
    if audience.isascii() and sequence.isascii() and audience.isdigit() and sequence.isdigit():
        place = int(audience[:20]), int(sequence[:20])
        identifier = customers.of_event(*place) if _may_exist(*place) else None
    if identifier is None:
        return _page(request, form=Search(), lost=True)
    write_down(request, identifier)
    return _answer(request, identifier)


def _share(customer_history: CustomerHistory) -> str:
    """The address of a customer, by the newest event about them; empty when the log has none."""
    if not customer_history.statuses:
        return ""
    event = customer_history.statuses[0].event
    return f"{reverse('find_customer')}?event={event.audience_id}-{event.sequence}"


def _answer(request: HttpRequest, identifier: str) -> HttpResponse:
    ask = request.POST.get("ask", "")
    install_id = whole_number(ask)
    note = _note(request, identifier)
    if install_id is not None and request.headers.get("HX-Request"):
        customer_history = customers.customer_history(identifier, install_id=install_id)
        part = next(iter(_parts(request, customer_history, ask=install_id)), None)
        return TemplateResponse(request, "audiences/customer_standings.html", {"part": part, "note": note})
    customer_history = customers.customer_history(
        identifier, ask=install_id, before=_place(request.POST.get("before", ""))
    )
    return _page(
        request,
        form=Search(initial={"identifier": identifier}),
        customer_history=customer_history,
        parts=_parts(request, customer_history, ask=install_id),
        note=note,
        forgotten=proofs(identifier),
        share=_share(customer_history),
        is_older="before" in request.POST,
        older=json.dumps([customer_history.older.received_at.isoformat(), *customer_history.older[1:]])
        if customer_history.older
        else "",
        **({} if customer_history.memberships or customer_history.statuses else _nobody(identifier)),
    )


def _page(request: HttpRequest, **context: Any) -> HttpResponse:
    return TemplateResponse(
        request,
        "audiences/customer.html",
        {
            **admin.site.each_context(request),
            "title": "Find a customer",
            "may_forget": forgetting.may(request),
            "horizons": horizons.all_words("events", "runs"),
            "fields": sorted(set(Install.objects.values_list("identifier_field", flat=True))),
            **context,
        },
    )


def _place(text: str) -> Place | None:
    try:
        at, audience_id, sequence = json.loads(text)
        place = Place(forms.DateTimeField().to_python(at) or _never(), int(audience_id), int(sequence))
    except (ValueError, TypeError, OverflowError, RecursionError, forms.ValidationError):
        return None
    return place if _may_exist(place.audience_id, place.sequence) else None


def _may_exist(audience_id: int, sequence: int) -> bool:
    """Whether both numbers fit into their columns."""
    return 0 <= audience_id < 2**31 and 0 <= sequence < 2**63


def _never() -> Any:
    raise ValueError("no time")


# --- Record of searches ---------------------------------------------------------------------------------------


def write_down(request: HttpRequest, identifier: str) -> None:
    """Record a search for a customer in *Who did what*, with the identifier masked."""
    user = cast(User, request.user)
    LogEntry.objects.create(
        user_id=user.pk,
        content_type=ContentType.objects.get_for_model(Membership),
        object_repr=f"of {mask(identifier)}",
        action_flag=CHANGE,
        change_message="Looked for this customer.",
    )


def _note(request: HttpRequest, identifier: str) -> str:
    return signing.dumps([request.user.pk, identifier], salt=PERMISSION)


def _read_note(request: HttpRequest) -> str | None:
    try:
        by, identifier = signing.loads(request.POST["note"], salt=PERMISSION, max_age=NOTE_SECONDS)
    except (signing.BadSignature, ValueError):
        return None
    return str(identifier) if by == request.user.pk else None


# --- how it is shown -----------------------------------------------------------------------------------------


def _parts(request: HttpRequest, customer_history: CustomerHistory, *, ask: int | None) -> list[Part]:
    installs = {audience.install_id: audience.install for audience in customer_history.audiences.values()}
    parts = []
    causes = resend_causes.causes_of_events(status.event for status in customer_history.statuses)
    for pk, install in installs.items():
        audiences = [audience for audience in customer_history.audiences.values() if audience.install_id == pk]
        memberships = [
            membership for membership in customer_history.memberships if membership.audience.install_id == pk
        ]
        statuses = [status for status in customer_history.statuses if status.event.audience.install_id == pk]
        answer = _ask(install, customer_history.identifier, audiences) if ask == pk else None
        if answer is not None:
            memberships += _only_in_odp(answer, audiences, memberships)
        if memberships or statuses or answer is not None:
            rows = [_row(request, membership, answer) for membership in memberships]
            happenings = [_happening(f, causes.get((f.event.audience_id, f.event.sequence), "")) for f in statuses]
            parts.append(Part(install, rows, customer_history.totals[pk] - len(rows), happenings, answer))
    return parts


def _ask(install: Install, identifier: str, audiences: Iterable[Audience]) -> MembershipAnswer:
    odp_ids = [audience.odp_id for audience in audiences if audience.provisioned_at]
    return audiences_of(odp_account.client_of(install), identifier=identifier, odp_ids=odp_ids, seconds=ODP_SECONDS)


def _only_in_odp(
    answer: MembershipAnswer, audiences: Iterable[Audience], memberships: Iterable[MembershipStatus]
) -> list[MembershipStatus]:
    known = {membership.audience.pk for membership in memberships}
    in_odp = set().union(*(found or () for found in answer.by_name.values()))
    return [MembershipStatus(a, None, 0, None) for a in audiences if a.odp_id in in_odp and a.pk not in known]


def _row(request: HttpRequest, membership: MembershipStatus, answer: MembershipAnswer | None) -> Row:
    ours = state.of_membership(membership)
    theirs: SafeString | str = ""
    difference = None
    if answer is not None and answer.by_name:
        if membership.audience.provisioned_at is None:
            theirs = "not there yet"
        else:
            theirs = pill(state.of_answer(membership, answer))
            difference = state.of_difference(membership, answer)
    return Row(
        membership,
        pill(ours),
        ours.why,
        theirs,
        difference,
        _buttons(request, membership) if difference is not None and difference.alert else [],
    )


def _buttons(request: HttpRequest, membership: MembershipStatus) -> Sequence[verbs.Button]:
    instance, verb = (membership.parked, "release") if membership.parked else (membership.audience, "resync")
    page = admin.site.get_model_admin(type(instance))
    assert isinstance(page, OperatorAdmin)
    return verbs.buttons(page, request, instance, back=url_of(instance), only=(verb,))


def _happening(status: EventStatus, cause: str) -> Happening:
    deliveries = sorted({run.delivery_id for run in status.attempts if run.delivery_id}, reverse=True)
    return Happening(
        status,
        state.of_event(status),
        deliveries[:DELIVERIES_NAMED],
        max(0, len(deliveries) - DELIVERIES_NAMED),
        cause,
    )


def _nobody(identifier: str) -> dict[str, Any]:
    """Advice for an unknown identifier."""
    unread: dict[tuple[str, int], list[Group]] = {}
    for group in parked_groups.found():
        if group.reason != REJECTED_BY_ODP:
            unread.setdefault((group.install_name, group.install), []).append(group)
    return {
        "variants": customer_records.variants(identifier),
        "installs": Install.objects.order_by("name"),
        "aside": [_unread(groups) for _, groups in sorted(unread.items())],
    }


def _unread(groups: list[Group]) -> dict[str, str]:
    """The parked items of one install that were not read."""
    nameless = [group.rows for group in groups if group.reason == reasons.NO_IDENTIFIER]
    return {
        "install": groups[0].install_name,
        "count": parked_groups.sum_in_words(group.rows for group in groups),
        "nameless": parked_groups.sum_in_words(nameless) if nameless else "",
        "url": list_url(Parked, install__id__exact=groups[0].install),
    }
