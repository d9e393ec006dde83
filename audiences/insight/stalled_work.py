"""Whether deliverable work progresses, judged by deliveries and not by heartbeats."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from django.conf import settings

from audiences import sql
from audiences.delivery import backoff, provision
from audiences.insight import backlogs
from audiences.insight.backlogs import Backlog
from audiences.models import Install


class Waiting(NamedTuple):
    """An install without progress of ready work: the time of the last progress, and the reason if known."""

    id: int
    name: str
    since: datetime
    reason: str


_SQL = sql.beside(__file__)
_STUCK = _SQL.query("stuck_installs", Waiting._make)
_FAULTY = _SQL.query("installs_with_faulty_audiences", Waiting._make)
_EVER = datetime.min.replace(tzinfo=UTC)
_UNEXPECTED = {"unexpected": backoff.UNEXPECTED + "%"}


@dataclass(frozen=True)
class Stuck:
    """An install without progress of ready work, and since when; ``why`` if an error of this service is known.

    ``in_part`` is true when only some of its audiences are affected.
    """

    install: str
    since: datetime
    why: str
    in_part: bool

    @property
    def words(self) -> str:
        """The problem for a public page, without the name of an install."""
        return f"ready work has not moved since {self.since:%Y-%m-%d %H:%M:%S} UTC"


def stuck() -> Stuck | None:
    """Audiences held by an error of this service, or else an install, without progress for ``WORK_STUCK_SECONDS``: the
    one of which that has lasted longest.
    """
    for one in _with_faulty_audiences(None, most=1):
        return one
    # At first as if all installs had had ready work for ever. While deliveries succeed, no audience is read.
    enabled = Install.objects.filter(enabled=True).values_list("pk", flat=True)
    if suspects := _without_progress(dict.fromkeys(enabled, _EVER)):
        work = backlogs.by_install([install.id for install in suspects])
        for install in _without_progress(_ready(work), most=1):
            return _in_full(install)
    return None


def all_stuck(install_id: int | None, work: Mapping[int, Backlog]) -> list[Stuck]:
    """The same for each install, or for one. ``work`` is the backlog by install, and was read before this call."""
    found: dict[str, Stuck] = {}
    for one in (*_with_faulty_audiences(install_id), *map(_in_full, _without_progress(_ready(work)))):
        found.setdefault(one.install, one)
    return [*found.values()]


def _with_faulty_audiences(install_id: int | None, most: int | None = None) -> list[Stuck]:
    making = provision.UNEXPECTED + "%"
    seconds = settings.WORK_STUCK_SECONDS
    rows = _FAULTY.run(install=install_id, unexpected_making=making, seconds=seconds, most=most, **_UNEXPECTED).all()
    return [Stuck(one.name, one.since, one.reason, in_part=True) for one in rows]


def _ready(work: Mapping[int, Backlog]) -> dict[int, datetime | None]:
    return {install_id: backlog.ready_at for install_id, backlog in work.items() if backlog.has_ready}


def _without_progress(ready: Mapping[int, datetime | None], most: int | None = None) -> list[Waiting]:
    """Those of the installs, given since when each has ready work. This reads their progress. If their work was read
    before, an event that was delivered meanwhile is progress, and doesn't count as waiting.
    """
    asked = {"installs": [*ready], "ready_at": [*ready.values()], "seconds": settings.WORK_STUCK_SECONDS, "most": most}
    return _STUCK.run(**asked, **_UNEXPECTED).all() if ready else []


def _in_full(one: Waiting) -> Stuck:
    return Stuck(one.name, one.since, one.reason, in_part=False)
