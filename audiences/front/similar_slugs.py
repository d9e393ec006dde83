"""Front page alerts for audiences whose ODP ids differ only by a suffix; *Keep both* removes an alert."""

from audiences import naming
from audiences.admin.pages import list_url, url_of
from audiences.front.alerts import Alert, Extent, and_more, buttons
from audiences.insight import similar_slugs
from audiences.models import Audience

KIND = "similar_slugs"


def alerts(extent: Extent) -> list[Alert]:
    pairs = similar_slugs.unnoticed(extent.install_id)
    listed = [
        Alert(
            KIND,
            f"{audience.odp_id} and {holder.odp_id} differ only by a suffix ({audience.install})",
            f"The slugs {audience.slug} and {holder.slug} become the same ODP id. In ODP they are named"
            f" {naming.label(audience.slug)} and {naming.label(holder.slug)}.",
            audience.created_at,
            url_of(audience),
            tone="held",
            todo="An id in ODP never changes. For a better one, create the audience again in Lytics under a slug with"
            " letters from a to z. If the people who use them in ODP can distinguish them, press Keep both.",
            offers=(buttons(audience, "keep-both", known_offered=True),),
            install=audience.install_id,
        )
        for audience, holder in similar_slugs.read(pairs[: extent.most])
    ]
    url, what = list_url(Audience, **extent.of_install), "audiences whose ids differ only by a suffix"
    return listed + and_more(KIND, len(pairs), what, url, extent, tone="held")
