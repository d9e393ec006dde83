"""Skipping a backlog: events that were accepted and are not to be sent any more. They stay in the log.

For a database that was restored from a backup: what waited in the backup was delivered before the database was lost,
and sending it again would put older states over newer ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from audiences.delivery import skipping
from audiences.models import Install, Lane, Resend, Skip

log = structlog.get_logger(__name__)


class NotNowError(Exception):
    """Why nothing may be skipped at the moment; its text is a sentence for a person."""


@dataclass(frozen=True)
class Backlog:
    """What an install has waiting: events by ODP id, and how many replays, resyncs and releases are unfinished."""

    events: Sequence[tuple[str, int]]
    resends: int

    @property
    def total(self) -> int:
        return sum(events for _, events in self.events)


def backlog(install_id: int) -> Backlog:
    """What a skip would leave out."""
    behind = Lane.objects.filter(audience__install=install_id, audience__last_sequence__gt=F("delivered_sequence"))
    rows = behind.order_by("audience__odp_id").values_list(
        "audience__odp_id", "audience__last_sequence", "delivered_sequence"
    )
    unfinished = Resend.objects.filter(install=install_id, ended_at=None).count()
    return Backlog([(odp_id, last - cursor) for odp_id, last, cursor in rows], unfinished)


def skip(install_id: int, *, by: str, reason: str) -> Backlog:
    """End everything that waits as skipped, and stop unfinished resends. Raises ``NotNowError``, with nothing done."""
    with transaction.atomic():
        # Without the ODP key, which can't be read with the wrong FIELD_ENCRYPTION_KEYS.
        enabled = Install.objects.select_for_update(no_key=True).values_list("enabled", flat=True).get(pk=install_id)
        if enabled:
            raise NotNowError("The install is active. Switch it off first, so that nothing is sent meanwhile.")
        if skipping.leased(install_id):
            raise NotNowError("A worker still holds audiences of this install. Stop the workers, or wait 15 seconds.")
        resends = Resend.objects.filter(install=install_id, ended_at=None)
        stopped = resends.update(ended_at=Now(), stopped_by=by)
        skipping.end_requests(install_id)
        with transaction.atomic():
            made = Skip.objects.create(install_id=install_id, by=by, reason=reason)
            skipped = Backlog(skipping.skip(install_id, skip_id=made.pk), stopped)
            # Taken back and not deleted: the role of the processes deletes no history.
            transaction.set_rollback(not skipped.total)
    log.warning("backlog skipped", install=install_id, events=skipped.total, audiences=len(skipped.events), by=by)
    return skipped
