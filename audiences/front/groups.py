"""Blocked audiences by cause and audiences on hold by reason: PostgreSQL counts the groups, and the largest are read.

PostgreSQL groups by the stored reason. The reason that people see is partly masked, so two groups can show the same
reason; they are merged here.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from audiences import sql
from audiences.admin import blocked
from audiences.front.alerts import EVERYWHERE, Extent
from audiences.models import Lane

# At least this many of the largest groups are read and merged. The page lists fewer of them.
READ = 50


class Counted(NamedTuple):
    """One group as PostgreSQL returns it. ``groups`` and ``all_lanes`` are totals, repeated in each row."""

    audience_id: int
    lanes: int
    waiting: int
    groups: int
    all_lanes: int


@dataclass
class Group:
    """Audiences of one install with the same reason. ``first`` has had it longest."""

    first: Lane
    lanes: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class Groups:
    """The largest groups, the number of all groups, and the number of audiences in all of them."""

    read: list[Group] = field(default_factory=list)
    count: int = 0
    lanes: int = 0


_SQL = sql.beside(__file__)
_BLOCKED = _SQL.query("blocked_audiences", Counted._make)
_ON_HOLD = _SQL.query("audiences_on_hold", Counted._make)


def blocked_by_cause(extent: Extent = EVERYWHERE) -> Groups:
    """The blocked audiences by cause, without those that a person has set aside; largest group first. Of one install or
    of all.
    """
    found = _merged(_BLOCKED.run(install=extent.install_id, read=max(READ, extent.most)).all(), blocked.cause)
    found.read.sort(key=lambda group: -group.lanes)
    return found


def on_hold_by_reason(extent: Extent) -> Groups:
    """The audiences that can't be created or checked in ODP, without blocked and paused ones; longest on hold first. Of
    one install or of all.
    """
    return _merged(
        _ON_HOLD.run(install=extent.install_id, read=max(READ, extent.most)).all(),
        lambda lane: (lane.audience.provisioned_at is None, lane.audience.hold_reason),
    )


def _merged(rows: Iterable[Counted], reason: Callable[[Lane], Hashable]) -> Groups:
    counted = {row.audience_id: row for row in rows}
    if not counted:
        return Groups()
    lanes = (
        Lane.objects.select_related("audience__install").defer("audience__install__odp_api_key").in_bulk(list(counted))
    )
    merged: dict[Hashable, Group] = {}
    for audience_id, row in counted.items():
        if (lane := lanes.get(audience_id)) is not None:
            group = merged.setdefault((lane.audience.install_id, reason(lane)), Group(lane))
            group.lanes += row.lanes
            group.waiting += row.waiting
    some = next(iter(counted.values()))
    return Groups([*merged.values()], count=some.groups - len(counted) + len(merged), lanes=some.all_lanes)
