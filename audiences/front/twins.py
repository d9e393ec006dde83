"""Front page alerts for audiences that ODP no longer has as this service made them."""

from django.http import HttpRequest
from django.urls import reverse

from audiences.admin import verbs
from audiences.admin.pages import ago, list_url, url_of
from audiences.front.alerts import ALERTS_LISTED, Alert, page
from audiences.models import Audience, Twin
from audiences.operations import twins

_TITLES = {
    Twin.Finding.MISSING: "is missing in ODP",
    Twin.Finding.CHANGED: "was changed in ODP",
    Twin.Finding.WRONG: "can't be used in ODP",
}
_TODO = {
    Twin.Finding.MISSING: "It is made again, and its memberships are sent again where they were lost. If it was deleted"
    " on purpose, pause it. Looks no longer touch it then.",
    Twin.Finding.CHANGED: "Take ours writes our definition again. Accept definition keeps the one in ODP.",
    Twin.Finding.WRONG: "Correct in ODP what the reason names. The next look sees it.",
}
MENDS = ("take-ours", "accept", "pause")


def alerts(request: HttpRequest) -> list[Alert]:
    here = reverse("admin:index")
    found = twins.differing(ALERTS_LISTED + 1)
    listed = [_alert(request, twin, here) for twin in found[:ALERTS_LISTED]]
    if len(found) > ALERTS_LISTED:
        listed.append(Alert("Further audiences differ in ODP", "", "", list_url(Audience, state="differs")))
    return listed


def _alert(request: HttpRequest, twin: Twin, here: str) -> Alert:
    audience, finding = twin.audience, Twin.Finding(twin.finding)
    both = f" ODP has {twin.found}; ours is {twin.ours}." if twin.found else ""
    return Alert(
        f"{audience} {_TITLES[finding]} ({audience.install})",
        f"{twin.problem}{both} Deliveries continue.",
        ago(twin.since_at),
        url_of(audience),
        "held" if finding is Twin.Finding.MISSING else "bad",
        todo=_TODO[finding],
        buttons=verbs.buttons(page(Audience), request, audience, back=here, only=MENDS),
    )
