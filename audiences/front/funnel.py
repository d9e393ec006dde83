"""The steps of an install's events in the last hours or days: received, parked, folded, delivered, confirmed.

A change that ODP rejected counts as delivered if ODP accepted others of its audience with it, and as not yet delivered
if not; a note has the number of these changes. ODP doesn't report when it has applied a change. An event counts as
confirmed when ODP has shown a test customer of the install since the event was delivered.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from django.db.models import Count, Q
from django.utils.timezone import now

from audiences import sql
from audiences.admin.filters import COUNTED
from audiences.admin.pages import count, list_url, number, span, url_of
from audiences.delivery.leases import REJECTED_BY_ODP
from audiences.front import charts
from audiences.front.alerts import Number
from audiences.index_order import index_order
from audiences.insight.probes import Proof
from audiences.models import Delivery, Install, Parked, Receipt, Run

_NEVER = datetime.min.replace(tzinfo=UTC)


class Progress(NamedTuple):
    went: int
    folded: int | None
    confirmed: int


_PROGRESS = sql.beside(__file__).query("progress", Progress._make)


def funnel(install: Install, points: Sequence[charts.Point], proofs: Mapping[int, Proof]) -> list[Number]:
    """The number of events in each step, in order, with a link to the list of its rows. ``points`` are those of the
    charts.
    """
    proof = proofs[install.pk]
    total = {name: sum(getattr(point, name) for point in points) for name in charts.COUNTS}
    end = points[-1].at + timedelta(minutes=points[-1].minutes)
    progress = _PROGRESS.run(install=install.pk, start=points[0].at, end=end, proven=proof.at or _NEVER).one()
    assert progress is not None  # an aggregate has one row
    of_install = {"install__id__exact": install.pk}
    left = total["received"] - total["delivered"]
    earlier = f", and {number(total['earlier'])} of an earlier backlog" if total["earlier"] else ""
    again = f", {number(total['again'])} sent again" if total["again"] else ""
    rejected = _rejected(install, points[0].at, end)
    return [
        Number("received", number(total["received"]), list_url(Receipt, **of_install), None, "events in calls"),
        Number(
            "parked",
            number(total["parked"]),
            list_url(Parked, **of_install),
            not total["parked"],
            "items without a place in the log",
        ),
        Number(
            "folded",
            number(progress.folded),
            list_url(Run, install=install.pk),
            None,
            f"of {count(progress.went, 'event')} delivered in this time: no change in ODP was needed",
        ),
        Number(
            "delivered",
            number(total["delivered"]),
            list_url(Delivery, **of_install),
            not left,
            f"of those received, {number(left)} not yet{earlier}{again}{rejected}",
        ),
        Number(
            "confirmed",
            number(progress.confirmed),
            f"{url_of(install)}#connecting",
            not proof.is_bad if proof.at or proof.is_bad else None,
            f"delivered before ODP last showed a test customer, {span(now() - proof.at)} ago"
            if proof.at
            else "ODP has shown no test customer",
        ),
    ]


def _rejected(install: Install, start: datetime, end: datetime) -> str:
    """How many changes were parked in this time because ODP rejected them, among the newest items of the install."""
    newest = Parked.objects.filter(install_id__gte=install.pk, install_id__lte=install.pk).order_by("install_id", "-id")
    meant = Q(reason=REJECTED_BY_ODP, parked_at__gte=start, parked_at__lt=end)
    with index_order():
        read = newest.values("pk", "reason", "parked_at")[:COUNTED]
        found = read.aggregate(items=Count("pk"), rejected=Count("pk", filter=meant))
    least = "at least " if found["items"] >= COUNTED else ""
    return f"; {least}{number(found['rejected'])} parked, because ODP rejected them" if found["rejected"] else ""
