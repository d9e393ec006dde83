"""The record of each request: an open Delivery with its Runs before it starts, closed with the answer."""

from collections.abc import Mapping
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now

from audiences import prepared_statements, request_bodies
from audiences.delivery.leases import Lease, LeaseLostError, _worker, arrays
from audiences.models import Delivery, Lane, Run
from odp.outcomes import Answer, Outcome

# A lease that has run out isn't counted any more, and another may have the install's place by now.
_OPEN = """
WITH renewed AS (
    UPDATE audiences_lane SET lease_expires_at = clock_timestamp() + make_interval(secs => %s)
    WHERE audience_id = ANY(%s::int[]) AND lease_token = %s AND lease_expires_at > clock_timestamp()
    RETURNING 1
), delivery AS (
    INSERT INTO audiences_delivery
        (install_id, endpoint, opened_at, outcome, items, bytes, reason, answer, request, worker, version)
    SELECT %s, %s, statement_timestamp(), '', %s, %s, '', '', %s::bytea, %s, %s
    WHERE (SELECT count(*) FROM renewed) = %s
    RETURNING id
), runs AS (
    INSERT INTO audiences_run
        (audience_id, delivery_id, first_sequence, last_sequence, sent, folded, opened_at, outcome)
    SELECT run.audience_id, delivery.id, run.first, run.last, run.sent, run.folded, statement_timestamp(), ''
    FROM delivery CROSS JOIN unnest(%s::int[], %s::bigint[], %s::bigint[], %s::int[], %s::int[])
        AS run(audience_id, first, last, sent, folded)
)
SELECT id FROM delivery
"""

_CLOSE = """
WITH closed AS (
    UPDATE audiences_delivery SET
        closed_at = statement_timestamp(), outcome = %(outcome)s, status = %(status)s::smallint,
        latency_ms = %(latency)s::int, reason = %(reason)s, answer = %(answer)s,
        affirmed_at = CASE WHEN %(sent)s::boolean THEN affirmed_at ELSE statement_timestamp() END
    WHERE id = %(delivery)s AND closed_at IS NULL RETURNING id
)
UPDATE audiences_run AS run SET closed_at = statement_timestamp(), outcome = %(outcome)s
FROM closed WHERE run.delivery_id = closed.id AND run.closed_at IS NULL
"""


def close_abandoned(lease: Lease, reason: str = "The worker was gone before the answer; sent again.") -> None:
    """Close what a worker that died or was too late left open on these lanes: nobody knows what ODP did.

    The request about a customer without an audience has a Delivery and no Run; it is known by its age, because no
    request outlives a lease. Lanes that another worker has claimed since carry its token: their requests are its own.
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
        Delivery.objects.filter(
            Q(pk__in=deliveries) | is_old & ~has_open_run, install=lease.install, closed_at=None
        ).update(closed_at=Now(), outcome=Outcome.UNKNOWN, reason=reason)


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
    """Plant the flag: the lease renewed, a Delivery and its Runs stored as open. Returns the Delivery's id.

    ``body`` is what is about to go out. ``sent`` gives the changes in the request by audience, ``of`` the events they
    were folded from. Raises ``LeaseLostError`` when the lanes are no longer ours.
    """
    request = None if body is None else request_bodies.pack(body)
    spans = [span for span in lease.spans if span.audience_id in sent]
    changes = [sent[span.audience_id] for span in spans]
    folded = [of[span.audience_id] - sent[span.audience_id] for span in spans]
    opening = prepared_statements.cursor()
    with transaction.atomic():
        with prepared_statements.pipeline():
            opening.execute(
                _OPEN,
                [
                    *(settings.LEASE_SECONDS, prepared_statements.numbers(lease.audience_ids), lease.token),
                    *(lease.install.pk, endpoint, items, size, request, _worker(), settings.VERSION, len(lease.spans)),
                    *(arrays(spans) if spans else ["{}"] * 3),
                    *(prepared_statements.numbers(changes), prepared_statements.numbers(folded)),
                ],
            )
        if (row := opening.fetchone()) is None:
            raise LeaseLostError
    return int(row[0])


def close_delivery(delivery_id: int, answer: Answer) -> None:
    """Take the flag down: what came back. A delivery that was closed as unknown meanwhile keeps that."""
    prepared_statements.cursor().execute(
        _CLOSE,
        {
            "delivery": delivery_id,
            "outcome": answer.outcome.value,
            "status": answer.status,
            "latency": round(answer.seconds * 1000),
            "reason": answer.reason,
            "answer": answer.text,
            # A request that was never sent can't be applied late, so it needs no reconciling.
            "sent": answer.sent,
        },
    )
