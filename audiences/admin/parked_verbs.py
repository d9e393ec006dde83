"""What a person can do to a parked item: release it, discard it, or see it unmasked."""

from collections.abc import Sequence
from typing import Any

from django import forms
from django.http import HttpRequest
from unfold.widgets import UnfoldAdminSelectWidget

from audiences.admin.parked_reasons import STAYED, can_be_released
from audiences.admin.verbs import AskReason, Failure, NoQuestion, Verb
from audiences.insight import evidence
from audiences.models import Install, Parked
from audiences.operations import parked_items


class AskField(forms.Form):
    """Choice of the profile field by which items are read: the install's field, or a field that came with the items."""

    read_by = forms.ChoiceField(
        label="Read the identifier from",
        required=False,
        widget=UnfoldAdminSelectWidget,
        help_text="Only these items are read by that field. The install itself keeps using its own field."
        " Choose a field"
        " whose values are the same customer ids as those the install sends to ODP.",
    )

    def __init__(self, answers: Any, *, own: str, others: Sequence[str]) -> None:
        super().__init__(answers)
        choice = self.fields["read_by"]
        assert isinstance(choice, forms.ChoiceField)
        choice.choices = [("", f"{own} (the install's field)"), *((name, name) for name in others if name != own)]


def ask_field(answers: Any, install: Install, reason: str) -> AskField | NoQuestion:
    """The question for items of a reason, where another field can help."""
    if reason not in evidence.WITHOUT:
        return NoQuestion(answers)
    others = evidence.candidates(install.pk, reason)
    return AskField(answers, own=install.identifier_field, others=others)


def read_by(field: str) -> str:
    return f" Read by the field {field}." if field else ""


class Release(Verb[Parked]):
    name, label, icon, permission = "release", "Release", "outbox", "audiences.release_parked"

    def asks(self, parked: Parked, answers: Any) -> forms.Form:
        return ask_field(answers, parked.install, parked.reason)

    def offered(self, parked: Parked) -> bool:
        return parked.closed_at is None and can_be_released(parked.reason)

    def consequence(self, parked: Parked) -> str:
        if parked.sequence is not None:
            return (
                "The change is sent to ODP again with its original time, so something newer about this customer"
                f" still wins. ODP rejected it: {parked.detail}"
            )
        return (
            "The item is read again with the install's current settings. What can be read is queued for ODP; if"
            " something still can't be read, the item stays here."
        )

    def do(self, parked: Parked, *, by: str, answers: dict[str, Any]) -> str | None:
        field = str(answers.get("read_by", ""))
        released = parked_items.release_one(parked.pk, by=by, identifier_field=field)
        if released is None:
            return None
        return "Released." + read_by(field) if released else Failure(STAYED + read_by(field))


class Discard(Verb[Parked]):
    name, label, icon, permission = "discard", "Discard", "delete", "audiences.discard_parked"
    danger = True
    form = AskReason

    def offered(self, parked: Parked) -> bool:
        return parked.closed_at is None

    def consequence(self, parked: Parked) -> str:
        return (
            "The item never reaches ODP and can't be released any more. The row stays, with your name"
            " and your reason in its history."
        )

    def do(self, parked: Parked, *, by: str, answers: dict[str, Any]) -> str | None:
        return "Discarded." if parked_items.discard([parked.pk], by=by) else None


class Reveal(Verb[Parked]):
    name, label, icon, permission = "reveal", "Show unmasked", "visibility", "audiences.reveal_parked"

    def consequence(self, parked: Parked) -> str:
        return "The item is shown once as it was received, with its personal data. This is logged in its history."

    def do(self, parked: Parked, *, by: str, answers: dict[str, Any]) -> str | None:
        return "Shown unmasked, this once."

    def also(self, request: HttpRequest, parked: Parked) -> None:
        request.session["unmasked"] = parked.pk
