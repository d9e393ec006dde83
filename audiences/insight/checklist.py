"""The check list of an install: five or six lines, which show whether its two accounts are connected.

Each line is done, waiting or failing, and is derived from a few stored rows. A failing line names the cure.
Only the last line is about test customers; the other lines ignore them.
"""

import re
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.db.models import Count, F, Max, Min, Model, OuterRef, Q, QuerySet
from django.db.models.functions import Coalesce

from audiences.insight import blocks, evidence, heartbeats, probes, state, trials
from audiences.insight.state import State
from audiences.models import Audience, Event, Install, Lane, Parked, Receipt
from audiences.receiving import reasons_to_wait, tokens
from lytics import reasons

# The number of newest identifiers whose form is checked.
IDENTIFIERS = 300
# 32 hexadecimal characters without dashes, as ODP creates them, or with the prefix that mobile SDKs write.
VUID = re.compile(r"[0-9a-f]{32}|vuid_[0-9a-z]{27}", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """``at`` is when the step was done, ``todo`` how to complete it, ``about`` the object with the details."""

    name: str
    title: str
    state: State
    at: datetime | None = None
    todo: str = ""
    about: Model | None = None

    @property
    def is_done(self) -> bool:
        return self.state.word == "done"


def lines(install: Install) -> list[Line]:
    """The steps in the order in which they happen."""
    audiences = Audience.objects.filter(install=install).exclude(segment_id=trials.SEGMENT_ID)
    return [
        _key(install, audiences),
        _call(install),
        _identifier(install),
        *_vuids(install, audiences),
        _made(install, audiences),
        _shown(install),
    ]


def _done(name: str, title: str, at: datetime | None, why: str = "", about: Model | None = None) -> Line:
    return Line(name, title, State("done", why), at=at, about=about)


def _waiting(name: str, title: str, why: str, todo: str = "", about: Model | None = None) -> Line:
    return Line(name, title, State("waiting", why), todo=todo, about=about)


def _failing(name: str, title: str, why: str, todo: str = "", about: Model | None = None) -> Line:
    return Line(name, title, State("failing", why, alert=True), todo=todo, about=about)


# --- ODP accepts the API key ---------------------------------------------------------------------------------------


def _key(install: Install, audiences: QuerySet[Audience]) -> Line:
    name, title = "key", "ODP accepts the API key"
    if install.backoff_until_at is not None and state.needs_key(install):
        return _failing(name, title, install.backoff_reason, state.remedy(install))
    made_at = audiences.aggregate(at=Max("provisioned_at"))["at"]
    # A test customer that ODP has shown was sent with the key, so ODP accepted it.
    used_at = max((at for at in (made_at, probes.proof_of(install).at) if at), default=None)
    asked_at = install.key_asked_at
    if asked_at and install.key_problem and (used_at is None or used_at < asked_at):
        return _failing(name, title, install.key_problem)
    if accepted := [at for at in (asked_at, used_at) if at]:
        return _done(name, title, max(accepted))
    return _waiting(name, title, "ODP has not been asked.", "Press Check the key.")


# --- Lytics calls --------------------------------------------------------------------------------------------


def calls_of_lytics(install: Install | OuterRef) -> QuerySet[Receipt]:
    """Newest first, without the calls of test customers, which this service makes."""
    return Receipt.objects.filter(install=install).exclude(job=trials.JOB)


def _call(install: Install) -> Line:
    name, title = "call", "Calls from Lytics"
    last = calls_of_lytics(install).order_by("-id").first()
    if last is not None:
        return _done(name, title, last.received_at, about=last)
    if not install.enabled:
        return _failing(
            name,
            title,
            "The install is off, so calls are answered 503; Lytics retries later.",
            "Switch Enabled on and save.",
        )
    if not tokens.live(install):
        return _failing(name, title, "There is no live token, so every call is answered 401.", "Press New token.")
    if rejecting := reasons_to_wait.in_words(install):
        return _failing(name, title, rejecting, "See Now.")
    why = "No call yet."
    if not settings.PUBLIC_URL.startswith("https://"):
        why = "No call yet. This server's public address isn't https, so Lytics can't reach it (setting PUBLIC_URL)."
    return _waiting(
        name,
        title,
        why,
        "The job's log in Lytics says why. 401: the authorization header was not copied completely, or belongs to"
        " another install. 405: HTTPMethod is not POST. No answer: the webhook URL is not this one, or a firewall keeps"
        " Lytics out. Nothing to send: select Existing Users.",
    )


# --- the calls name customers --------------------------------------------------------------------------------


def _identifier(install: Install) -> Line:
    """Judged by the newest messages only, because earlier ones may have been read by another identifier field."""
    field = install.identifier_field
    name, title = "identifier", f"Customer identifier {field} found"
    seen = evidence.of(install)
    summary = f"{field} in {seen.found:,} of the last {count_of(seen.messages)}. {seen.other_fields_in_words}".strip()
    if seen.found * 2 >= seen.messages > 0:
        return _done(name, title, seen.newest_at, summary)
    if seen.found:
        return _failing(name, title, summary, _another_field(field))
    for reason in (
        *evidence.WITHOUT,
        *sorted({reason for call in seen.calls for reason in call.parked_reasons}),
    ):
        for call in seen.calls:
            if reason in call.parked_reasons:
                return _parked(install, name, title, reason, call, seen)
    if seen.messages:
        return _failing(name, title, f"{field} is present but blank.", "Choose another field for the identifier.")
    if seen.calls:
        return _waiting(
            name, title, "The calls so far contained no messages.", "Select Existing Users in the Lytics job."
        )
    changed_at = install.identifier_since_at
    if changed_at is None:
        return _waiting(name, title, "")
    since = f"{changed_at:%Y-%m-%d %H:%M} UTC"
    return _waiting(name, title, f"No message since the identifier field was changed to {field} at {since}.")


def count_of(messages: int) -> str:
    return f"{messages:,} message{'' if messages == 1 else 's'}"


def _another_field(field: str) -> str:
    exported = "Lytics ID (_id)" if field == "_id" else field
    return (
        f"In the Lytics job, on its Configuration page, add {exported} to Export Fields; or enter one of the fields"
        " that came as the customer profile identifier field name below. What is parked can be released by any field"
        " that came with it."
    )


def _parked(install: Install, name: str, title: str, reason: str, call: Receipt, read: evidence.Evidence) -> Line:
    item = Parked.objects.filter(receipt=call, reason=reason).first()
    if reason not in (reasons.NO_IDENTIFIER, reasons.UNUSABLE_IDENTIFIER):
        why = f"Calls arrive, but nothing in them can be read: {reason.replace('_', ' ')}."
        return _failing(name, title, why, reasons.HINTS.get(reason, ""), item)
    field = install.identifier_field
    named = evidence.fields_seen(item.detail if item else "")
    seen = ", ".join(name for name in named if name != "segment_events")
    return _failing(
        name,
        title,
        (
            f"Calls arrive with {field}, and no identifier is in it. In data, there "
            if reason == reasons.UNUSABLE_IDENTIFIER
            else f"Calls arrive without it: {field} is looked for in data, and there "
        )
        + (f"came {seen}." if seen else "is no other field either.")
        + f" {field} in 0 of the last {count_of(read.messages)}. {read.other_fields_in_words}".rstrip(),
        _another_field(field),
        item,
    )


def _vuids(install: Install, audiences: QuerySet[Audience]) -> list[Line]:
    """A line when identifiers look like a VUID: SDKs query ODP for VUIDs under another identifier name.

    After a change of the identifier field, only identifiers count that Lytics has sent since.
    """
    busiest = audiences.filter(last_sequence__gt=0).order_by("-last_sequence").first()
    if busiest is None:
        return []
    newest = Event.objects.filter(audience=busiest, sequence__gt=busiest.last_sequence - IDENTIFIERS)
    if install.identifier_since_at is not None:
        newest = newest.filter(received_at__gte=install.identifier_since_at, forced=False)
    identifiers = newest.values_list("identifier", flat=True)
    alike = sum(VUID.fullmatch(identifier) is not None for identifier in identifiers)
    if alike * 2 <= len(identifiers):
        return []
    return [
        _failing(
            "vuid",
            "Identifiers look like VUIDs",
            f"{alike} of the newest {len(identifiers)} identifiers of {busiest} look like device ids of ODP (VUIDs)."
            " Optimizely's SDKs query device ids as vuid. This service writes fs_user_id and web_user_id, so the SDKs"
            " would find nobody.",
            "Export the Lytics field with the user id that your SDKs send, and enter it as the customer profile"
            " identifier field name below.",
            busiest,
        )
    ]


# --- audiences in ODP ----------------------------------------------------------------------------------------


def _made(install: Install, audiences: QuerySet[Audience]) -> Line:
    name, title = "audience", "Audiences in ODP"
    made = audiences.filter(provisioned_at__isnull=False).order_by("provisioned_at")
    first = made.first()
    if first is not None:
        is_read = Q(lane__paused_at=None, lane__retired_sequence=None, install__enabled=True)
        looks = made.aggregate(
            made=Count("pk"),
            looked=Count("twin"),
            # What no look has read is as new as its creation.
            oldest_at=Min(Coalesce("twin__looked_at", "provisioned_at")),
            differing=Count("pk", filter=Q(twin__finding__gt="")),
            # Now leaves out what no look reads any more.
            on_now=Count("pk", filter=is_read & Q(twin__finding__gt="")),
        )
        if looks["on_now"]:
            why = f"{looks['on_now']:,} of {looks['made']:,} are not as this service created them."
            return _failing(name, title, why, "Now names them and what to press.")
        if not looks["looked"]:
            return _done(name, title, first.provisioned_at, about=first)
        right = looks["made"] - looks["differing"]
        return _done(name, title, looks["oldest_at"], f"{right:,} as this service created them")
    if not audiences.exists():
        return _waiting(name, title, "It is created with the first event.")
    return _held(name, title, install, audiences) or _waiting(name, title, "It is being created.")


def _held(name: str, title: str, install: Install, audiences: QuerySet[Audience]) -> Line | None:
    """The reason why no audience of the install can be created in ODP."""
    if not install.enabled:
        return _failing(name, title, "The install is off.", "Switch Enabled on and save.")
    if install.backoff_until_at is not None:
        return _failing(name, title, f"The install is on hold: {install.backoff_reason}", state.remedy(install))
    lanes = Lane.objects.filter(audience__in=audiences).select_related("audience").order_by("audience")
    free = lanes.filter(blocked_at=None, paused_at=None)
    if not free.exists():
        lane = lanes.order_by(F("blocked_at").asc(nulls_last=True)).first()
        if lane and lane.blocked_at:
            todo = blocks.remedy(lane, where=" on the audience's page")
            return _failing(name, title, f"{lane.audience} is blocked: {lane.block_reason}", todo, lane.audience)
        if lane:
            why = f"{lane.audience} is paused by {lane.paused_by}: {lane.pause_reason}"
            return _waiting(name, title, why, "Resume it on its page.", lane.audience)
    on_hold = (
        audiences.filter(provisioned_at=None, hold_failures__gt=0, lane__in=free).order_by("hold_since_at").first()
    )
    if on_hold is not None and not audiences.filter(provisioned_at__isnull=False).exists():
        why = f"{on_hold} can't be created: {on_hold.hold_reason}"
        return _failing(name, title, why, state.remedy_of_hold(on_hold), on_hold)
    if free.filter(audience__last_sequence__gt=F("delivered_sequence")).exists() and not heartbeats.pulse().answering:
        todo = "Start the worker and beat processes, or look at their logs."
        return _failing(name, title, "No worker answers.", todo)
    return None


# --- ODP shows the test customer ----------------------------------------------------------------------------------


def _shown(install: Install) -> Line:
    """The result of the last completed test customer, sent by a person or by the schedule."""
    name, title = "shown", "Test customer shown in ODP (GraphQL)"
    proof = probes.proof_of(install)
    if proof.word == "none" and trials.is_retired(install):
        return _waiting(name, title, probes.RETIRED, probes.RETIRED_CURE)
    if proof.word == "none":
        return _waiting(name, title, probes.none_sent(install), "Press Send a test customer.")
    if not proof.is_bad:
        return _done(name, title, proof.at)
    last = f"ODP last showed one at {proof.at:%Y-%m-%d %H:%M} UTC." if proof.at else ""
    why = f"The test customer of {proof.since:%Y-%m-%d %H:%M} UTC failed. {proof.why} {last}".rstrip()
    if proof.word == "overdue":
        why = f"{proof.why} {last}"
    return _failing(name, title, why, "Fix the cause, then press Send a test customer.")
