"""Delete a retired audience's real-time audience in ODP. Its field or list stays, because other audiences may use it.

It takes the lease for creating the audience, so that no worker creates the audience at the same time.
"""

import time
import uuid
from datetime import timedelta
from typing import NamedTuple

import structlog
from django.conf import settings
from django.db.models import Q
from django.db.models.functions import Now

from audiences import sessions
from audiences.delivery import provision, shared_ids
from audiences.delivery.odp_account import Gate, client_of, mechanism_for
from audiences.delivery.provision import Making
from audiences.models import Audience
from odp.mechanisms import Refusal
from odp.outcomes import Answer
from outgoing.deadline import TooLateError

log = structlog.get_logger(__name__)


class Unmade(NamedTuple):
    """What a deletion in ODP led to, not yet stored. ``left`` is "" when the audience is gone, else why it was left."""

    making: Making
    left: str


def unmake(audience: Audience, *, gate: Gate | None = None, seconds: float | None = None) -> Unmade | None:
    """Delete the audience in ODP, within ``seconds``. ``end`` stores it. None means try again later: ODP didn't
    respond, an unexpected error occurred, or another worker has the lease.
    """
    making = _lease(audience.pk)
    if making is None:
        return None
    try:
        result = _delete(making.audience, gate, seconds or settings.DELIVERY_DEADLINE_SECONDS)
    except TooLateError:  # the rate limit left no time for it
        provision.give_back(making.token)
        return None
    except Exception as error:
        if sessions.is_database_error(error):  # the error can't be stored
            provision.give_back(making.token)
            raise
        log.exception("deleting an audience failed", audience=making.audience.odp_id)
        result = provision.unexpected(error)
    if isinstance(result, Answer):
        provision.hold(making, result)
        return None
    return Unmade(making, result)


def _lease(audience_id: int) -> Making | None:
    token = uuid.uuid4()
    may = Audience.objects.filter(
        Q(making_until_at=None) | Q(making_until_at__lte=Now()),
        Q(hold_until_at=None) | Q(hold_until_at__lte=Now()),
        pk=audience_id,
        lane__retired_sequence__isnull=False,
    )
    lease = timedelta(seconds=settings.LEASE_SECONDS)
    if not may.update(making_token=token, making_until_at=Now() + lease):
        return None
    return Making(Audience.objects.select_related("install").get(pk=audience_id), token, more=False)


def _delete(audience: Audience, gate: Gate | None, seconds: float) -> str | Answer:
    if audience.provisioned_at is None and not shared_ids.was_exchanged(audience):
        return ""
    if (other := shared_ids.used_by(audience)) is not None:
        return (
            f"The install {other.install.name} uses the real-time audience {audience.odp_id} too, so it stays in ODP."
        )
    client = client_of(audience.install, ends_at=time.monotonic() + seconds, gate=gate)
    found = mechanism_for(audience).remove(
        client, audience.odp_id, seconds=seconds, accepted=audience.accepted_definition
    )
    return found.reason if isinstance(found, Refusal) else found or ""


def end(making: Making) -> bool:
    """Store that ODP no longer has the audience. False when the lease was lost.

    Runs in the transaction that stores what was left in ODP: the next try would no longer find that out.
    """
    ended = Audience.objects.filter(pk=making.audience.pk, making_token=making.token)
    values = {"making_token": None, "making_until_at": None, "provisioned_at": None, "look_asked_at": None}
    definitions = dict.fromkeys(("foreign_definition", "accepted_definition", "replaced_definition"), "")
    return bool(ended.update(**values, **definitions, **provision.NO_HOLD))
