"""What the steps of a delivery pass to each other: the lease, its spans, and the result of each span.

A lease is a token in the rows of its lanes. Every later step compares the token, so a worker that has lost its lease
changes no row. All times are PostgreSQL's.
"""

import os
import socket
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from django.conf import settings

from audiences import prepared_statements, sql
from audiences.delivery.fold import Entry, Held
from audiences.models import Install
from lytics import times
from odp.mechanisms import MECHANISMS


class _Clock(NamedTuple):
    now_ns: int


_SQL = sql.beside(__file__)
WITHOUT_WAITING = _SQL.command("commit_without_waiting", prepared=True)
_CLOCK = _SQL.query("clock", _Clock._make)

REJECTED_BY_ODP = "refused_by_odp"


Ledger = dict[int, dict[str, Held]]


# The end of the reason for which a ``GapError`` blocks a lane.
GAP = "are not all there"


class LeaseLostError(Exception):
    """Another worker may have claimed these lanes, so this worker must stop."""


class GapError(Exception):
    """Numbers are missing in the log of lanes. Numbering makes that impossible, so it is a bug or a damaged table.

    ``reasons`` has a sentence for each such lane, by audience id.
    """

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__("; ".join(reasons.values()))
        self.reasons = reasons


class Work(NamedTuple):
    """The work of an install now: whether an audience may be created in ODP, and the number of events that may be
    claimed. ``mechanism`` is the mechanism of the least recently served ready lane.
    """

    install: Install
    unprovisioned: bool
    ready: int
    mechanism: str


@dataclass(frozen=True)
class Span:
    """The next events of one lane: sequences ``first`` to ``last``, in the parts of the log ``low`` to ``high``."""

    audience_id: int
    odp_id: str
    first: int
    last: int
    low: int
    high: int


@dataclass(frozen=True)
class Lease:
    """Lanes claimed together under one token. ``more``: other events were ready and didn't fit."""

    token: uuid.UUID
    install: Install
    spans: tuple[Span, ...]
    more: bool
    # Whether ODP has rejected changes of this install that are still parked.
    has_rejections: bool
    # The mechanism of all its lanes.
    mechanism: str

    @property
    def audience_ids(self) -> list[int]:
        return [span.audience_id for span in self.spans]


@dataclass
class Result:
    """The result of one span. ``complete`` moves the cursor past it; otherwise only the ledger is updated."""

    span: Span
    complete: bool = True
    events: int = 0
    sent: bool = False
    accepted: list[Entry] = field(default_factory=list)
    rejected: list[tuple[Entry, str]] = field(default_factory=list)
    block_reason: str = ""


def capacity_of(install: Install, mechanism: str = "") -> int:
    """The number of events that fill one request of the mechanism; by default the install's."""
    per_change = MECHANISMS[mechanism or install.mechanism].items_per_change
    return max(1, min(install.batch_size, install.learned_batch_size or install.batch_size) // per_change)


def latest_ns() -> int:
    """The latest transition time that is believed now. The clock of Lytics may be ahead by CLOCK_TOLERANCE_SECONDS."""
    return round((time.time() + settings.CLOCK_TOLERANCE_SECONDS) * times.SECOND)


def is_ahead(occurred_ns: int) -> bool:
    """Whether a stored time is too far ahead to be believed.

    PostgreSQL's clock confirms it, because this machine's may be behind that of the web process that stored the time.
    """
    return occurred_ns > latest_ns() and occurred_ns > latest_ns_of_database()


def latest_ns_of_database() -> int:
    """``latest_ns`` by PostgreSQL's clock."""
    row = _CLOCK.run().one()
    assert row is not None
    return row.now_ns + round(settings.CLOCK_TOLERANCE_SECONDS * times.SECOND)


class Columns(NamedTuple):
    """The columns of spans, each as the text of a PostgreSQL array."""

    audiences: str
    firsts: str
    lasts: str


def columns(spans: Iterable[Span]) -> Columns:
    spans = list(spans)
    return Columns(
        prepared_statements.numbers([span.audience_id for span in spans]),
        prepared_statements.numbers([span.first for span in spans]),
        prepared_statements.numbers([span.last for span in spans]),
    )


def worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"[:100]
