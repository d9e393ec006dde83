"""Front page alerts for customers who should be forgotten by now. They name the install and never the customer."""

from datetime import timedelta

from django.db.models import Count, Min
from django.urls import reverse
from django.utils.timezone import now

from audiences.admin.pages import count, url_of
from audiences.front.alerts import Alert, Extent, and_more
from audiences.models import Audience, Forgotten
from audiences.operations import forgetting_proofs

KIND = "forgetting"
# Forgetting takes seconds; with an unanswered request before it, RECONCILE_AFTER_SECONDS.
LATE = timedelta(hours=1)


def alerts(extent: Extent) -> list[Alert]:
    late = Forgotten.objects.filter(ended_at=None, asked_at__lt=now() - LATE)
    if extent.install_id is not None:
        late = late.filter(install=extent.install_id)
    by_install = list(
        late.values("install").order_by().annotate(number=Count("pk"), oldest=Min("pk")).order_by("oldest")
    )
    listed = by_install[: extent.most]
    oldest = Forgotten.objects.select_related("install").in_bulk([row["oldest"] for row in listed])
    more = and_more(KIND, len(by_install), "installs: customers aren't forgotten yet", reverse("find_customer"), extent)
    return [*(_alert(oldest[row["oldest"]], row["number"]) for row in listed if row["oldest"] in oldest), *more]


def _alert(oldest: Forgotten, number: int) -> Alert:
    wait = forgetting_proofs.waits_for(oldest)
    audience = None if wait.audience_id is None else Audience.objects.get(pk=wait.audience_id)
    where = f" ({audience})" if audience else ""
    what = "isn't" if number == 1 else "aren't"
    return Alert(
        KIND,
        f"{count(number, 'customer')} {what} forgotten yet ({oldest.install})",
        f"The oldest request waits for {wait.why}{where}.",
        oldest.asked_at,
        url_of(audience) if audience else reverse("find_customer"),
        "held",
        todo=wait.todo,
        install=oldest.install_id,
    )
