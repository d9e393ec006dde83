"""Settling a lease: cursors, ledger, Runs and parked items, in one transaction that also gives the lanes back."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from audiences import prepared_statements, sql
from audiences.delivery import request_records
from audiences.delivery.fold import EXIT, Entry, Held
from audiences.delivery.leases import REJECTED_BY_ODP, WITHOUT_WAITING, Lease, LeaseLostError, Ledger, Result
from audiences.models import Install, Run
from lytics import times
from odp.outcomes import Answer, Outcome

log = structlog.get_logger(__name__)


class Change(NamedTuple):
    """The change of one customer for the ledger, and whether ODP rejected it."""

    audience_id: int
    entry: Entry
    rejected: bool


_SQL = sql.beside(__file__)
_MOVE = _SQL.command("move_cursors", prepared=True)
_COPY_NEW = _SQL.command("copy_new_members")
# Not prepared: a plan that was made while the ledger was small would be kept when the ledger is large.
_LEDGER = _SQL.command("update_ledger")
_PARK = _SQL.command("park_rejections")
_SUPERSEDE = _SQL.command("supersede_rejections")


def settle(
    lease: Lease,
    results: Sequence[Result],
    ledger: Ledger,
    *,
    delivery_id: int | None = None,
    answer: Answer | None = None,
) -> None:
    """Store the results of a lease and give it back, in one transaction: cursors, ledger, Runs, parked items.

    Raises ``LeaseLostError``, with no row changed, when another worker has one of its lanes.
    """
    with transaction.atomic():
        with prepared_statements.pipeline():
            WITHOUT_WAITING.run()
            moving = _move(lease, results, ledger)
            if delivery_id is not None and answer is not None:
                request_records.close_delivery(delivery_id, answer)
        if moving.changed != len(lease.spans):
            raise LeaseLostError
        _write_ledger(results, ledger)
        _supersede(results, ledger)
        _park(lease.install, results, delivery_id)
        _record_folded(results)
    for result in results:
        if result.block_reason:
            log.error("blocked", audience=result.span.odp_id, reason=result.block_reason)


def _move(lease: Lease, results: Sequence[Result], ledger: Ledger) -> sql.Sent[None]:
    return _MOVE.run(
        audiences=prepared_statements.numbers(result.span.audience_id for result in results),
        cursors=prepared_statements.numbers(result.span.last if result.complete else 0 for result in results),
        joined=prepared_statements.numbers(_joined(result, ledger[result.span.audience_id]) for result in results),
        blocks=prepared_statements.texts(result.block_reason.replace("\x00", "") for result in results),
        token=lease.token,
    )


def _joined(result: Result, held: Mapping[str, Held]) -> int:
    """The number of members that the audience gains in the ledger; negative when it loses members."""
    written = [*result.accepted, *(entry for entry, _ in result.rejected)]
    before = sum(held[entry.identifier].is_member for entry in written if entry.identifier in held)
    return sum(entry.kind != EXIT for entry in written) - before


def _write_ledger(results: Iterable[Result], ledger: Ledger) -> None:
    """Copy the customers that the ledger doesn't know in their audience, and update the others."""
    new: list[Change] = []
    known: list[Change] = []
    for result in results:
        lane = result.span.audience_id
        held = ledger[lane]
        for entry in result.accepted:
            (known if entry.identifier in held else new).append(Change(lane, entry, False))
        for entry, _ in result.rejected:
            (known if entry.identifier in held else new).append(Change(lane, entry, True))
    if new:
        _copy(new)
    if known:
        _update(known)


def _copy(changes: list[Change]) -> None:
    identifiers = prepared_statements.escaped([entry.identifier for _, entry, _ in changes])
    prepared_statements.copy(
        _COPY_NEW.text,
        [
            f"{lane}\t{entry.occurred_ns}\t{entry.sequence}\t{entry.kind != EXIT}\t{rejected}\t{identifier}\n"
            for (lane, entry, rejected), identifier in zip(changes, identifiers, strict=True)
        ],
    )


def _update(changes: list[Change]) -> None:
    lanes, entries, rejected = zip(*changes, strict=True)
    _LEDGER.run(
        audiences=prepared_statements.numbers(lanes),
        identifiers=prepared_statements.texts([entry.identifier for entry in entries]),
        is_member=prepared_statements.numbers([entry.kind != EXIT for entry in entries]),
        occurred_ns=prepared_statements.numbers([entry.occurred_ns for entry in entries]),
        sequences=prepared_statements.numbers([entry.sequence for entry in entries]),
        rejected=prepared_statements.numbers(rejected),
        tolerance_ns=round(settings.CLOCK_TOLERANCE_SECONDS * times.SECOND),
    )


def _supersede(results: Iterable[Result], ledger: Ledger) -> None:
    """Close parked rejections for which ODP has accepted a newer change."""
    accepted = [
        {"audience_id": result.span.audience_id, "identifier": entry.identifier}
        for result in results
        for entry in result.accepted
        if (held := ledger[result.span.audience_id].get(entry.identifier)) and held.rejected
    ]
    if accepted:
        _SUPERSEDE.run(accepted=json.dumps(accepted))


def _park(install: Install, results: Iterable[Result], delivery_id: int | None) -> None:
    rejections = [
        {
            "audience_id": result.span.audience_id,
            "delivery_id": delivery_id,
            "sequence": entry.sequence,
            "identifier": entry.identifier,
            "detail": words.replace("\x00", ""),
        }
        for result in results
        for entry, words in result.rejected
    ]
    if rejections:
        _PARK.run(install=install.pk, reason=REJECTED_BY_ODP, rejections=json.dumps(rejections))
        log.warning("parked", install=install.name, reasons={REJECTED_BY_ODP: len(rejections)})


def _record_folded(results: Iterable[Result]) -> None:
    """Store a Run for each span that needed no request, so that the history shows how its events ended."""
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
