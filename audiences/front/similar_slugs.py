"""Front page alerts for audiences whose ODP ids differ only by a suffix; *Keep both* removes an alert."""

from django.http import HttpRequest
from django.urls import reverse

from audiences import naming
from audiences.admin import verbs
from audiences.admin.pages import ago, list_url, url_of
from audiences.front.alerts import ALERTS_LISTED, Alert, and_more, page
from audiences.insight import similar_slugs
from audiences.models import Audience


def alerts(request: HttpRequest) -> list[Alert]:
    here = reverse("admin:index")
    pairs = similar_slugs.unnoticed()
    listed = [
        Alert(
            f"{audience.odp_id} and {holder.odp_id} differ only by a suffix ({audience.install})",
            f"The slugs {audience.slug} and {holder.slug} become the same ODP id. In ODP they are named"
            f" {naming.label(audience.slug)} and {naming.label(holder.slug)}.",
            ago(audience.created_at),
            url_of(audience),
            tone="held",
            todo="An id in ODP never changes. For a better one, create the audience anew in Lytics under a slug with"
            " letters from a to z. If whoever uses them in ODP knows them apart, press Keep both.",
            buttons=verbs.buttons(
                page(Audience), request, audience, back=here, only=("keep-both",), known_offered=True
            ),
        )
        for audience, holder in pairs[:ALERTS_LISTED]
    ]
    return listed + and_more(len(pairs), "audiences whose ids differ only by a suffix", list_url(Audience))
