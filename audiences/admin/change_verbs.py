"""Guided changes on the page of an install: the progress of a change, and the buttons that begin and stop one."""

from typing import Any

from django import forms
from unfold.widgets import (
    UnfoldAdminPasswordWidget,
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
)

from audiences.admin.pages import count, number
from audiences.admin.verbs import AskReason, Verb
from audiences.delivery.account_switch import Connection
from audiences.delivery.odp_account import name_of
from audiences.insight import evidence
from audiences.models import AudienceMove, GuidedChange, Install
from audiences.operations import account_changes, changes, identifier_changes
from odp.mechanisms import MECHANISMS, Passthrough

# The most audiences that the page of an install lists as left out, with their reasons.
SHOWN = 20


def targets(install: Install) -> list[str]:
    """The mechanisms to which a change can begin now."""
    if Passthrough.name == install.mechanism:
        return []
    return [name for name in MECHANISMS if name != Passthrough.name and not changes.problem_of(install, to=name)]


class AskMechanism(AskReason):
    mechanism = forms.ChoiceField(widget=UnfoldAdminSelectWidget)
    field_order = ("mechanism", "reason")

    def __init__(self, install: Install, answers: Any = None) -> None:
        super().__init__(answers)
        names = targets(install)
        chosen = self.fields["mechanism"]
        assert isinstance(chosen, forms.ChoiceField)
        chosen.choices = [(name, MECHANISMS[name].label) for name in names]


class ChangeMechanism(Verb[Install]):
    """Begin a change to another mechanism. Its confirmation is the dry run."""

    name, label, icon, permission = "change-mechanism", "Change mechanism", "swap_horiz", "audiences.guide_change"

    def offered(self, install: Install) -> bool:
        return bool(targets(install))

    def asks(self, instance: Install, answers: Any) -> forms.Form:
        return AskMechanism(instance, answers)

    def seen(self, install: Install) -> str:
        return f"{install.mechanism} {targets(install)}"

    def consequence(self, install: Install) -> str:
        return " ".join(_dry_run(install, name) for name in targets(install))

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        change = changes.begin(install, to=answers["mechanism"], by=by, reason=answers["reason"])
        return f"The {change} has begun." if change else None


def _dry_run(install: Install, to: str) -> str:
    plan = changes.plan(install, to=to)
    left_out = (
        f" {count(plan.left_out, 'audience')} that {'is' if plan.left_out == 1 else 'are'} paused, blocked, retired or"
        " of an accepted definition will be left as it is."
        if plan.left_out
        else ""
    )
    least = f" and at least {number(round(plan.seconds))} s" if plan.seconds >= 1 else ""
    longest = f", at least {number(round(plan.largest_seconds))} s for the largest" if plan.largest_seconds >= 1 else ""
    return (
        f"{MECHANISMS[to].label}: {count(plan.audiences, 'audience')} with {count(plan.members, 'member')} will be"
        f" changed, one after another. Their ledgers are sent again: {count(plan.requests, 'request')}{least}, and more"
        f" for customers who have left.{left_out} While the ledger of an audience is sent, ODP shows it as it was"
        f" when that began{longest}; then a sample is verified in ODP, and only then its definition is replaced. Events"
        f" from Lytics are delivered throughout. {plan.stays.capitalize()} of each audience stays in ODP and is no"
        " longer written."
    )


LEAVE, EMPTY = "leave", "empty"


class AskAccount(AskReason):
    region = forms.ChoiceField(
        label="ODP region", required=False, choices=Install.Region.choices, widget=UnfoldAdminSelectWidget
    )
    odp_api_key = forms.CharField(
        label="ODP private API key",
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "off", "spellcheck": "false"}),
        help_text="Of the other account: in ODP under Settings > APIs > Private. Stored encrypted, never shown again.",
    )
    odp_host = forms.CharField(
        label="ODP host",
        required=False,
        max_length=200,
        widget=UnfoldAdminTextInputWidget,
        help_text="Only when it differs from the region's host, for example a sandbox.",
    )
    old = forms.ChoiceField(
        label="The old account",
        choices=[
            (LEAVE, "Leave it as it is"),
            (EMPTY, "Empty it after the switch"),
        ],
        help_text="Left as it is, its audiences keep their members and are no longer updated. To empty it, exits are"
        " sent for all customers, and then its real-time audiences are deleted.",
        initial=LEAVE,
        widget=UnfoldAdminRadioSelectWidget,
    )
    field_order = ("region", "odp_api_key", "odp_host", "old", "reason")

    def __init__(self, answers: Any = None) -> None:
        # The page behind the dialog has fields of the same names.
        super().__init__(answers, auto_id="other_%s")


def _connection(answers: dict[str, Any]) -> Connection:
    return Connection(answers["region"], answers["odp_host"].strip().rstrip("/"), answers["odp_api_key"].strip())


class ChangeAccount(Verb[Install]):
    """Begin a change to another ODP account. Its confirmation is the dry run."""

    name, label, icon, permission = "change-account", "Change account", "move_up", "audiences.guide_change"
    form = AskAccount

    def offered(self, install: Install) -> bool:
        return not changes.problem_of_account_now(install)

    def seen(self, install: Install) -> str:
        return name_of(install)

    def consequence(self, install: Install) -> str:
        plan = account_changes.plan(install)
        least = f", at least {number(round(plan.seconds))} s" if plan.seconds >= 1 else ""
        accepted = (
            f" {count(plan.accepted, 'audience')} with a definition that a person accepted"
            f" {'gets' if plan.accepted == 1 else 'get'} this service's definition there."
            if plan.accepted
            else ""
        )
        return (
            f"This install sends to {name_of(install)}. {count(plan.audiences, 'audience')} with"
            f" {count(plan.members, 'member')} will be created in the other account and filled from the ledger:"
            f" {count(plan.requests, 'request')}{least}. A sample of each is verified there. Events from Lytics are"
            f" sent to the present account until {number(round(plan.waits_seconds))} s after the last copied member."
            " Then the install is switched, and what changed in the meantime is sent to the other account."
            f"{accepted} Customers whom ODP has as members from before this service are not in the ledger, so they are"
            " not copied. Retirements and requests to forget a customer wait until the change has ended."
        )

    def wrong(self, install: Install, answers: dict[str, Any]) -> str:
        return changes.problem_of_account(install, _connection(answers))

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        change = changes.begin_account(
            install, _connection(answers), empties=answers["old"] == EMPTY, by=by, reason=answers["reason"]
        )
        return f"The {change} has begun." if change else None


class AskField(AskReason):
    identifier_field = forms.CharField(
        label="The new identifier field",
        max_length=100,
        widget=UnfoldAdminTextInputWidget,
        validators=Install._meta.get_field("identifier_field").validators,
        help_text="Select it under Export Fields of the Lytics job first, and an array under Fields to Trigger, too.",
    )
    field_order = ("identifier_field", "reason")

    def __init__(self, answers: Any = None) -> None:
        # The page behind the dialog has a field of the same name.
        super().__init__(answers, auto_id="other_%s")


class ChangeIdentifier(Verb[Install]):
    """Begin a change to another identifier field. Its confirmation has the evidence and the dry run."""

    name, label, icon, permission = "change-identifier", "Change identifier", "badge", "audiences.guide_change"
    form = AskField

    def offered(self, install: Install) -> bool:
        return not changes.problem_of_identifier(install)

    def seen(self, install: Install) -> str:
        return install.identifier_field

    def consequence(self, install: Install) -> str:
        plan = identifier_changes.plan(install)
        return (
            f"{_evidence(install)} {count(plan.members, 'membership')} in {count(plan.audiences, 'audience')} are known"
            f" by {install.identifier_field}. First every call is read by the new field; messages without it are"
            " parked. Then each audience is compared with all its members in Lytics, and the differences are sent:"
            f" members enter under the new field and leave under {install.identifier_field}. Until then an audience has"
            " both. Members without the new field leave. Each audience is compared once more at its end."
        )

    def wrong(self, install: Install, answers: dict[str, Any]) -> str:
        if answers["identifier_field"] == install.identifier_field:
            return "The install has this field already."
        return changes.problem_of_identifier(install) or identifier_changes.problem_of(
            install, answers["identifier_field"]
        )

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        change = changes.begin_identifier(install, to=answers["identifier_field"], by=by, reason=answers["reason"])
        return f"The {change} has begun." if change else None


def _evidence(install: Install) -> str:
    """The fields in a sample of Lytics' members, in words."""
    found = identifier_changes.evidence(install)
    if found.problem:
        return found.problem
    fields = "; ".join(
        f"{each.name} in {number(each.found)}"
        + (f", as an array in {number(each.arrays)}" if each.arrays else "")
        + f", {number(each.different)} different"
        + (f", {number(each.shared)} members share one" if each.shared else "")
        for each in found.candidates
    )
    of_messages = evidence.of(install).other_fields_in_words
    return f"Of {count(found.sample, 'member')} read from Lytics: {fields or 'no other field'}. {of_messages}".strip()


class StopChange(Verb[Install]):
    name, label, icon, permission = "stop-change", "Stop the change", "stop_circle", "audiences.guide_change"

    def offered(self, install: Install) -> bool:
        change = changes.running(install)
        return change is not None and not change.stopped_by

    def seen(self, install: Install) -> str:
        change = changes.running(install)
        return f"{change and change.pk}"

    def consequence(self, install: Install) -> str:
        change = changes.running(install)
        assert change is not None
        if change.kind == GuidedChange.Kind.ACCOUNT:
            return _consequence_of_stop(change)
        if change.kind == GuidedChange.Kind.IDENTIFIER:
            return (
                "The current audience is finished first. In the others, customers known by"
                f" {change.before} stay members. A change back, or Audit and Repair on the page of each audience, makes"
                " them agree with Lytics."
                if change.switched_at
                else "No call was read by the new field yet, so nothing changes."
            )
        now = (
            f" {change.audience} is brought back to what it was: its ledger is sent again with the mechanism before."
            " If its definition in ODP is being replaced already, it is finished first."
            if change.audience
            else ""
        )
        return (
            f"{count(change.done, 'audience')} of {number(change.total)} {'is' if change.done == 1 else 'are'} done and"
            f" stay with the new mechanism; the others keep the old one.{now} Nothing is lost. Another change can"
            " continue or go back later."
        )

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        change = changes.running(install)
        return f"The {change} is being stopped." if change and changes.stop(change, by=by) else None


def _consequence_of_stop(change: GuidedChange) -> str:
    if change.switched_at is None:
        return (
            "The install keeps its account, and no event was missed there. What was created in the other account stays"
            " there and is no longer updated; delete it in ODP, or begin another change to that account later."
        )
    return (
        "The install is switched already. The members are completed in the new account first. Audiences in the old"
        " account that aren't emptied yet stay there and are no longer updated."
    )


VERBS = (ChangeMechanism(), ChangeAccount(), ChangeIdentifier(), StopChange())


def card(install: Install) -> dict[str, Any] | None:
    """The newest change, for the page of the install."""
    change = GuidedChange.objects.filter(install=install).select_related("audience", "install").first()
    if change is None:
        return None
    return {"change": change, "words": _words(change), "left_out": sorted(change.left_out.items())[:SHOWN]}


def _words(change: GuidedChange) -> str:
    done = _progress(change)
    if change.ended_at is not None:
        return f"{done}. {change.problem}".strip()
    stopping = f" {change.stopped_by} stops it." if change.stopped_by else ""
    now = f" {change.audience}: {change.get_phase_display()}." if change.audience else ""
    waits_for = change.waits_for if change.install.enabled else "The install is switched off."
    return f"{done}.{stopping}{now} {waits_for}".strip()


def _progress(change: GuidedChange) -> str:
    if change.kind != GuidedChange.Kind.ACCOUNT:
        return f"{number(change.done)} of {count(change.total, 'audience')} done"
    stages = list(AudienceMove.objects.filter(change=change).values_list("stage", "rejected"))
    copied = sum(stage != AudienceMove.Stage.COPY for stage, _ in stages)
    rejected = sum(rejected for _, rejected in stages)
    words = f"{number(copied)} of {count(max(change.total, len(stages)), 'audience')} copied"
    if change.switched_at is not None:
        words += f", {number(change.done)} complete in the new account"
    if change.empties and change.done:
        removed = sum(stage == AudienceMove.Stage.DONE for stage, _ in stages)
        words += f", {number(removed)} emptied in the old one"
    return f"{words}, {count(rejected, 'customer')} rejected by ODP" if rejected else words
