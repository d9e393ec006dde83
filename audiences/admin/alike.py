"""Audiences with the same trouble, and the buttons that end its cause for all of them."""

from collections.abc import Sequence

from audiences.admin.audience_verbs import Resync, RetryNow
from audiences.admin.pages import count
from audiences.admin.together import Together
from audiences.models import Audience, Lane
from audiences.operations import twins
from audiences.receiving import backlog


def _held_like(audience: Audience) -> list[Audience]:
    """Audiences of the install that can't be created or checked for the same reason; or, of all installs, those held by
    the same error of this service.
    """
    free = Audience.objects.filter(install__enabled=True, lane__blocked_at=None, lane__paused_at=None)
    free = free.select_related("install", "lane")
    if audience.hold_failures:
        alike = free.filter(
            install=audience.install_id,
            hold_failures__gt=0,
            hold_reason=audience.hold_reason,
            provisioned_at__isnull=audience.provisioned_at is None,
        )
    else:
        faulty = Lane.objects.filter(backlog.FAULTY, fault_reason=audience.lane.fault_reason)
        alike = free.filter(lane__in=faulty)
    return list(alike.order_by("pk"))


def _missing_like(audience: Audience) -> list[Audience]:
    twin = twins.of(audience)
    return twins.alike(twin) if twin is not None and twin.finding else []


def _sent_again(audiences: Sequence[Audience], names: str) -> str:
    members = sum(audience.lane.member_count for audience in audiences)
    return (
        f"What {names} need in ODP is created again, and all their memberships are sent again:"
        f" {count(members, 'member')}, and the customers who left. New events continue meanwhile and win where they are"
        " newer. An audience with a resync under way is left alone."
    )


RETRY_ALIKE = Together(
    RetryNow(),
    "retry-alike",
    "audience",
    "Retried",
    _held_like,
    lambda _, names: (
        f"{names} are tried now. What fails again backs off again. Other audiences are not affected. Nothing is lost."
    ),
)
RESYNC_ALIKE = Together(Resync(), "resync-alike", "audience", "Resynced", _missing_like, _sent_again)
