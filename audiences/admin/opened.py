"""Checks of forms: an outdated page saves nothing, and a name contains no line breaks."""

import hashlib
from typing import TYPE_CHECKING, Any

from django import forms

from audiences import naming

if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[Any]
else:
    _ModelForm = forms.ModelForm  # Django's forms are generic for the type checker only

OUTDATED = "This was changed after the page was opened, so nothing was saved. Open it again to see the current values."


class AsOpened(_ModelForm):
    """A form that saves all its fields. An outdated page would undo what another person changed, such as a role."""

    # The fingerprint of ``facts`` when the page was opened. A page of the version before sends none.
    opened = forms.CharField(widget=forms.HiddenInput, required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.current = hashlib.sha256(repr(self.facts()).encode()).hexdigest()[:16] if self.instance.pk else ""
        self.initial["opened"] = self.current

    def facts(self) -> Any:
        """What people can change, as it is stored."""
        raise NotImplementedError

    def clean(self) -> dict[str, Any] | None:
        if self.data.get("opened", self.current) != self.current:
            self.add_error(None, OUTDATED)
        return super().clean()


def one_line(name: str) -> str:
    """The name; it is written to logs, terminals and subjects of e-mails. Raises ``ValidationError``."""
    if not naming.is_one_line(name):
        raise forms.ValidationError(naming.NOT_ONE_LINE)
    return name
