"""What waits in Parked by install and reason, counted up to 10,000 each."""

from datetime import datetime
from typing import Any, NamedTuple

from django.db.models import Max, QuerySet
from django.urls import reverse

from audiences import sql
from audiences.admin.filters import COUNTED
from audiences.admin.pages import ago, list_url, up_to_bound
from audiences.admin.parked_reasons import can_be_released, hint, words
from audiences.models import Parked, Resend


class Group(NamedTuple):
    install: int
    install_name: str
    reason: str
    rows: int
    since: datetime
    newest: int


_GROUPS = sql.beside(__file__).query("groups", Group._make)


def unfinished() -> QuerySet[Resend]:
    return Resend.objects.filter(kind=Resend.Kind.RELEASE, ended_at=None)


def counted(waiting: QuerySet[Parked]) -> tuple[int, int | None]:
    """The bounded count of open items, and the newest of them."""
    return waiting.order_by("-pk")[:COUNTED].count(), waiting.aggregate(newest=Max("pk"))["newest"]


def items(count: int) -> str:
    """A bounded count of items in words."""
    return f"{up_to_bound(count)} item{'' if count == 1 else 's'}"


def groups() -> list[dict[str, Any]]:
    going = set(unfinished().values_list("install", "parked_reason"))
    return [
        {
            **group._asdict(),
            "count": group.rows,
            "count_in_words": up_to_bound(group.rows),
            "words": words(group.reason),
            "hint": hint(group.reason),
            "since": ago(group.since),
            "url": list_url(Parked, reason=group.reason, install__id__exact=group.install),
            "going": (group.install, group.reason) in going,
            "can_release": can_be_released(group.reason),
            "discard": reverse("admin:audiences_parked_discard_group", args=[group.install, group.reason]),
            "release": reverse("admin:audiences_parked_release_group", args=[group.install, group.reason]),
        }
        for group in _GROUPS.run(bound=COUNTED).all()
    ]
