"""The record of each request: a Delivery with its Runs, open before the request starts, closed with the response."""

from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now

from audiences import prepared_statements, request_bodies, sql, tallies
from audiences.delivery.leases import Lease, LeaseLostError, columns, worker_name
from audiences.models import Delivery, Lane, Run
from odp.outcomes import Answer, Outcome


class Opened(NamedTuple):
    id: int


_SQL = sql.beside(__file__)
_OPEN = _SQL.query("open_delivery", Opened._make, prepared=True)
_CLOSE = _SQL.command("close_delivery", prepared=True)


def close_abandoned(lease: Lease, reason: str = "The worker was gone before the response; sent again.") -> None:
    """Close Runs and Deliveries that a worker which died or was too late left open on these lanes, as unknown.

    A request about a customer without an audience has a Delivery and no Run. Its age says that it is abandoned, because
    no request takes longer than a lease. Lanes that another worker has claimed since have its token; their requests
    belong to that worker.
    """
    with transaction.atomic():
        lanes = Lane.objects.filter(pk__in=lease.audience_ids, lease_token=lease.token).order_by("pk")
        held = list(lanes.select_for_update(no_key=True).values_list("pk", flat=True))
        if not held:
            return
        abandoned = Run.objects.filter(audience_id__in=held, closed_at=None)
        deliveries = [delivery for delivery in abandoned.values_list("delivery_id", flat=True) if delivery]
        if deliveries:
            abandoned.update(closed_at=Now(), outcome=Outcome.UNKNOWN)
        is_old = Q(opened_at__lte=Now() - timedelta(seconds=settings.LEASE_SECONDS))
        has_open_run = Exists(Run.objects.filter(delivery=OuterRef("pk"), closed_at=None))
        closed = Delivery.objects.filter(
            Q(pk__in=deliveries) | is_old & ~has_open_run, install=lease.install, closed_at=None
        ).update(closed_at=Now(), outcome=Outcome.UNKNOWN, reason=reason)
    if closed:
        tallies.ODP_REQUESTS.add(lease.install.public_id, Outcome.UNKNOWN.value, amount=closed)


def open_delivery(
    lease: Lease,
    *,
    endpoint: str,
    items: int,
    size: int,
    sent: Mapping[int, int],
    of: Mapping[int, int],
    body: bytes | None = None,
) -> int:
    """Renew the lease, and store a Delivery and its Runs as open. Returns the Delivery's id.

    ``body`` is the body of the request. ``sent`` has the number of changes in the request by audience, ``of`` the
    number of events that they were folded from. Raises ``LeaseLostError`` when another worker may have the lanes.
    """
    request = None if body is None else request_bodies.pack(body)
    spans = [span for span in lease.spans if span.audience_id in sent]
    changes = [sent[span.audience_id] for span in spans]
    folded = [of[span.audience_id] - sent[span.audience_id] for span in spans]
    with transaction.atomic():
        with prepared_statements.pipeline():
            opening = _OPEN.run(
                lease_seconds=settings.LEASE_SECONDS,
                leased=prepared_statements.numbers(lease.audience_ids),
                leased_count=len(lease.spans),
                token=lease.token,
                install=lease.install.pk,
                endpoint=endpoint,
                items=items,
                bytes=size,
                request=request,
                worker=worker_name(),
                version=settings.VERSION,
                sent=prepared_statements.numbers(changes),
                folded=prepared_statements.numbers(folded),
                **columns(spans)._asdict(),
            )
        if (delivery := opening.one()) is None:
            raise LeaseLostError
    return delivery.id


def close_delivery(delivery_id: int, answer: Answer) -> None:
    """Store the response. A delivery that was closed as unknown meanwhile stays as it is."""
    _CLOSE.run(
        delivery=delivery_id,
        outcome=answer.outcome.value,
        status=answer.status,
        latency_ms=round(answer.seconds * 1000),
        reason=answer.reason,
        answer=answer.text,
        sent=answer.sent,
    )
