"""Front page alerts for audiences that ODP no longer has as this service made them."""

from audiences.admin import together
from audiences.admin.pages import list_url, number, url_of
from audiences.annotations import required
from audiences.front.alerts import Alert, Bulk, Extent, and_more, buttons, listed_rows
from audiences.models import Audience, Twin
from audiences.operations import twins

_TITLES = {
    Twin.Finding.MISSING: "is missing in ODP",
    Twin.Finding.CHANGED: "was changed in ODP",
    Twin.Finding.WRONG: "can't be used in ODP",
}
_TODO = {
    Twin.Finding.MISSING: "It is created again, and its memberships are sent again where they were lost. If it was"
    " deleted on purpose, pause it: looks skip paused audiences.",
    Twin.Finding.CHANGED: "Take ours writes our definition again. Accept definition keeps the one in ODP.",
    Twin.Finding.WRONG: "Correct in ODP what the reason names. The next look sees it.",
}
KIND = "twin"
REMEDIES = ("take-ours", "accept", "pause")


def alerts(extent: Extent) -> list[Alert]:
    found, total = listed_rows(twins.differing(), extent)
    url = list_url(Audience, state="differs", **extent.of_install)
    return [*map(_alert, found), *and_more(KIND, total, "audiences differ in ODP", url, extent)]


def _alert(twin: Twin) -> Alert:
    audience, finding = twin.audience, Twin.Finding(twin.finding)
    both = f" ODP has {twin.found}; ours is {twin.ours}." if twin.found else ""
    return Alert(
        KIND,
        f"{audience} {_TITLES[finding]} ({audience.install})",
        f"{twin.problem}{both} Deliveries continue.",
        twin.since_at,
        url_of(audience),
        "held" if finding is Twin.Finding.MISSING else "bad",
        todo=_TODO[finding],
        offers=(buttons(audience, *REMEDIES),),
        install=audience.install_id,
        cause=finding,
        bulk=_resync_all(twin) if finding is Twin.Finding.MISSING else None,
    )


def _resync_all(twin: Twin) -> Bulk:
    label = f"Resync all {number(required(twin, 'alike', int))}"
    scope = (twin.audience.install_id, twin.finding)
    return Bulk(scope, "audiences.resync_audience", label, "cloud_upload", together.url(twin.audience, "resync-alike"))
