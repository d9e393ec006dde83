"""Front page alerts for audiences that left the Lytics job or were deleted in Lytics."""

from audiences.admin.pages import count, list_url, url_of
from audiences.front.alerts import Alert, Extent, and_more, buttons, listed_rows
from audiences.models import Audience, JobPresence
from audiences.operations import job_looks

KIND = "left_job"


def alerts(extent: Extent) -> list[Alert]:
    found, total = listed_rows(job_looks.gone(), extent)
    url = list_url(Audience, state="left", **extent.of_install)
    more = and_more(KIND, total, "audiences left the Lytics job", url, extent, tone="held")
    return [*map(_alert, found), *more]


def _alert(presence: JobPresence) -> Alert:
    audience, install = presence.audience, presence.audience.install
    if presence.is_deleted:
        what, why = "was deleted in Lytics", "Lytics no longer has it."
        todo = "Press Retire: its members leave it in ODP, and it is deleted there."
    else:
        what, why = "left the Lytics job", "No job in Lytics sends it to this install any more."
        todo = (
            "Press Choose audiences to add it to the job again. Or press Retire: its members leave it in ODP, and it is"
            " deleted there."
        )
    members = count(audience.lane.member_count, "member")
    return Alert(
        KIND,
        f"{audience} {what} ({install})",
        f"{why} The job was last seen with it at {presence.seen_at:%Y-%m-%d %H:%M} UTC. Until somebody decides, ODP"
        f" keeps its {members} as they are.",
        presence.gone_at,
        url_of(audience),
        tone="held",
        todo=todo,
        offers=(*([] if presence.is_deleted else [buttons(install, "connect")]), buttons(audience, "retire")),
        install=install.pk,
        cause=audience.segment_id,
    )
