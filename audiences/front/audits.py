"""Front page alerts for audiences on which the newest audit found differences, or had no result."""

from django.db.models import Q
from django.http import HttpRequest
from django.urls import reverse

from audiences.admin import verbs
from audiences.admin.pages import ago, list_url, url_of
from audiences.agreement import words
from audiences.front.alerts import ALERTS_LISTED, Alert, page
from audiences.models import Audit


def alerts(request: HttpRequest) -> list[Alert]:
    bad = Audit.objects.filter(Q(differing__gt=0) | ~Q(problem=""), is_newest=True)
    found = list(bad.select_related("audience__install", "install").order_by("-id")[: ALERTS_LISTED + 1])
    listed = [_alert(request, audit) for audit in found[:ALERTS_LISTED]]
    if len(found) > ALERTS_LISTED:
        listed.append(Alert("Further audiences differ", "", "", list_url(Audit)))
    return listed


def _alert(request: HttpRequest, audit: Audit) -> Alert:
    what = "could not be audited" if audit.problem else "differs between Lytics, this service and ODP"
    return Alert(
        f"{audit.audience} {what} ({audit.install})",
        f"The last audit {words.result(audit)}." if not audit.problem else audit.problem,
        ago(audit.ended_at),
        url_of(audit),
        "held" if audit.problem else "bad",
        todo="Look at the people and the reasons, then press Repair." if not audit.problem else "Audit it again.",
        buttons=verbs.buttons(page(Audit), request, audit, back=reverse("admin:index"), only=("repair",)),
    )
