"""Open parked items by install and reason, each group counted up to 10,000."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from django.db.models import QuerySet

from audiences import sql
from audiences.admin.addresses import address
from audiences.admin.filters import COUNTED
from audiences.admin.pages import ago, list_url, number, up_to_bound
from audiences.admin.parked_reasons import can_be_released, hint, words
from audiences.index_order import index_order
from audiences.models import Parked, Resend


class Group(NamedTuple):
    install: int
    install_name: str
    reason: str
    rows: int
    since: datetime
    newest: int


class Counted(NamedTuple):
    """The bounded count of open items of a group, and the newest of them."""

    rows: int
    newest: int | None


class OfInstall(NamedTuple):
    install: int
    rows: int


_SQL = sql.beside(__file__)
_GROUPS = _SQL.query("groups", Group._make)
_GROUP = _SQL.query("group", Counted._make)
_BY_INSTALL = _SQL.query("by_install", OfInstall._make)

ANY_NUMBER = 2**63 - 1


def unfinished() -> QuerySet[Resend]:
    return Resend.objects.filter(kind=Resend.Kind.RELEASE, ended_at=None)


def found() -> list[Group]:
    """The groups, the largest first."""
    with index_order():
        return _GROUPS.run(bound=COUNTED).all()


def counted(install: int, reason: str, *, upto: int = ANY_NUMBER) -> Counted:
    """Count the open items of one group, up to the item with this id."""
    with index_order():
        group = _GROUP.run(install=install, reason=reason, upto=upto, bound=COUNTED).one()
    return group or Counted(0, None)


def by_install() -> dict[int, int]:
    """The bounded count of open items of each install that has any."""
    with index_order():
        return dict(_BY_INSTALL.run(bound=COUNTED).all())


def sum_of(counts: Iterable[int]) -> int:
    """At least this many rows: the sum of bounded counts."""
    return sum(min(count, COUNTED - 1) for count in counts)


def sum_in_words(counts: Iterable[int]) -> str:
    counts = list(counts)
    is_bounded = any(count >= COUNTED for count in counts)
    return f"more than {sum_of(counts):,}" if is_bounded else number(sum_of(counts))


def items(count: int) -> str:
    """A bounded count of items in words."""
    return f"{up_to_bound(count)} item{'' if count == 1 else 's'}"


def in_words(groups: Iterable[Group], releases: Iterable[Resend] | None = None) -> list[dict[str, Any]]:
    """These groups for a page. ``releases`` are the unfinished ones, if the caller has them already."""
    going = {(one.install_id, one.parked_reason) for one in (unfinished() if releases is None else releases)}
    return [
        {
            **group._asdict(),
            "count": group.rows,
            "count_in_words": up_to_bound(group.rows),
            "words": words(group.reason),
            "hint": hint(group.reason),
            "since": ago(group.since),
            "since_at": group.since,
            "url": list_url(Parked, reason=group.reason, install__id__exact=group.install),
            "going": (group.install, group.reason) in going,
            "can_release": can_be_released(group.reason),
            "discard": address("admin:audiences_parked_discard_group", group.install, group.reason),
            "release": address("admin:audiences_parked_release_group", group.install, group.reason),
        }
        for group in groups
    ]
