"""Reconcile: send the ledger's state again where ODP may have applied an abandoned request late.

A write to ODP has no version. ODP may apply a request that was abandoned at its deadline, or whose worker died, after
the newer request that followed it; the customer is then wrong there although each response was a success. So each
Delivery without a final response is checked once ODP must be done with it: its customers for whom something newer was
sent in the meantime are appended again with their state from the ledger, as forced events.
"""

from functools import partial

import structlog
from django.conf import settings
from django.db import transaction
from django.utils.timezone import now

from audiences import sessions
from audiences.delivery import unconfirmed
from audiences.models import Again, Audience, Run
from audiences.operations import attempts
from audiences.receiving import audience_lookup, ingest, resend_causes
from audiences.wake import wake
from lytics.facts import Fact, Kind

log = structlog.get_logger(__name__)


def reconcile() -> int:
    """Reconcile each Delivery that is due. Returns the number of memberships appended."""
    return sum(map(_reconcile_or_leave, unconfirmed.doubtful(seconds=settings.RECONCILE_AFTER_SECONDS)))


def _reconcile_or_leave(delivery_id: int) -> int:
    """A delivery whose reconciling fails is tried again; the deliveries after it continue."""
    work = partial(_reconcile, delivery_id)
    return attempts.attempt(
        "reconcile", f"delivery {delivery_id}", work, otherwise=0, raises=sessions.is_database_error
    )


def _reconcile(delivery_id: int) -> int:
    """One transaction marks the Delivery and appends its memberships: a crash leaves both or neither."""
    kinds = {True: Kind.ENTER, False: Kind.EXIT}
    facts: dict[int, list[Fact]] = {}
    with transaction.atomic():
        if not unconfirmed.mark(delivery_id):
            return 0
        # Before the ledger is read: a customer who is forgotten in between would be appended again.
        audience_lookup.lock(Run.objects.filter(delivery=delivery_id).values_list("audience_id", flat=True))
        memberships = unconfirmed.overtaken(delivery_id)
        for held in memberships:
            fact = Fact("", "", held.identifier, kinds[held.is_member], held.occurred_ns)
            facts.setdefault(held.audience_id, []).append(fact)
        ingest.append(facts, received_at=now(), forced=True)
        resend_causes.note({pk: [(len(some), delivery_id)] for pk, some in facts.items()}, Again.Cause.UNANSWERED)
    if memberships:
        log.warning("reconciled", memberships=len(memberships), delivery=delivery_id)
    for install_id in Audience.objects.filter(pk__in=facts).values_list("install_id", flat=True).distinct():
        wake(install_id)
    return len(memberships)
