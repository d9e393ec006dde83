"""Making an audience in ODP before its first delivery. Under the lane's lease, so that two workers make one."""

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial

import structlog
from django.conf import settings
from django.db.models.functions import Now

from audiences import brake, lanes, naming
from audiences.models import Audience, Install
from audiences.wake import wake
from odp.client import Client, Permission
from odp.deadline import TooLateError
from odp.mechanisms import Mechanism, Refusal, mechanism
from odp.outcomes import Answer
from odp.regions import host_of

log = structlog.get_logger(__name__)

# What the workers know and the domain doesn't: when a request of this install to that path may start.
Gate = Callable[[Install, str, float], None]


def client_of(install: Install, *, ends_at: float = float("inf"), gate: Gate | None = None) -> Client:
    host = host_of(api_key=install.odp_api_key, region=install.region, host=install.odp_host)
    permission: Permission | None = gate and partial(gate, install)
    return Client(host=host, api_key=install.odp_api_key, ends_at=ends_at, permission=permission)


def mechanism_of(install: Install) -> Mechanism:
    return mechanism(install.mechanism, passthrough_definition=settings.ODP_PASSTHROUGH_DEFINITION)


def look_again(audience_id: int, *, unless_within: timedelta = timedelta(0)) -> None:
    """Have its field and its segment looked at before its next delivery, and made where they are gone."""
    Audience.objects.filter(pk=audience_id, provisioned_at__lte=Now() - unless_within).update(provisioned_at=None)


def provision_one(install_id: int, *, gate: Gate | None = None) -> bool:
    """Make one audience that waits for it. False when none waits, or the install is braked by now."""
    lease = lanes.claim(install_id, capacity=1, provisioned=False)
    if lease is None:
        return False
    if lease.more:
        wake(install_id)
    install, span = lease.install, lease.spans[0]
    audience = Audience.objects.get(pk=span.audience_id)
    # All calls together get what one delivery may take, and so the lease outlives them.
    seconds = settings.DELIVERY_DEADLINE_SECONDS
    client = client_of(install, ends_at=time.monotonic() + seconds, gate=gate)
    try:
        problem = mechanism_of(install).ensure(client, span.odp_id, naming.label(audience.slug), seconds=seconds)
    except TooLateError:  # others stood at the gate for all that time: no fault of ODP
        lanes.give_back(lease)
        return False
    if isinstance(problem, Refusal):
        with suppress(lanes.LeaseLostError):  # whoever has the lane now gets the same answer
            lanes.block(lease, problem.reason)
        return True
    if isinstance(problem, Answer):
        brake.apply(install, problem)
        lanes.give_back(lease)
        return False
    Audience.objects.filter(pk=audience.pk).update(provisioned_at=Now())
    lanes.give_back(lease)
    if install.brake_failures:
        brake.release(install)
    log.info("audience ready in ODP", audience=span.odp_id)
    return True
