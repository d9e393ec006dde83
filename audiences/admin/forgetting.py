"""Two buttons on the page of a customer, per install: forget the customer, and download the customer's data."""

import json

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldBooleanWidget

from audiences.admin import verbs
from audiences.admin.parameters import whole_number
from audiences.insight import customer_export
from audiences.models import Install
from audiences.operations import forgetting

PERMISSION = "audiences.forget_customer"
CONSEQUENCE = (
    "The customer is removed from the log, the ledger, parked items, requests and reports of {install}. Counts stay."
    " This can't be undone. Without exits, ODP keeps the customer's memberships. If Lytics sends an event about the"
    " customer later, this service stores it like that of a new customer."
)
OFF = (
    " The install is off: with exits, the customer is forgotten when it is on again and ODP has accepted them. You can"
    " still ask without exits then."
)
BEGUN = (
    "The customer is being forgotten. This takes some seconds; with exits, until ODP has accepted them, and some"
    " minutes if an earlier request got no response. An exit that ODP rejects is parked; release or discard it."
)
UNDER_WAY = "This customer is being forgotten already."


class Ask(forms.Form):
    tell_odp = forms.BooleanField(
        label="Send exits to ODP first", required=False, initial=True, widget=UnfoldBooleanWidget
    )
    reason = forms.CharField(
        max_length=500,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text="Stored with the proof. Don't name the person.",
    )


def may(request: HttpRequest) -> bool:
    return request.user.has_perm(PERMISSION)


def forget(request: HttpRequest, identifier: str, install_id: str) -> HttpResponse:
    """Show the confirmation page or, when it was answered, start forgetting."""
    install = _install(request, install_id)
    form = Ask(request.POST if "reason" in request.POST else None)
    if not form.is_valid():
        return TemplateResponse(
            request,
            "audiences/confirm.html",
            {
                **admin.site.each_context(request),
                "title": "Forget this customer",
                "label": "Forget",
                "danger": True,
                "consequence": CONSEQUENCE.format(install=install) + ("" if install.enabled else OFF),
                "form": form,
                "hidden": {"note": request.POST["note"], "forget": str(install.pk)},
                "action": reverse("find_customer"),
                "back": reverse("find_customer"),
            },
        )
    asked = forgetting.ask(
        install,
        identifier,
        tell_odp=form.cleaned_data["tell_odp"],
        by=request.user.get_username(),
        reason=form.cleaned_data["reason"],
    )
    if asked is None:
        return verbs.go(request, reverse("find_customer"), warning=UNDER_WAY)
    verbs.record(request, [asked], f"Asked to forget a customer. Reason: {asked.reason}")
    return verbs.go(request, reverse("find_customer"), success=BEGUN)


def export(request: HttpRequest, identifier: str, install_id: str) -> HttpResponse:
    """Return the customer's data as a JSON file. The download is logged without the identifier."""
    install = _install(request, install_id)
    verbs.record(request, [install], "Downloaded everything about one customer.")
    content = json.dumps(customer_export.export(install, identifier), indent=2, ensure_ascii=False)
    headers = {"Content-Disposition": 'attachment; filename="customer.json"'}
    return HttpResponse(content, content_type="application/json", headers=headers)


def _install(request: HttpRequest, install_id: str) -> Install:
    if not may(request):
        raise PermissionDenied
    number = whole_number(install_id)
    install = None if number is None else Install.objects.filter(pk=number).first()
    if install is None:
        raise Http404
    return install
