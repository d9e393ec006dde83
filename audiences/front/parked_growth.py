"""Front page alerts about installs of which many items are parked."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from audiences.admin.pages import list_url, number
from audiences.front.alerts import Alert, Extent, and_more, way_to
from audiences.models import Install, Parked

KIND = "parked_growth"


def growing(installs: list[Any], found: Mapping[int, datetime], extent: Extent) -> list[Alert]:
    shown = [
        Alert(
            KIND,
            f"{install}: more than {number(install.parked_limit_per_hour)} items were parked within an hour",
            "That is the limit of the install. Parked items change nothing in ODP until a person releases them.",
            found[install.pk],
            list_url(Parked, install__id__exact=install.pk),
            todo="Look at the newest items for the cause, which may be a change of the Lytics job or of its profiles."
            " Then release the items.",
            offers=(way_to(install, "id_parked_limit_per_hour", "Change the limit", "inventory_2"),),
            install=install.pk,
        )
        for install in [install for install in installs if install.pk in found][: extent.most]
    ]
    return shown + and_more(KIND, len(found), "installs with many new parked items", list_url(Install), extent)
