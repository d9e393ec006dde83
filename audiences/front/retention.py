"""Front page alerts about rows that should be deleted by now."""

from audiences.admin.pages import list_url
from audiences.front.alerts import Alert
from audiences.models import Audience
from audiences.operations import overdue

KIND = "retention"


def alerts() -> list[Alert]:
    found, why = overdue.overdue(), "The database grows while they stay."
    behind = list_url(Audience, state="behind")
    alerts = []
    if found.kinds:
        what = overdue.late(found.kinds)
        alerts.append(Alert(KIND, what, why, found.since_at, behind, "held", todo=overdue.LATE_CURE, cause="late"))
    if found.parts:
        what = overdue.held(found.parts)
        alerts.append(Alert(KIND, what, why, None, behind, "held", todo=overdue.HELD_CURE, cause="parts"))
    return alerts
