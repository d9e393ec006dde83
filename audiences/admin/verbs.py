"""The buttons. Each is a Verb: a permission, a page that states the consequence, a POST, and an entry in the history.

The confirmation is a separate page, part of which unfold's dialog shows, so that it also works without scripts. It
carries a version tag of the data shown and of the object's history. If either has changed since, the button does
nothing and says so: a second press of the same page does nothing either.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from django import forms
from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db.models import CharField, Model, OuterRef, Subquery
from django.db.models.functions import Cast
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.encoding import iri_to_uri
from django.utils.http import url_has_allowed_host_and_scheme, urlencode
from unfold.widgets import UnfoldAdminTextareaWidget

from audiences.admin.addresses import address

if TYPE_CHECKING:
    from audiences.admin.pages import OperatorAdmin

M = TypeVar("M", bound=Model)

STALE = "This changed after the page was loaded, so nothing was done. The page now shows the current state."


class NoQuestion(forms.Form):
    """The form of a verb that only needs a confirmation."""


class AskReason(forms.Form):
    reason = forms.CharField(
        max_length=500,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3, "autofocus": True}),
        help_text="Shown to the next person who opens this page.",
    )


class Failure(str):
    """Returned by ``Verb.do``: it was done, and what came of it is bad news. Shown as a warning."""


class Verb(Generic[M]):
    """One button on the page of one thing. A subclass says when it is offered, what it will do, and does it."""

    name: str
    label: str
    icon: str
    permission: str
    danger = False
    form: type[forms.Form] = NoQuestion

    def offered(self, instance: M) -> bool:
        return True

    def seen(self, instance: M) -> str:
        """The facts on which the person decides, as text: the version tag of the confirmation page."""
        return ""

    def consequence(self, instance: M) -> str:
        raise NotImplementedError

    def asks(self, instance: M, answers: Any) -> forms.Form:
        """The form, with choices that depend on the thing where there are any. ``answers`` as a browser sent them."""
        return self.form(answers)

    def wrong(self, instance: M, answers: dict[str, Any]) -> str:
        """An error in the answers that the form can't find; empty without one."""
        return ""

    def do(self, instance: M, *, by: str, answers: dict[str, Any]) -> str | None:
        """Do it and return what was done in words; None when another person was quicker."""
        raise NotImplementedError

    def also(self, request: HttpRequest, instance: M) -> None:
        """What the next page has to know."""

    def too_late(self, instance: M) -> str:
        """The message when the verb isn't offered any more, or its facts have changed."""
        return STALE

    def pressed(self, admin: "OperatorAdmin[M]", request: HttpRequest, pk: int) -> HttpResponse:
        return press(admin, self, request, pk)

    def version_tag(self, instance: M) -> str:
        return version_tag(self, [instance])


def version_tag(verb: Verb[M], instances: Sequence[M]) -> str:
    """A digest of the facts of each object, and of its newest entry in *Who did what*."""
    newest = newest_entries(instances)
    facts = ",".join(f"{each.pk} {verb.seen(each)} {newest.get(str(each.pk))}" for each in instances)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def newest_entries(instances: Sequence[Model]) -> dict[str | None, int]:
    """The id of the newest entry in the history of each object that has one, by the object's id."""
    if not instances:
        return {}
    kind = ContentType.objects.get_for_model(instances[0])
    entries = LogEntry.objects.filter(content_type=kind, object_id=Cast(OuterRef("pk"), CharField()))
    # Each is found by the index of the histories, without reading the older ones.
    newest = type(instances[0])._base_manager.filter(pk__in=[each.pk for each in instances]).order_by()
    return {
        str(pk): entry
        for pk, entry in newest.values_list("pk", Subquery(entries.order_by("-action_time").values("pk")[:1]))
        if entry is not None
    }


@dataclass(frozen=True)
class Button:
    """``asks`` is true for a button that opens a confirmation; the others link to another page."""

    label: str
    icon: str
    url: str
    danger: bool = False
    asks: bool = True


def buttons(
    admin: "OperatorAdmin[M]",
    request: HttpRequest,
    instance: M,
    *,
    back: str = "",
    only: Sequence[str] = (),
    known_offered: bool = False,
) -> list[Button]:
    """The verbs (or those of them that are named) that this person may use now.

    ``known_offered`` says that the caller's query selected only things that offer these verbs, so none is asked again.
    """
    query = urlencode({"next": back or request.get_full_path()})
    return [
        Button(verb.label, verb.icon, f"{_url(admin, verb, instance)}?{query}", verb.danger)
        for verb in admin.verbs
        if (not only or verb.name in only)
        and request.user.has_perm(verb.permission)
        and (known_offered or verb.offered(instance))
    ]


def _name(admin: "OperatorAdmin[M]", verb: Verb[M]) -> str:
    return f"{admin.opts.app_label}_{admin.opts.model_name}_{verb.name}"


def _url(admin: "OperatorAdmin[M]", verb: Verb[M], instance: M) -> str:
    return address(f"admin:{_name(admin, verb)}", instance.pk)


def urls(admin: "OperatorAdmin[M]") -> list[URLPattern]:
    return [
        path(f"<int:pk>/{verb.name}/", view(admin, partial(verb.pressed, admin)), name=_name(admin, verb))
        for verb in admin.verbs
    ]


def view(admin: "OperatorAdmin[M]", function: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponse]:
    """A view of the admin site: logged in, never cached, with CSRF."""

    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return function(request, *args, **kwargs)

    return cast(Callable[..., HttpResponse], admin.admin_site.admin_view(wrapped))


def press(admin: "OperatorAdmin[M]", verb: Verb[M], request: HttpRequest, pk: int) -> HttpResponse:
    """GET states the consequence, POST does it."""
    instance, back = approach(admin, verb, request, pk)
    form = verb.asks(instance, request.POST if request.method == "POST" else None)
    if not verb.offered(instance) or (
        request.method == "POST" and request.POST.get("seen") != verb.version_tag(instance)
    ):
        return go(request, back, warning=verb.too_late(instance))
    if request.method == "POST" and form.is_valid() and (wrong := verb.wrong(instance, form.cleaned_data)):
        form.add_error(None, wrong)
    if request.method == "POST" and form.is_valid():
        done = verb.do(instance, by=request.user.get_username(), answers=form.cleaned_data)
        if done is None:
            return go(request, back, warning=verb.too_late(instance))
        reason = form.cleaned_data.get("reason")
        record(request, [instance], f"{done} Reason: {reason}" if reason else done)
        verb.also(request, instance)
        return go(request, back, **{"warning" if isinstance(done, Failure) else "success": done})
    return confirmation(
        request,
        admin,
        title=f"{verb.label}: {instance}",
        label=verb.label,
        danger=verb.danger,
        consequence=verb.consequence(instance),
        form=form,
        hidden={"seen": verb.version_tag(instance), "next": back},
        back=back,
        opts=admin.opts,
        original=instance,
    )


def approach(admin: "OperatorAdmin[M]", verb: Verb[M], request: HttpRequest, pk: int) -> tuple[M, str]:
    """The object of the button and the page to return to. Checks the permission."""
    if not request.user.has_perm(verb.permission):
        raise PermissionDenied
    instance = admin.get_queryset(request).filter(pk=pk).first()
    if instance is None:
        raise Http404
    return instance, way_back(request, address(f"admin:{admin.opts.app_label}_{admin.opts.model_name}_change", pk))


def confirmation(request: HttpRequest, admin: "OperatorAdmin[M]", **context: Any) -> HttpResponse:
    """The page that asks. It posts to its own address."""
    return TemplateResponse(
        request,
        "audiences/confirm.html",
        {
            **admin.admin_site.each_context(request),
            "action": request.get_full_path(),
            "form": NoQuestion(),
            **context,
        },
    )


def way_back(request: HttpRequest, otherwise: str) -> str:
    asked = request.POST.get("next") or request.GET.get("next") or ""
    return asked if url_has_allowed_host_and_scheme(asked, allowed_hosts={request.get_host()}) else otherwise


def go(request: HttpRequest, to: str, *, success: str = "", warning: str = "") -> HttpResponse:
    if success:
        messages.success(request, success)
    if warning:
        messages.warning(request, warning)
    if request.headers.get("HX-Request"):
        # A redirect would be followed into the dialog.
        return HttpResponse(headers={"HX-Redirect": iri_to_uri(to)})
    return HttpResponseRedirect(to)


def with_others(past: str, things: int) -> str:
    """The entry in the history of each of several things, such as "Released, with 2 others."; ``past`` says what."""
    others = things - 1
    return f"{past}, with {others} {'other' if others == 1 else 'others'}." if others > 0 else f"{past}."


def record(request: HttpRequest, instances: Sequence[Model], what: str, *, flag: int = CHANGE) -> None:
    """Who did what, in the history of each thing. ``flag`` is the kind of action, as Django names it."""
    user = cast(User, request.user)
    LogEntry.objects.bulk_create(
        LogEntry(
            user_id=user.pk,
            content_type_id=ContentType.objects.get_for_model(instance).pk,
            object_id=str(instance.pk),
            object_repr=str(instance)[:200],
            action_flag=flag,
            change_message=what,
        )
        for instance in instances
    )
