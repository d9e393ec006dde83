"""Front page alerts for guided changes that wait for long or have ended incomplete."""

from datetime import timedelta

from django.db.models import Exists, OuterRef, Q
from django.utils.timezone import now

from audiences.admin.pages import count, list_url, url_of
from audiences.front.alerts import Alert, Extent, and_more, listed_rows
from audiences.models import GuidedChange, Install

KIND = "change"
# A step that waits takes minutes, and with millions of customers up to an hour.
LATE = timedelta(hours=2)
# An incomplete change is listed until the install has another one, for this time at most.
LISTED = timedelta(days=30)


def alerts(extent: Extent) -> list[Alert]:
    at = now()
    has_later = Exists(GuidedChange.objects.filter(install=OuterRef("install"), pk__gt=OuterRef("pk")))
    waits = Q(ended_at=None, phase_since_at__lt=at - LATE) & ~Q(waits_for="")
    is_incomplete = Q(ended_at__gt=at - LISTED, stopped_by="") & (~Q(problem="") | ~Q(left_out={})) & ~has_later
    changes = GuidedChange.objects.filter(waits | is_incomplete).select_related("install", "audience").order_by("-pk")
    found, total = listed_rows(changes, extent, by="install")
    more = and_more(KIND, total, "guided changes wait or are incomplete", list_url(Install), extent, tone="held")
    return [*map(_alert, found), *more]


def _alert(change: GuidedChange) -> Alert:
    what = f"The change of {change.install} from {change.before} to {change.after}"
    if change.ended_at is None:
        return Alert(
            KIND,
            f"{what} waits",
            f"It is {change.get_phase_display()}. {change.waits_for}",
            change.phase_since_at,
            url_of(change.audience or change.install),
            tone="held",
            todo="End what it waits for. Or press Stop on the install's page.",
            install=change.install_id,
            cause="waits",
        )
    left_out = (
        f"{count(len(change.left_out), 'audience')} {'is' if len(change.left_out) == 1 else 'are'} left as before."
    )
    return Alert(
        KIND,
        f"{what} is incomplete",
        change.problem or left_out,
        change.ended_at,
        url_of(change.install),
        tone="held",
        todo="The install's page says what was done and what was left. End the cause, then begin the change again, or"
        " audit and repair the audiences that were left.",
        install=change.install_id,
        cause="incomplete",
    )
