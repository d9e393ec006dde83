"""What an operator does to parked items: release and discard. A release appends to the log; nothing in it is edited."""

import time
from collections.abc import Iterable
from datetime import timedelta

import structlog
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.db.models import QuerySet
from django.utils.timezone import now

from audiences import sessions
from audiences.delivery import provision
from audiences.encryption import decrypt
from audiences.index_order import index_order
from audiences.models import Again, Event, Parked
from audiences.receiving import ingest, resend_causes
from audiences.wake import wake
from lytics.facts import Fact, Kind

log = structlog.get_logger(__name__)

LOOKED_AT_ONCE_IN = timedelta(minutes=1)
# *Discard all* discards this many items in one transaction, and begins no other transaction after these seconds.
DISCARDED_AT_ONCE, DISCARD_SECONDS = 10_000, 20.0
# The seconds that a person waits, beyond DATABASE_WEB_SECONDS, for the count of a group that is released.
COUNT_SECONDS = 20.0


def release(parked_ids: Iterable[int], *, by: str, identifier_field: str = "") -> tuple[int, int]:
    """Release parked items. Returns the number released and the number that stay because they still can't be read."""
    done = [release_one(parked_id, by=by, identifier_field=identifier_field) for parked_id in parked_ids]
    return done.count(True), done.count(False)


def release_one(parked_id: int, *, by: str, identifier_field: str = "") -> bool | None:
    """True if the item was released, False if it still can't be read, None if it was released or discarded before.

    An item of a call is parsed again with the install's current settings, or with another ``identifier_field``. A
    change that ODP rejected is appended again with its old time, so that anything newer still wins.

    Each item has its own transaction, because two items could lock the same audiences in another order than a call."""
    with transaction.atomic():
        parked = (
            Parked.objects.select_for_update(of=("self",))
            .select_related("install", "receipt")
            .filter(pk=parked_id, closed_at=None)
            .first()
        )
        if parked is None:
            return None
        refused = parked.sequence is not None
        released = _append_again(parked) if refused else _read_again(parked, identifier_field)
        if released:
            _close(parked, by=by, resolution=Parked.Resolution.RELEASED)
        return released


def discard(parked_ids: Iterable[int], *, by: str) -> int:
    """Discard parked items. The rows stay, with the person's name. Returns the number discarded."""
    return len(discard_each(parked_ids, by=by))


def discard_each(parked_ids: Iterable[int], *, by: str) -> set[int]:
    """Discard parked items. Returns the ids that this call discarded; a colleague may have closed the others before."""
    with transaction.atomic():
        items = Parked.objects.select_for_update().filter(pk__in=list(parked_ids), closed_at=None).order_by("pk")
        discarded = set(items.values_list("pk", flat=True))
        Parked.objects.filter(pk__in=discarded).update(
            closed_at=now(), closed_by=by, resolution=Parked.Resolution.DISCARDED
        )
    return discarded


def waiting(install_id: int, reason: str) -> QuerySet[Parked]:
    """The open items of an install that are parked for one reason."""
    return Parked.objects.filter(install_id=install_id, reason=reason, closed_at=None)


def count(install_id: int, reason: str, *, upto: int) -> int:
    """The number of open items of a reason, up to one id. Millions may take longer than DATABASE_WEB_SECONDS."""
    with sessions.allow_more(COUNT_SECONDS):
        return waiting(install_id, reason).filter(pk__lte=upto).count()


def discard_all(install_id: int, reason: str, *, upto: int, by: str) -> int:
    """Discard open items of a reason, up to one id, for ``DISCARD_SECONDS``. Returns the number discarded.

    Each piece is a transaction of its own, because a million items take longer than DATABASE_WEB_SECONDS.
    """
    ends_at, discarded, below = time.monotonic() + DISCARD_SECONDS, 0, upto + 1
    while True:
        with index_order():
            items = Parked.open_newest_first(install_id, reason).filter(pk__lt=below)
            ids = [*items.values_list("pk", flat=True)[:DISCARDED_AT_ONCE]]
        discarded += len(discard_each(ids, by=by)) if ids else 0
        if len(ids) < DISCARDED_AT_ONCE or time.monotonic() >= ends_at:
            return discarded
        below = ids[-1]  # the index still has entries of the items just discarded, and would be read through them


def _close(parked: Parked, *, by: str, resolution: str) -> None:
    Parked.objects.filter(pk=parked.pk).update(closed_at=now(), closed_by=by, resolution=resolution)


def _append_again(parked: Parked) -> bool:
    event = Event.objects.get(pk=(parked.audience_id, parked.sequence))
    fact = Fact("", "", event.identifier, Kind(event.kind), event.occurred_ns)
    ingest.append({event.audience_id: [fact]}, received_at=now(), forced=True)
    resend_causes.note({event.audience_id: [(1, None)]}, Again.Cause.RELEASE)
    # ODP may have rejected it because its field is gone. One check of the audience serves all items of a release.
    provision.look_again(event.audience_id, unless_within=LOOKED_AT_ONCE_IN)
    transaction.on_commit(lambda: wake(parked.install_id))
    return True


def _read_again(parked: Parked, identifier_field: str) -> bool:
    """Read the item again. Returns whether all of it could be read; the readable part is in the log in any case."""
    try:
        raw = decrypt(bytes(parked.raw or b""))
    except ImproperlyConfigured as error:
        log.error("a parked item could not be released", parked=parked.pk, reason=str(error))
        return False
    return ingest.read_again(
        parked.install, raw, receipt_id=parked.receipt_id, at=parked.parked_at, identifier_field=identifier_field
    )
