"""Affirming: what is true now is said once more where an older request may have been applied after it.

A write to ODP carries no version. A request that was given up at its deadline, or that was under way when its worker
died, may be applied after the newer one that followed it, and then a customer is wrong there though every answer was
good. So each Delivery without a final answer is looked at again when ODP has had time to be done with it: the
customers in it of whom something newer was sent meanwhile are appended once more as the ledger has them, forced.
"""

from collections import Counter
from operator import itemgetter

import structlog
from django.conf import settings
from django.db import transaction
from django.utils.timezone import now

from audiences import again, ingest, lanes
from audiences.models import Again, Audience
from audiences.wake import wake
from lytics.payload import Fact, Kind

log = structlog.get_logger(__name__)

# Deliveries looked at in one transaction; each names as many customers as fit into a request.
DELIVERIES_AT_ONCE = 20


def affirm() -> int:
    """See to every Delivery whose time has come. Returns how many memberships were appended again.

    The mark on the Deliveries and what is appended for them are one transaction: a crash does both or neither.
    """
    appended = 0
    while True:
        with transaction.atomic():
            deliveries, memberships = lanes.overtaken(seconds=settings.AFFIRM_AFTER_SECONDS, limit=DELIVERIES_AT_ONCE)
            kinds = {True: Kind.ENTER, False: Kind.EXIT}
            facts: dict[int, list[Fact]] = {}
            causes: dict[int, Counter[int | None]] = {}
            # Those of one delivery stand together in the log, so that one range says why they are there.
            for audience_id, identifier, is_member, occurred_ns, delivery in sorted(memberships, key=itemgetter(4)):
                fact = Fact("", "", identifier, kinds[is_member], occurred_ns)
                facts.setdefault(audience_id, []).append(fact)
                causes.setdefault(audience_id, Counter())[delivery] += 1
            ingest.append(facts, received_at=now(), forced=True)
            appended_for = {pk: [(n, delivery) for delivery, n in some.items()] for pk, some in causes.items()}
            again.note(appended_for, Again.Cause.UNANSWERED)
        if memberships:
            log.warning("affirmed", memberships=len(memberships), deliveries=deliveries)
        for install_id in Audience.objects.filter(pk__in=facts).values_list("install_id", flat=True).distinct():
            wake(install_id)
        appended += len(memberships)
        if deliveries < DELIVERIES_AT_ONCE:
            return appended
