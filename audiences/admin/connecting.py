"""The check list of an install's page, which refreshes automatically, and the test customer."""

from dataclasses import dataclass
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.timezone import now

from audiences import naming
from audiences.admin import verbs
from audiences.admin.pages import OperatorAdmin, ago, link, url_of
from audiences.admin.verbs import Verb
from audiences.insight import checklist, state, trials
from audiences.insight.state import State
from audiences.models import Install, Receipt, Trial
from odp.mechanisms import MECHANISMS

TITLES = {
    trials.CALLED: "Webhook called",
    trials.STORED: "Event stored",
    trials.MADE: "Audience in ODP",
    trials.CLAIMED: "Claimed by a worker",
    trials.TAKEN: "Accepted by ODP",
    trials.SHOWN: "Shown by ODP over GraphQL",
}
LEGS = {trials.IN: "enters", trials.OUT: "leaves"}
WORDS = {trials.DONE: "done", trials.AROUND: "skipped", trials.FAILED: "failing"}
# Seconds between two looks of an open page.
POLL_CHECKS, POLL_TRIAL = 3, 1


class SendTestCustomer(Verb[Install]):
    name, label, icon, permission = "try-out", "Send a test customer", "science", "audiences.test_install"

    def offered(self, install: Install) -> bool:
        return install.enabled and trials.running(install) is None and not trials.is_retired(install)

    def seen(self, install: Install) -> str:
        latest = trials.latest(install)
        return f"{latest and latest.pk} {install.odp_api_key} {install.odp_host} {install.mechanism}"

    def consequence(self, install: Install) -> str:
        odp_id = naming.odp_id(trials.SLUG, prefix=install.odp_prefix)
        made = f"{MECHANISMS[install.mechanism].creates} {odp_id}"
        return (
            "One made-up customer enters an audience of its own and leaves it again, by the same path as Lytics'"
            f" customers, and each step is shown with its time. In ODP this creates, unless they exist, {made};"
            " and with each press one new customer, who stays there outside the audience. No other customer and no"
            " other audience is touched."
        )

    def do(self, install: Install, *, by: str, answers: dict[str, Any]) -> str | None:
        trial = trials.start(install, by=by)
        return f"{trial.identifier} was sent as a test customer. The steps are below." if trial else None


@dataclass(frozen=True)
class Hop:
    leg: str
    title: str
    state: State
    words: str
    ms: int | None = None


def look(admin: OperatorAdmin[Install], request: HttpRequest, install: Install) -> dict[str, Any]:
    """The check list and the test customer. An open page asks again until all lines are done."""
    lines = checklist.lines(install)
    trial = trials.latest(install)
    is_running = trial is not None and trial.closed_at is None
    is_complete = all(line.is_done for line in lines)
    every = POLL_TRIAL if is_running else 0 if is_complete else POLL_CHECKS
    return {
        "checks": [(line, ago(line.at) if line.at else "", _more(line)) for line in lines],
        "checks_done": sum(line.is_done for line in lines),
        "is_complete": is_complete,
        "trial": trial,
        "trial_state": state.of_trial(trial) if trial else None,
        "hops": _hops(trial) if trial else [],
        "poll": reverse("admin:audiences_install_connecting", args=[install.pk]) if every else "",
        "every": every,
        "try_out": verbs.buttons(admin, request, install, back=url_of(install), only=(SendTestCustomer.name,)),
    }


def _more(line: checklist.Line) -> Any:
    """A way to the thing that the line is about."""
    if line.about is None:
        return ""
    return link(line.about, "last call" if isinstance(line.about, Receipt) else line.about)


def _hops(trial: Trial) -> list[Hop]:
    """The completed steps, and the one in progress."""
    hops, expected = [], [(leg, hop) for leg, names in trials.LEGS.items() for hop in names]
    before = 0
    for passed in trial.hops:
        before = 0 if passed["hop"] == trials.CALLED else before
        result = State(WORDS[passed["how"]])
        hops.append(
            Hop(LEGS[passed["leg"]], TITLES[passed["hop"]], result, passed["words"], max(0, passed["ms"] - before))
        )
        before = passed["ms"]
    broken = any(passed["how"] == trials.FAILED for passed in trial.hops)
    if trial.closed_at is None and not broken and len(hops) < len(expected):
        leg, hop = expected[len(hops)]
        since = max(0, round((now() - trial.moved_at).total_seconds()))
        hops.append(Hop(LEGS[leg], TITLES[hop], State("waiting"), f"since {since} s"))
    return hops


def urls(admin: OperatorAdmin[Install]) -> list[URLPattern]:
    """The fragment that an open page asks for again and again."""

    def fragment(request: HttpRequest, pk: int) -> HttpResponse:
        if not admin.has_view_permission(request):
            raise PermissionDenied
        install = Install.objects.filter(pk=pk).first()
        if install is None:
            raise Http404
        if not request.headers.get("HX-Request"):
            return HttpResponseRedirect(url_of(install))
        return TemplateResponse(request, "audiences/connecting.html", look(admin, request, install))

    return [path("<int:pk>/connecting/", verbs.view(admin, fragment), name="audiences_install_connecting")]
