"""Settling a lease: cursors, ledger, Runs and parked items, in one transaction that also gives the lanes back."""

import json
from collections.abc import Iterable, Mapping, Sequence

import structlog
from django.db import connection, transaction
from django.db.models.functions import Now

from audiences import prepared_statements
from audiences.delivery import request_records
from audiences.delivery.fold import EXIT, Entry, Held
from audiences.delivery.leases import REFUSED_BY_ODP, WITHOUT_WAITING, Lease, LeaseLostError, Ledger, Result, latest_ns
from audiences.models import Install, Run
from odp.outcomes import Answer, Outcome

log = structlog.get_logger(__name__)

# The same block came back, or nothing was delivered.
_LIFTED_STAYS = "(moved.block = lane.lifted_reason OR moved.block = '' AND moved.cursor <= lane.delivered_sequence)"

_MOVE = f"""
UPDATE audiences_lane AS lane SET
    delivered_sequence = greatest(lane.delivered_sequence, moved.cursor),
    member_count = lane.member_count + moved.joined,
    lease_token = NULL,
    lease_expires_at = NULL,
    blocked_at = CASE WHEN moved.block = '' THEN lane.blocked_at ELSE clock_timestamp() END,
    block_reason = CASE WHEN moved.block = '' THEN lane.block_reason ELSE moved.block END,
    lifted_since_at = CASE WHEN {_LIFTED_STAYS} THEN lane.lifted_since_at END,
    lifted_reason = CASE WHEN {_LIFTED_STAYS} THEN lane.lifted_reason ELSE '' END,
    fault_since_at = NULL,
    fault_until_at = NULL,
    fault_reason = ''
FROM unnest(%s::int[], %s::bigint[], %s::int[], %s::text[]) AS moved(audience_id, cursor, joined, block)
WHERE lane.audience_id = moved.audience_id AND lane.lease_token = %s
"""  # noqa: S608

# In two ways, because who leases a lane knows which of its customers are new: those are copied, and so written down by
# the page. Their keys and the guard can't fail while lanes are leased properly; with them the ledger can't go back even
# if they weren't.
_MET = """
COPY audiences_membership (audience_id, occurred_ns, sequence, is_member, refused, identifier) FROM STDIN
"""

_LEDGER = """
UPDATE audiences_membership AS held SET
    is_member = told.is_member, occurred_ns = told.occurred_ns, sequence = told.sequence, refused = told.refused
FROM unnest(%s::int[], %s::text[], %s::boolean[], %s::bigint[], %s::bigint[], %s::boolean[])
    AS told(audience_id, identifier, is_member, occurred_ns, sequence, refused)
WHERE held.audience_id = told.audience_id AND held.identifier = told.identifier
    AND ((told.occurred_ns, NOT told.is_member) >= (held.occurred_ns, NOT held.is_member) OR held.occurred_ns > %s)
"""

_PARK = """
INSERT INTO audiences_parked
    (install_id, audience_id, delivery_id, sequence, identifier, reason, detail, parked_at, closed_by, resolution)
SELECT %s, a, d, s, i, %s, w, clock_timestamp(), '', ''
FROM jsonb_to_recordset(%s::jsonb) AS x(a int, d bigint, s bigint, i text, w text)
ON CONFLICT (audience_id, identifier) WHERE closed_at IS NULL AND sequence IS NOT NULL
DO UPDATE SET sequence = excluded.sequence, detail = excluded.detail, delivery_id = excluded.delivery_id
"""

_SUPERSEDE = """
UPDATE audiences_parked AS parked SET closed_at = clock_timestamp(), resolution = 'superseded'
FROM jsonb_to_recordset(%s::jsonb) AS x(a int, i text)
WHERE parked.audience_id = x.a AND parked.identifier = x.i AND parked.closed_at IS NULL AND parked.sequence IS NOT NULL
"""


def settle(
    lease: Lease,
    results: Sequence[Result],
    ledger: Ledger,
    *,
    delivery_id: int | None = None,
    answer: Answer | None = None,
) -> None:
    """Write down what became of a lease and give it back, in one transaction: cursors, ledger, Runs, Parked.

    Raises ``LeaseLostError``, with no row changed, when one of its lanes has gone to another worker.
    """
    moving = prepared_statements.cursor()
    with transaction.atomic():
        with prepared_statements.pipeline():
            prepared_statements.cursor().execute(WITHOUT_WAITING)
            moving.execute(_MOVE, [*_moves(results, ledger), lease.token])
            if delivery_id is not None and answer is not None:
                request_records.close_delivery(delivery_id, answer)
        if moving.rowcount != len(lease.spans):
            raise LeaseLostError
        _write_ledger(results, ledger)
        _supersede(results, ledger)
        _park(lease.install, results, delivery_id)
        _record_folded(results)
    for result in results:
        if result.block_reason:
            log.error("blocked", audience=result.span.odp_id, reason=result.block_reason)


def _moves(results: Sequence[Result], ledger: Ledger) -> list[str]:
    return [
        prepared_statements.numbers(result.span.audience_id for result in results),
        prepared_statements.numbers(result.span.last if result.complete else 0 for result in results),
        prepared_statements.numbers(_joined(result, ledger[result.span.audience_id]) for result in results),
        prepared_statements.texts(result.block_reason.replace("\x00", "") for result in results),
    ]


def _joined(result: Result, held: Mapping[str, Held]) -> int:
    """By how many the audience's members grow in the ledger."""
    written = [*result.accepted, *(entry for entry, _ in result.refused)]
    before = sum(held[entry.identifier].is_member for entry in written if entry.identifier in held)
    return sum(entry.kind != EXIT for entry in written) - before


def _write_ledger(results: Iterable[Result], ledger: Ledger) -> None:
    met: list[tuple[int, Entry, bool]] = []
    known: list[tuple[int, Entry, bool]] = []
    for result in results:
        lane = result.span.audience_id
        held = ledger[lane]
        for entry in result.accepted:
            (known if entry.identifier in held else met).append((lane, entry, False))
        for entry, _ in result.refused:
            (known if entry.identifier in held else met).append((lane, entry, True))
    if met:
        customers = prepared_statements.escaped([entry.identifier for _, entry, _ in met])
        prepared_statements.copy(
            _MET,
            [
                f"{lane}\t{entry.occurred_ns}\t{entry.sequence}\t{entry.kind != EXIT}\t{refused}\t{customer}\n"
                for (lane, entry, refused), customer in zip(met, customers, strict=True)
            ],
        )
    if known:
        lanes, entries, refused = zip(*known, strict=True)
        # Not prepared, as in ``read``.
        with connection.cursor() as cursor:
            cursor.execute(
                _LEDGER,
                [
                    prepared_statements.numbers(lanes),
                    prepared_statements.texts([entry.identifier for entry in entries]),
                    prepared_statements.numbers([entry.kind != EXIT for entry in entries]),
                    prepared_statements.numbers([entry.occurred_ns for entry in entries]),
                    prepared_statements.numbers([entry.sequence for entry in entries]),
                    prepared_statements.numbers(refused),
                    latest_ns(),
                ],
            )


def _supersede(results: Iterable[Result], ledger: Ledger) -> None:
    """Close parked refusals for which ODP has accepted a newer change."""
    rows = [
        {"a": result.span.audience_id, "i": entry.identifier}
        for result in results
        for entry in result.accepted
        if (held := ledger[result.span.audience_id].get(entry.identifier)) and held.refused
    ]
    _execute(_SUPERSEDE, rows)


def _park(install: Install, results: Iterable[Result], delivery_id: int | None) -> None:
    rows = [
        {
            "a": result.span.audience_id,
            "d": delivery_id,
            "s": entry.sequence,
            "i": entry.identifier,
            "w": words.replace("\x00", ""),
        }
        for result in results
        for entry, words in result.refused
    ]
    if rows:
        with connection.cursor() as cursor:
            cursor.execute(_PARK, [install.pk, REFUSED_BY_ODP, json.dumps(rows)])
        log.warning("parked", install=install.name, reasons={REFUSED_BY_ODP: len(rows)})


def _execute(statement: str, rows: list[dict[str, object]]) -> None:
    if rows:
        with connection.cursor() as cursor:
            cursor.execute(statement, [json.dumps(rows)])


def _record_folded(results: Iterable[Result]) -> None:
    """A run of which nothing had to be sent is history too: it says where its events went."""
    Run.objects.bulk_create(
        Run(
            audience_id=result.span.audience_id,
            first_sequence=result.span.first,
            last_sequence=result.span.last,
            sent=0,
            folded=result.events,
            opened_at=Now(),
            closed_at=Now(),
            outcome=Outcome.DELIVERED,
        )
        for result in results
        if result.complete and not result.sent
    )
