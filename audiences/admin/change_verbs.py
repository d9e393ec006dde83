"""Guided changes on the page of an install: the progress of a change, and the buttons that begin and stop one."""

from typing import Any

from django import forms
from unfold.widgets import UnfoldAdminSelectWidget

from audiences.admin.pages import count, number
from audiences.admin.verbs import AskReason, Verb
from audiences.models import GuidedChange, Install
from audiences.operations import changes
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
    least = f" and at least {number(round(plan.seconds))} s" if plan.seconds else ""
    longest = f", at least {number(round(plan.largest_seconds))} s for the largest" if plan.largest_seconds else ""
    return (
        f"{MECHANISMS[to].label}: {count(plan.audiences, 'audience')} with {count(plan.members, 'member')} will be"
        f" changed, one after another. Their ledgers are sent again: {count(plan.requests, 'request')}{least}, and more"
        f" for customers who have left.{left_out} While the ledger of an audience is sent, ODP shows it as it was"
        f" when that began{longest}; then a sample is verified in ODP, and only then its definition is replaced. Events"
        f" from Lytics go on throughout. {plan.stays.capitalize()} of each audience stays in ODP and is no longer"
        " written."
    )


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
        now = (
            f" {change.audience} is brought back to what it was: its ledger is sent again with the mechanism before."
            " If its definition in ODP is being replaced already, it is finished first."
            if change.audience
            else ""
        )
        return (
            f"{count(change.done, 'audience')} of {number(change.total)} {'is' if change.done == 1 else 'are'} done and"
            f" stay with the new mechanism; the others keep the old one.{now} Nothing is lost. Another change can"
            " go on, or back, later."
        )

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        change = changes.running(install)
        return f"The {change} is being stopped." if change and changes.stop(change, by=by) else None


VERBS = (ChangeMechanism(), StopChange())


def card(install: Install) -> dict[str, Any] | None:
    """The newest change, for the page of the install."""
    change = GuidedChange.objects.filter(install=install).select_related("audience").first()
    if change is None:
        return None
    return {"change": change, "words": _words(change), "left_out": sorted(change.left_out.items())[:SHOWN]}


def _words(change: GuidedChange) -> str:
    done = f"{number(change.done)} of {count(change.total, 'audience')} done"
    if change.ended_at is not None:
        return f"{done}. {change.problem}".strip()
    stopping = f" {change.stopped_by} stops it." if change.stopped_by else ""
    now = f" {change.audience}: {change.get_phase_display()}." if change.audience else ""
    return f"{done}.{stopping}{now} {change.waits_for}".strip()
