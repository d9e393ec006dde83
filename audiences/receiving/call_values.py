"""A webhook call on its way into the log: what it is answered, its Receipt, and the values that store it.

``ingest.py`` and ``plain_calls.py`` store calls by two statements that share the fragment ``store_calls``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from audiences import prepared_statements
from lytics.facts import NAME_BYTES, Kind, Reading

# The digits of each kind: as a member of an enumeration it would be written three times as slowly.
_DIGITS = [str(int(kind)) for kind in sorted(Kind)]


class Stored(NamedTuple):
    """The number of stored events, and the ids of the Receipts in the order of their calls; None without Receipts."""

    receipts: list[int] | None
    events: int


@dataclass
class Received:
    """The response to one call: the numbers of messages, stored events, parked items and skipped identifier values.

    ``receipt`` is the id of its Receipt.
    """

    received: int = 0
    queued: int = 0
    parked: int = 0
    skipped: int = 0
    parked_reasons: dict[str, int] = field(default_factory=dict)
    receipt: int | None = None


class Call(NamedTuple):
    bytes: int
    source: str | None
    at: datetime
    # The token of a caller that wasn't looked up: it is checked when the call is stored.
    token_id: int | None = None


class Facts(NamedTuple):
    """Facts to store, as columns."""

    identifiers: list[str]
    kinds: list[Kind]
    occurred_ns: list[int]


class NewReceipt(NamedTuple):
    """A Receipt's values, by the names of their parameters in ``sql/fragments.sql``."""

    received: datetime
    sources: str
    jobs: str
    bytes: int
    messages: int
    queued: int
    parked: int
    skipped: int
    parked_reasons: str


_NO_RECEIPTS: dict[str, tuple[Any, ...]] = dict.fromkeys(NewReceipt._fields, ())


def receipt_of(reading: Reading, call: Call, received: Received) -> NewReceipt:
    return NewReceipt(
        received=call.at,
        sources=call.source or "",
        jobs=reading.job[:NAME_BYTES].replace("\x00", ""),
        bytes=call.bytes,
        messages=received.received,
        queued=received.queued,
        parked=received.parked,
        skipped=received.skipped,
        parked_reasons=msgspec.json.encode(received.parked_reasons).decode(),
    )


def parameters(
    facts: Facts, *, counts: Sequence[int], calls: Iterable[str], receipts: Sequence[NewReceipt]
) -> dict[str, Any]:
    """For ``store_calls``: ``facts`` by audience, with ``counts`` for each, and the number of the call of each fact."""
    texts, numbers, repeated = prepared_statements.texts, prepared_statements.numbers, prepared_statements.repeated
    columns = dict(zip(NewReceipt._fields, zip(*receipts, strict=True), strict=True)) if receipts else _NO_RECEIPTS
    return {
        **{name: numbers(columns[name]) for name in ("bytes", "messages", "queued", "parked", "skipped")},
        **{name: texts(columns[name]) for name in ("sources", "jobs", "parked_reasons")},
        "received": texts(map(datetime.isoformat, columns["received"])),
        "has_receipts": bool(receipts),
        "receipt_id": None,
        "forced": False,
        "counts": numbers(counts),
        "ahead": numbers(accumulate(counts[:-1], initial=0)),
        "numbers": repeated(enumerate(counts, start=1)),
        "identifiers": texts(facts.identifiers),
        "kinds": "{" + ",".join([_DIGITS[kind] for kind in facts.kinds]) + "}",
        "moments": numbers(facts.occurred_ns),
        "calls": "{" + ",".join(calls) + "}",
    }
