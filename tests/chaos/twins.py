"""Mutations of the bridge: each removes the one thing that keeps a promise. The judge has to detect each of them."""

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any


def _replace(module: Any, name: str, old: str, new: str) -> None:
    """Replace a part of a statement of ``audiences.sql``, which fails when the statement doesn't have that part."""
    setattr(module, name, getattr(module, name).replace(old, new))


def settle_without_token(lanes: Any) -> None:
    """A late worker settles in spite of its lost lease, and ends the lease of the next worker."""
    _replace(lanes, "_MOVE", "lane.lease_token = %(token)s", "%(token)s::uuid IS NOT NULL")


def claim_ignoring_leases(lanes: Any) -> None:
    for name in ("_CLAIM", "_DUE", "_WORK"):
        _replace(
            lanes,
            name,
            "(lane.lease_expires_at IS NULL OR lane.lease_expires_at <= clock_timestamp())",
            "true",
        )


def numbering_without_lock(ingest: Any) -> None:
    """Numbers are drawn before the commit, as a serial id would be: without a lock, and gone when it rolls back."""
    import psycopg

    honest = ingest.append

    def append(facts: Any, **options: Any) -> Any:
        from django.conf import settings
        from django.db import connection

        own: Any = settings.DATABASES["default"]
        with psycopg.connect(
            host=own["HOST"], port=own["PORT"], user=own["USER"], password=own["PASSWORD"], dbname=own["NAME"]
        ) as server:
            before = {}
            for audience_id, some in sorted(facts.items()):
                by = len(some)
                row = server.execute(
                    "UPDATE audiences_audience SET last_sequence = last_sequence + %s WHERE id = %s"
                    " RETURNING last_sequence - %s",
                    [by, audience_id, by],
                ).fetchone()
                if row is None:  # created in this transaction, so no other session sees it
                    return honest(facts, **options)
                before[audience_id] = row[0]
        receipt_id = honest({}, **options) or options.get("receipt_id")
        with connection.cursor() as cursor:
            for audience_id, fact in ((audience_id, fact) for audience_id, some in facts.items() for fact in some):
                before[audience_id] += 1
                cursor.execute(
                    "INSERT INTO audiences_event (audience_id, sequence, identifier, kind, occurred_ns, received_at,"
                    " forced, receipt_id) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
                    [
                        audience_id,
                        before[audience_id],
                        fact.identifier,
                        int(fact.kind),
                        fact.occurred_ns,
                        options["received_at"],
                        options.get("forced", False),
                        receipt_id,
                    ],
                )
        return receipt_id

    ingest.append = append
    ingest.plain_calls.store = lambda *call: None


def no_sweep(lanes: Any) -> None:
    lanes.due = list


def fold_by_arrival(fold: Any) -> None:
    fold._rank = lambda entry: (entry.sequence,)
    fold._decides = lambda entry, held: True


# Twin: the module it breaks, and how.
TWINS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "settle_without_token": ("audiences.delivery.settling", settle_without_token),
    "claim_ignoring_leases": ("audiences.delivery.claims", claim_ignoring_leases),
    "numbering_without_lock": ("audiences.receiving.ingest", numbering_without_lock),
    "no_sweep": ("audiences.delivery.claims", no_sweep),
    "fold_by_arrival": ("audiences.delivery.fold", fold_by_arrival),
}


def spoil(twin: str, module: ModuleType) -> None:
    name, how = TWINS[twin]
    if module.__name__ == name and os.environ.get("CHAOS_TWIN") == twin:
        how(module)
