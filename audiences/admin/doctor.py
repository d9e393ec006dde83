"""The page of the doctor: all checks of one install, run when the page is opened and not with any other page.

The page opens at once and then loads the lines, because the checks may take up to a minute. Without JavaScript, a link
runs them.
"""

from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.timezone import now

from audiences.admin import verbs
from audiences.admin.pages import OperatorAdmin, ago, url_of
from audiences.insight.state import State
from audiences.models import Install
from audiences.operations import doctor

# The permission to view an install isn't enough, because the checks send requests to ODP, Lytics and the public
# address.
PERMISSION = "audiences.test_install"


def links(request: HttpRequest, install: Install) -> list[tuple[str, str, str]]:
    """The link of the install's page, for people who may open it."""
    return [("Doctor", "", _url(install))] if request.user.has_perm(PERMISSION) else []


def _url(install: Install) -> str:
    return reverse("admin:audiences_install_doctor", args=[install.pk])


def urls(admin: OperatorAdmin[Install]) -> list[URLPattern]:
    def view(request: HttpRequest, pk: int) -> HttpResponse:
        if not request.user.has_perm(PERMISSION):
            raise PermissionDenied
        install = Install.objects.filter(pk=pk).first()
        if install is None:
            raise Http404
        is_fragment = request.headers.get("HX-Request") == "true"
        context: dict[str, Any] = {"url": _url(install), "back": url_of(install)}
        if not is_fragment:
            context |= admin.admin_site.each_context(request)
            context |= {"title": f"Doctor: {install}", "opts": admin.opts, "original": install}
        if is_fragment or "now" in request.GET:
            context |= look(install)
        return TemplateResponse(request, f"audiences/doctor{'_lines' if is_fragment else ''}.html", context)

    return [path("<int:pk>/doctor/", verbs.view(admin, view), name="audiences_install_doctor")]


def look(install: Install) -> dict[str, Any]:
    """Run the checks. Returns the lines by group, in each group the most urgent first."""
    lines = doctor.examine(doctor.Case(install))
    groups = []
    for group in doctor.GROUPS:
        own = sorted((line for line in lines if line.group == group), key=lambda line: doctor.WORDS.index(line.state))
        groups.append(
            (group, [(line, State(line.state), ago(line.at) if line.at else "") for line in doctor.merged(own)])
        )
    counts = [(sum(line.state == word for line in lines), State(word)) for word in doctor.WORDS]
    return {"groups": groups, "counts": counts, "checked_at": now()}
