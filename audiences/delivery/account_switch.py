"""Switch an install to another ODP account while deliveries continue.

A claim reads the install's key under the install's lock, and so does the switch: a lease that began before it uses the
old account until it ends, a lease that began after it the new one.
"""

import copy
from collections.abc import Collection
from typing import NamedTuple

from django.db.models import QuerySet

from audiences import naming
from audiences.delivery import backoff, drafts, holds
from audiences.delivery.odp_account import account_of, mechanism_for
from audiences.delivery.provision import NO_HOLD
from audiences.models import Audience, GuidedChange, Install, Lane
from odp import definitions


class Connection(NamedTuple):
    """The settings of an install that say which ODP account it uses. Without a host, the region has one."""

    region: str
    host: str
    api_key: str


def connection_of(install: Install) -> Connection:
    return Connection(install.region, install.odp_host, install.odp_api_key)


def connected(install: Install, connection: Connection) -> Install:
    """The install as it would be with another account. It is never saved."""
    other = copy.copy(install)
    other.region, other.odp_host, other.odp_api_key = connection
    return other


def is_changing(install_id: int) -> bool:
    """Whether the install is changing to another ODP account. Retiring and forgetting wait until it has ended."""
    unfinished = GuidedChange.objects.filter(kind=GuidedChange.Kind.ACCOUNT, ended_at=None)
    return unfinished.filter(install=install_id).exists()


def lock(install_id: int) -> Install:
    """Lock the install's row, as claims do. Runs inside the caller's transaction."""
    return Install.objects.select_for_update(no_key=True).get(pk=install_id)


def switch(install: Install, to: Connection, *, copied: Collection[int]) -> list[str]:
    """Give the locked install another account, and return the leases of its deliveries, which still use the old one.

    Audiences that weren't ``copied`` there are created before their next delivery. An audience that is being created
    now loses its lease, because its worker uses the old account. Runs inside the caller's transaction.
    """
    Install.objects.filter(pk=install.pk).update(
        region=to.region, odp_host=to.host, odp_api_key=to.api_key, twins_looked_at=None
    )
    drafts.note_key(install.pk, problem="")
    backoff.release(install)
    audiences = Audience.objects.filter(install=install)
    # Lock audiences in the order that calls use, so that the two can't deadlock.
    list(audiences.select_for_update(no_key=True).order_by("pk").values_list("pk", flat=True))
    audiences.update(making_token=None, making_until_at=None, **NO_HOLD)
    audiences.exclude(pk__in=copied).update(provisioned_at=None, look_asked_at=None)
    held = _lanes(install).filter(lease_token__isnull=False).order_by("lease_token")
    return [str(token) for token in held.values_list("lease_token", flat=True).distinct()]


def enter(before: Install, after: Install) -> None:
    """Have the test customers' audience created again, because a person entered another account or mechanism in the
    form. The form allows that while ODP has no other audience of the install.
    """
    made = Audience.objects.filter(install=after, segment_id=naming.TEST_SEGMENT_ID, provisioned_at__isnull=False)
    audience = made.first()
    if audience is None or (account_of(before), before.mechanism) == (account_of(after), after.mechanism):
        return
    audience.install = before
    definition = mechanism_for(audience).definition(audience.odp_id)
    replaced = definitions.digest(definition) if definition else ""
    unmade = {"provisioned_at": None, "look_asked_at": None, "making_token": None, "making_until_at": None}
    made.update(**unmade, replaced_definition=replaced, **NO_HOLD)


def ended(install: Install, tokens: Collection[str]) -> bool:
    """Return whether these leases have ended. Expired leases are cleared first, so their workers can't write later."""
    holds.end_expired_leases(_lanes(install).values_list("pk", flat=True))
    return not _lanes(install).filter(lease_token__in=tokens).exists()


def _lanes(install: Install) -> QuerySet[Lane]:
    return Lane.objects.filter(audience__install=install)
