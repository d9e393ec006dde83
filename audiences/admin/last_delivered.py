"""When ODP last accepted something of an audience or an install, as columns of the lists.

After an outage the newest runs and deliveries are failures, as many as there were tries. Neither column reads them all.
"""

from typing import Any

from django.db.models import F, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce

from audiences.models import Audience, Delivery, Run
from odp.outcomes import Outcome

# Newest deliveries of an install among which its last success is looked for; older ones are found by its audiences.
NEWEST_DELIVERIES = 500


def of_audience(audience: Any, delivered_sequence: Any) -> QuerySet[Run, Any]:
    """The time of the last success of an audience; both arguments are columns of an outer query.

    Runs that failed since the last success begin after the delivered sequence, so the index by first event skips them.
    The audience is in the order and its condition is a range, so that PostgreSQL uses no other index.
    """
    runs = Run.objects.filter(audience_id__gte=audience, audience_id__lte=audience)
    settled = runs.filter(first_sequence__lte=delivered_sequence, outcome=Outcome.DELIVERED)
    return settled.order_by("-audience_id", "-first_sequence", "-id").values("closed_at")[:1]


def of_install() -> Coalesce:
    """The time of the last success of the outer query's install, by its newest deliveries or else by its audiences."""
    mine = Delivery.objects.filter(install_id__gte=OuterRef("pk"), install_id__lte=OuterRef("pk"))
    mine = mine.order_by("install_id", "-id")
    oldest = Delivery.objects.filter(install_id__gte=OuterRef(OuterRef("pk")), install_id__lte=OuterRef(OuterRef("pk")))
    bound = oldest.order_by("install_id", "-id").values("pk")[NEWEST_DELIVERIES - 1 : NEWEST_DELIVERIES]
    newest = mine.filter(pk__gte=Coalesce(Subquery(bound), 0), outcome=Outcome.DELIVERED).values("closed_at")[:1]
    of_each = of_audience(OuterRef("pk"), OuterRef("lane__delivered_sequence"))
    audiences = Audience.objects.filter(install=OuterRef("pk")).annotate(accepted_at=Subquery(of_each))
    latest = audiences.order_by(F("accepted_at").desc(nulls_last=True)).values("accepted_at")[:1]
    return Coalesce(Subquery(newest), Subquery(latest))
