"""The mechanism of one audience: switching it while deliveries go on. The only writer of ``Audience.mechanism``.

A claim reads the mechanism under the lock on the install, and so does a switch. A lease that began before the switch
writes with the mechanism before it, until it ends.
"""

import uuid
from typing import NamedTuple

from django.db.models.functions import Now

from audiences.delivery import holds
from audiences.models import Audience, Install, Lane


class Leases(NamedTuple):
    """The leases of an audience that were under way when it was switched: of its delivery, and of its making in ODP."""

    lane: uuid.UUID | None
    making: uuid.UUID | None


def begin(install_id: int, *, to: str) -> None:
    """Write new audiences with the mechanism ``to``; those there keep theirs. Inside a transaction."""
    before = _lock(install_id)
    audiences = Audience.objects.filter(install=install_id)
    # In the order in which calls lock several audiences, so that neither waits for the other.
    list(audiences.select_for_update(no_key=True).order_by("pk").values_list("pk", flat=True))
    audiences.filter(mechanism="").update(mechanism=before)
    audiences.filter(mechanism=to).update(mechanism="")
    Install.objects.filter(pk=install_id).update(mechanism=to)


def switch(audience: Audience, *, to: str, accepted: str) -> Leases:
    """Write the audience with the mechanism ``to`` from the next lease on. Inside a transaction.

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
    """Our own definition is there again: no other one is accepted any more."""
    Audience.objects.filter(pk=audience_id).update(accepted_definition="")


def ended(audience_id: int, leases: Leases) -> bool:
    """Whether these leases are over. One that has expired is taken away, so that its worker changes no row later."""
    holds.end_expired_leases([audience_id])
    audiences = Audience.objects.filter(pk=audience_id)
    audiences.filter(making_until_at__lte=Now()).update(making_token=None, making_until_at=None)
    delivering = leases.lane and Lane.objects.filter(pk=audience_id, lease_token=leases.lane).exists()
    making = leases.making and audiences.filter(making_token=leases.making).exists()
    return not delivering and not making


def _lock(install_id: int) -> str:
    """The install's mechanism, under the lock that claims take, too."""
    installs = Install.objects.select_for_update(no_key=True).filter(pk=install_id)
    return installs.values_list("mechanism", flat=True).get()
