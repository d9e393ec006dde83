"""Whether deliverable work progresses, judged by deliveries and not by heartbeats."""

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
_STUCK = _SQL.query("stuck_install", Waiting._make)
_FAULTY = _SQL.query("faulty_audience", Waiting._make)


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
    """Audiences held by an error of this service, or else installs, without progress for ``WORK_STUCK_SECONDS``. Of one
    install or of all.
    """
    unexpected, unexpected_making = backoff.UNEXPECTED + "%", provision.UNEXPECTED + "%"
    asked = {"install": install_id, "unexpected": unexpected, "seconds": settings.WORK_STUCK_SECONDS}
    faulty = _FAULTY.run(unexpected_making=unexpected_making, **asked).one()
    if faulty:
        return Stuck(faulty.name, faulty.since, faulty.reason, in_part=True)
    stopped = _STUCK.run(**asked).one()
    if stopped:
        return Stuck(stopped.name, stopped.since, stopped.reason, in_part=False)
    return None
