"""Reconcile: send the ledger's state again where ODP may have applied an abandoned request late.

A write to ODP carries no version. A request that was given up at its deadline, or that was under way when its worker
died, may be applied after the newer one that followed it, and then a customer is wrong there though every answer was
good. So each Delivery without a final answer is looked at again when ODP has had time to be done with it: the
customers in it of whom something newer was sent meanwhile are appended once more as the ledger has them, forced.
"""

import structlog
from django.conf import settings
from django.db import transaction
from django.utils.timezone import now

from audiences import sessions
from audiences.delivery import unconfirmed
from audiences.models import Again, Audience
from audiences.receiving import ingest, resend_causes
from audiences.wake import wake
from lytics.facts import Fact, Kind

log = structlog.get_logger(__name__)


def reconcile() -> int:
    """See to every Delivery whose time has come. Returns how many memberships were appended again."""
    return sum(map(_reconcile_or_leave, unconfirmed.doubtful(seconds=settings.AFFIRM_AFTER_SECONDS)))


def _reconcile_or_leave(delivery_id: int) -> int:
    """A delivery whose reconciling fails is tried again at the next sweep; the deliveries after it continue."""
    try:
        return _reconcile(delivery_id)
    except Exception as error:
        if sessions.is_database_error(error):
            raise
        log.exception("a delivery without a final answer could not be reconciled", delivery=delivery_id)
        return 0


def _reconcile(delivery_id: int) -> int:
    """The mark on the Delivery and what is appended for it are one transaction: a crash does both or neither."""
    kinds = {True: Kind.ENTER, False: Kind.EXIT}
    facts: dict[int, list[Fact]] = {}
    with transaction.atomic():
        memberships = unconfirmed.overtaken(delivery_id)
        for audience_id, identifier, is_member, occurred_ns, _ in memberships:
            facts.setdefault(audience_id, []).append(Fact("", "", identifier, kinds[is_member], occurred_ns))
        ingest.append(facts, received_at=now(), forced=True)
        resend_causes.note({pk: [(len(some), delivery_id)] for pk, some in facts.items()}, Again.Cause.UNANSWERED)
    if memberships:
        log.warning("reconciled", memberships=len(memberships), delivery=delivery_id)
    for install_id in Audience.objects.filter(pk__in=facts).values_list("install_id", flat=True).distinct():
        wake(install_id)
    return len(memberships)
