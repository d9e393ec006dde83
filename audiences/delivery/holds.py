"""Holds on lanes and their end: pauses, blocks, unexpected errors, released leases."""

import uuid
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Case, F, Value, When
from django.db.models.functions import Coalesce, Greatest, Now
from django.utils.timezone import now

from audiences import sessions
from audiences.delivery import request_records, settling
from audiences.delivery.leases import Lease, Result
from audiences.models import Audience, Lane

log = structlog.get_logger(__name__)


def lay(audience: Audience) -> Lane:
    """The lane of a new audience, with nothing delivered yet."""
    return Lane.objects.create(audience=audience)


def pause(lane: Lane, *, by: str, reason: str) -> bool:
    """Hold a lane until a person resumes it. False when it is paused already."""
    paused = Lane.objects.filter(pk=lane.pk, paused_at=None)
    return bool(paused.update(paused_at=now(), paused_by=by, pause_reason=reason))


def set_aside(lane: Lane, *, by: str, reason: str) -> bool:
    """Pause a blocked lane, so that its block isn't reported until a person resumes it. False if it isn't blocked."""
    blocked = Lane.objects.filter(pk=lane.pk, blocked_at__isnull=False)
    return bool(blocked.update(paused_at=Greatest(Now(), "blocked_at"), paused_by=by, pause_reason=reason))


def resume(lane: Lane) -> bool:
    """Resume a paused lane. False when it wasn't paused."""
    return bool(
        Lane.objects.filter(pk=lane.pk, paused_at__isnull=False).update(paused_at=None, paused_by="", pause_reason="")
    )


def block(lease: Lease, reasons: Mapping[int, str]) -> None:
    """Give a lease back with some of its lanes blocked until a person acts: those with a reason, by audience id."""
    settling.settle(
        lease,
        [Result(span, complete=False, block_reason=reasons.get(span.audience_id, "")) for span in lease.spans],
        {span.audience_id: {} for span in lease.spans},
    )


def block_audience(audience_id: int, reason: str) -> bool:
    """Block a lane, also during a request: ODP can't hold its audience. False when it was blocked already."""
    reason = reason.replace("\x00", "")
    free = Lane.objects.filter(pk=audience_id, blocked_at=None)
    kept = {
        "lifted_since_at": Case(When(lifted_reason=reason, then=F("lifted_since_at"))),
        "lifted_reason": Case(When(lifted_reason=reason, then=Value(reason)), default=Value("")),
    }
    return bool(free.update(blocked_at=Now(), block_reason=reason, **kept))


def give_back(lease: Lease) -> None:
    """Release a lease without a result, as soon as PostgreSQL responds. Does nothing when the lease was lost."""
    give_back_token(lease.token)


def give_back_token(token: uuid.UUID) -> None:
    held = Lane.objects.filter(lease_token=token)
    # After LEASE_SECONDS the lease has expired.
    sessions.when_back(lambda: held.update(lease_token=None, lease_expires_at=None), seconds=settings.LEASE_SECONDS)


def hold(lease: Lease, reason: str) -> None:
    """Release a lease after an unexpected error of this service.

    Its lanes are then tried one by one: at once if the lease had several, else after ``BACKOFF_FIXED_SECONDS``.
    """
    alone = len(lease.spans) == 1
    pause = timedelta(seconds=settings.BACKOFF_FIXED_SECONDS) if alone else timedelta(0)
    held = Lane.objects.filter(lease_token=lease.token)
    values: dict[str, Any] = {
        "lease_token": None,
        "lease_expires_at": None,
        "fault_since_at": Coalesce("fault_since_at", Now()),
        "fault_until_at": Now() + pause,
        "fault_reason": reason.replace("\x00", ""),
    }

    def put_down() -> None:
        with transaction.atomic():
            request_records.close_abandoned(lease, reason)
            held.update(**values)

    sessions.when_back(put_down, seconds=settings.LEASE_SECONDS)
    if alone:
        log.warning(
            "audience on hold", audience=lease.spans[0].odp_id, seconds=settings.BACKOFF_FIXED_SECONDS, reason=reason
        )


def end_log(audience_id: int, sequence: int) -> None:
    """Set the end of a retiring audience's log: later events than ``sequence`` are held."""
    Lane.objects.filter(pk=audience_id).update(retired_sequence=sequence)


def retire(audience_id: int) -> None:
    """Mark the audience as retired, and clear earlier holds of its lane."""
    nothing = dict.fromkeys(("paused_at", "blocked_at", "lifted_since_at", "fault_since_at", "fault_until_at"))
    words = dict.fromkeys(("paused_by", "pause_reason", "block_reason", "lifted_reason", "fault_reason"), "")
    Lane.objects.filter(pk=audience_id).update(retired_at=Now(), **nothing, **words)


def take_back(audience_id: int) -> None:
    """Clear the retirement, so that the held events are delivered."""
    Lane.objects.filter(pk=audience_id).update(retired_at=None, retired_sequence=None)


def try_now(lane: Lane) -> bool:
    """Have a lane tried at once that an error of this service holds. False when no error holds it."""
    return bool(Lane.objects.filter(pk=lane.pk, fault_since_at__isnull=False).update(fault_until_at=Now()))


def end_expired_leases(audience_ids: Iterable[int]) -> bool:
    """End the leases of these lanes that have expired. False when a worker still holds one of the lanes.

    A claim does so too, but it skips paused and blocked lanes and disabled installs. A worker that continues after its
    lease then changes no row.
    """
    lanes = Lane.objects.filter(pk__in=audience_ids)
    lanes.filter(lease_expires_at__lte=Now()).update(lease_token=None, lease_expires_at=None)
    return not lanes.filter(lease_token__isnull=False).exists()


def correct_times(furthest: timedelta) -> int:
    """Shorten leases and end pauses after an error that lie further ahead (``clock.py``). Returns their number."""
    lease = timedelta(seconds=settings.LEASE_SECONDS)
    leased = Lane.objects.filter(lease_expires_at__gt=Now() + furthest).update(lease_expires_at=Now() + lease)
    return leased + Lane.objects.filter(fault_until_at__gt=Now() + furthest).update(fault_until_at=Now())


def unblock(lane: Lane, *, idle: bool = False) -> bool:
    """Let a blocked lane try again. False when it wasn't blocked, or, with ``idle``, when a worker holds it.

    The lifted block is kept until something is delivered, so that the same one is known when it comes back.
    """
    blocked = Lane.objects.filter(pk=lane.pk, blocked_at__isnull=False)
    if idle:
        end_expired_leases([lane.pk])
        blocked = blocked.filter(lease_token=None)
    kept = {"lifted_since_at": Coalesce("lifted_since_at", "blocked_at"), "lifted_reason": F("block_reason")}
    return bool(blocked.update(blocked_at=None, block_reason="", **kept))
