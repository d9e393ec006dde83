"""Whether deliverable work progresses, judged by deliveries and not by heartbeats."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from django.conf import settings

from audiences import sql
from audiences.delivery import backoff, provision


class Waiting(NamedTuple):
    """An install without progress of ready work: its name, the time of the last progress, and the reason if known."""

    name: str
    since: datetime
    reason: str


_SQL = sql.beside(__file__)
_STUCK = _SQL.query("stuck_installs", Waiting._make)
_FAULTY = _SQL.query("installs_with_faulty_audiences", Waiting._make)


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


def stuck(install_id: int | None = None) -> Stuck | None:
    """Audiences held by an error of this service, or else an install, without progress for ``WORK_STUCK_SECONDS``: the
    one of which that has lasted longest. Of one install or of all.
    """
    return next(_found(install_id, most=1), None)


def all_stuck(install_id: int | None = None) -> list[Stuck]:
    """All of them, each install once."""
    found: dict[str, Stuck] = {}
    for one in _found(install_id, most=None):
        found.setdefault(one.install, one)
    return [*found.values()]


def _found(install_id: int | None, *, most: int | None) -> Iterator[Stuck]:
    """``most`` of the installs with audiences that an error of this service holds, then ``most`` of the others."""
    unexpected, unexpected_making = backoff.UNEXPECTED + "%", provision.UNEXPECTED + "%"
    asked = {"install": install_id, "unexpected": unexpected, "seconds": settings.WORK_STUCK_SECONDS, "most": most}
    for one in _FAULTY.run(unexpected_making=unexpected_making, **asked).all():
        yield Stuck(one.name, one.since, one.reason, in_part=True)
    for one in _STUCK.run(**asked).all():
        yield Stuck(one.name, one.since, one.reason, in_part=False)
