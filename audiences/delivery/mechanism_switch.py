"""Switch the mechanism of an audience while deliveries continue. The only writer of ``Audience.mechanism``.

Claims and switches read the mechanism under the install's lock. A lease that began before a switch keeps the previous
mechanism until it ends.
"""

import uuid
from typing import NamedTuple

from django.db.models.functions import Now

from audiences.delivery import holds
from audiences.models import Audience, Install, Lane


class Leases(NamedTuple):
    """The leases of an audience at the time of its switch: of its delivery, and of its creation in ODP."""

    lane: uuid.UUID | None
    making: uuid.UUID | None


def begin(install_id: int, *, to: str) -> None:
    """Give new audiences the mechanism ``to``. Existing ones keep theirs. Runs inside the caller's transaction."""
    before = _lock(install_id)
    audiences = Audience.objects.filter(install=install_id)
    # Lock audiences in the order that calls use, so that the two can't deadlock.
    list(audiences.select_for_update(no_key=True).order_by("pk").values_list("pk", flat=True))
    audiences.filter(mechanism="").update(mechanism=before)
    audiences.filter(mechanism=to).update(mechanism="")
    Install.objects.filter(pk=install_id).update(mechanism=to)


def switch(audience: Audience, *, to: str, accepted: str) -> Leases:
    """Give the audience the mechanism ``to`` from the next lease on. Runs inside the caller's transaction.

    ``accepted`` is the digest of the definition that its real-time audience may keep; empty for ours alone.
    """
    ours = _lock(audience.install_id)
    holds.end_expired_leases([audience.pk])
    Audience.objects.filter(pk=audience.pk).update(
        mechanism="" if to == ours else to,
        accepted_definition=accepted,
        replaced_definition="",
        foreign_definition="",
    )
    lane = Lane.objects.values_list("lease_token", flat=True).get(pk=audience.pk)
    making = Audience.objects.values_list("making_token", flat=True).get(pk=audience.pk)
    return Leases(lane, making)


def keep_ours(audience_id: int) -> None:
    """Accept no definition but ours, because ODP has ours again."""
    Audience.objects.filter(pk=audience_id).update(accepted_definition="")


def ended(audience_id: int, leases: Leases) -> bool:
    """Return whether both leases have ended. Expired leases are cleared first, so their workers can't write later.

    The lane is locked before the audience, as in all code that locks both. The caller may lock the lane later.
    """
    list(Lane.objects.select_for_update(no_key=True).filter(pk=audience_id))
    holds.end_expired_leases([audience_id])
    audiences = Audience.objects.filter(pk=audience_id)
    audiences.filter(making_until_at__lte=Now()).update(making_token=None, making_until_at=None)
    delivering = leases.lane and Lane.objects.filter(pk=audience_id, lease_token=leases.lane).exists()
    making = leases.making and audiences.filter(making_token=leases.making).exists()
    return not delivering and not making


def _lock(install_id: int) -> str:
    """Lock the install's row, as claims do, and return its mechanism."""
    installs = Install.objects.select_for_update(no_key=True).filter(pk=install_id)
    return installs.values_list("mechanism", flat=True).get()
