"""One button for several objects: it shows their names and number, asks, and presses the button of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils.http import urlencode

from audiences.admin import verbs
from audiences.admin.addresses import address
from audiences.admin.pages import count, list_url, number
from audiences.admin.verbs import Verb

if TYPE_CHECKING:
    from audiences.admin.pages import OperatorAdmin

M = TypeVar("M", bound=Model)

# The most objects that a dialog names; it gives the number of the others.
NAMED = 10


@dataclass(frozen=True)
class Together(Generic[M]):
    """A verb for all objects with the same trouble.

    ``alike`` returns these objects for the one whose id is in the URL. ``what`` is their kind in the singular, ``past``
    the verb's past participle. ``consequence`` returns the text of the dialog, given the objects and their names.
    """

    verb: Verb[M]
    name: str
    what: str
    past: str
    alike: Callable[[M], Sequence[M]]
    consequence: Callable[[Sequence[M], str], str]


def urls(admin: "OperatorAdmin[M]", *offered: Together[M]) -> list[URLPattern]:
    """The pages of these buttons, one per object: ``<id>/<name>/``."""

    def page(together: Together[M], request: HttpRequest, pk: int) -> HttpResponse:
        if not request.user.has_perm(together.verb.permission):
            raise PermissionDenied
        first = admin.get_queryset(request).filter(pk=pk).first()
        if first is None:
            raise Http404
        things = together.alike(first)
        return press(
            admin,
            together.verb,
            request,
            things,
            what=together.what,
            past=together.past,
            consequence=together.consequence(things, names(things)),
            back=verbs.way_back(request, list_url(admin.model)),
        )

    return [
        path(f"<int:pk>/{one.name}/", verbs.view(admin, partial(page, one)), name=_name(admin.model, one.name))
        for one in offered
    ]


def url(thing: Model, name: str) -> str:
    """The address of the button for ``thing`` and all objects with its trouble. It returns to the page Now."""
    page = address(f"admin:{_name(type(thing), name)}", thing.pk)
    return f"{page}?{urlencode({'next': address('admin:index')})}"


def _name(model: type[Model], name: str) -> str:
    return f"{model._meta.app_label}_{model._meta.model_name}_{name}"


def names(things: Sequence[Model]) -> str:
    """The names of the first objects, and the number of the others."""
    more = f" and {number(len(things) - NAMED)} more" if len(things) > NAMED else ""
    return ", ".join(str(thing) for thing in things[:NAMED]) + more


def press(
    admin: "OperatorAdmin[Any]",
    verb: Verb[Any],
    request: HttpRequest,
    things: Sequence[Any],
    *,
    what: str,
    past: str,
    consequence: str,
    back: str,
    hidden: dict[str, Any] | None = None,
) -> HttpResponse:
    """GET shows the consequence, POST presses the verb of each object, with an entry in the history of each.

    ``hidden`` are the form fields of the list action that selected the objects; None for a button.
    """
    if not request.user.has_perm(verb.permission):
        raise PermissionDenied
    version_tag = verbs.version_tag(verb, things)
    is_answer = "seen" in request.POST
    form = verb.form(request.POST if is_answer else None)
    if not things or (is_answer and request.POST["seen"] != version_tag):
        return verbs.go(request, back, warning=verbs.STALE)
    if is_answer and form.is_valid():
        done = _press_each(verb, request, things, past=past, answers=form.cleaned_data)
        if not done:
            return verbs.go(request, back, warning=verbs.STALE)
        return verbs.go(request, back, success=f"{past}: {count(done, what)}.")
    return verbs.confirmation(
        request,
        admin,
        title=f"{verb.label}: {count(len(things), what)}",
        label=f"{verb.label} ({number(len(things))})",
        consequence=consequence,
        form=form,
        hidden={"seen": version_tag, "next": back, **(hidden or {})},
        selected=[thing.pk for thing in things] if hidden else [],
        back=back,
        opts=admin.opts,
    )


def _press_each(
    verb: Verb[Any], request: HttpRequest, things: Sequence[Any], *, past: str, answers: dict[str, Any]
) -> int:
    """Press the button of each. Returns the number done; they are recorded even if an error ends the work midway."""
    done: list[Any] = []
    try:
        for thing in things:
            if verb.do(thing, by=request.user.get_username(), answers=answers):
                done.append(thing)
    finally:
        if done:
            reason = answers.get("reason")
            message = verbs.with_others(past, len(done))
            verbs.record(request, done, f"{message} Reason: {reason}" if reason else message)
    return len(done)
