"""The form of an install: validation of changes, and consequences that a person has to confirm."""

import hashlib
from typing import TYPE_CHECKING, Any

from django import forms
from unfold.widgets import UnfoldAdminPasswordWidget

from audiences.admin.opened import OUTDATED, one_line
from audiences.encryption import UNREADABLE, Unreadable
from audiences.models import Install
from audiences.operations import guards

EDITABLE = (
    *("name", "region", "odp_api_key", "identifier_field", "mechanism", "enabled", "odp_host", "odp_prefix"),
    *("allow_top_level_identifier", "forget_missing_identifiers", "batch_size", "requests_per_second", "max_in_flight"),
    *("delay_limit_minutes", "silence_limit_hours", "parked_limit_per_hour"),
)


if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[Install]
else:
    _ModelForm = forms.ModelForm  # Django's forms are generic for the type checker only


class InstallForm(_ModelForm):
    odp_api_key = forms.CharField(
        label="ODP private API key",
        required=False,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "off", "spellcheck": "false"}),
        help_text="In ODP under Settings > APIs > Private. Stored encrypted and never shown again.",
    )

    understood = forms.BooleanField(label="I have read what this change does", required=False)
    # The fingerprint of the row when the page was opened.
    opened = forms.CharField(widget=forms.HiddenInput, required=False)

    class Meta:
        model = Install
        exclude = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before = Install.objects.get(pk=self.instance.pk) if self.instance.pk else None
        self.initial["opened"] = _fingerprint(self.before)
        if self.instance.pk:
            self.fields["odp_api_key"].help_text = (
                f"The stored one {UNREADABLE}. Put the old encryption key back, or enter the API key again."
                if isinstance(self.instance.odp_api_key, Unreadable)
                else "Stored. Leave this empty to keep it, or enter another one."
            )
            self.fields["odp_api_key"].widget.attrs["placeholder"] = "•" * 24
            # The entered key is compared with the stored key, which is never part of the form.
            self.initial["odp_api_key"] = ""
        else:
            self.fields["odp_api_key"].required = True
        if "odp_prefix" in self.fields:
            self.fields["odp_prefix"].required = False

    def clean_name(self) -> str:
        return one_line(self.cleaned_data["name"])

    def clean_odp_api_key(self) -> str:
        return self.cleaned_data["odp_api_key"].strip() or self.instance.odp_api_key

    def clean_odp_prefix(self) -> str:
        return self.cleaned_data["odp_prefix"].strip() or self.instance.odp_prefix

    @property
    def changed_data(self) -> list[str]:
        kept = ("understood", "opened", *(() if self.data.get("odp_prefix") else ("odp_prefix",)))
        return [name for name in super().changed_data if name not in kept]

    def _post_clean(self) -> None:
        """Add errors and the consequences to confirm. Runs after the fields are set on the instance."""
        super()._post_clean()  # type: ignore[misc] # Django's hook, which the stubs lack
        if self.before is not None and self.data.get("opened", "") != _fingerprint(self.before):
            self.add_error(None, OUTDATED)
        if self.errors:
            return
        if self.before is not None:
            for name, why in guards.refusals(self.before, self.instance).items():
                self.add_error(name, why)
        for question in guards.questions(self.before, self.instance):
            if not self.cleaned_data.get("understood"):
                self.add_error(question.field, f"{question.consequence} Tick “I have read …” below to do it.")


def _fingerprint(install: Install | None) -> str:
    """A digest of the fields that people can change. Columns that workers write change often, so they are left out."""
    if install is None:
        return ""
    values = [getattr(install, name) for name in EDITABLE]
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]
