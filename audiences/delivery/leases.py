"""What the steps of a delivery hand to each other: the lease, its spans, what became of each.

A lease is a token in the rows of its lanes. Every later step names the token, and a step of a worker that has lost its
lease changes no row. All clocks are PostgreSQL's.
"""

import os
import socket
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from django.conf import settings

from audiences import prepared_statements
from audiences.delivery.fold import Entry, Held
from audiences.models import Install
from lytics import times
from odp.mechanisms import MECHANISMS

WITHOUT_WAITING = "SELECT set_config('synchronous_commit', 'off', true)"

REFUSED_BY_ODP = "refused_by_odp"


Ledger = dict[int, dict[str, Held]]


class LeaseLostError(Exception):
    """Another worker may have claimed these lanes: what this one still wanted to do must not happen."""


class GapError(Exception):
    """Numbers are missing in the log of a lane. Numbering makes that impossible, so it is a bug or a damaged table."""


class Work(NamedTuple):
    """What an install has to do now: whether an audience may be made in ODP, and how many events may be claimed."""

    install: Install
    unprovisioned: bool
    ready: int


@dataclass(frozen=True)
class Span:
    """The next events of one lane: sequences ``first`` to ``last``, both included."""

    audience_id: int
    odp_id: str
    first: int
    last: int


@dataclass(frozen=True)
class Lease:
    """Lanes claimed together under one token; ``more`` says that others were ready and didn't fit."""

    token: uuid.UUID
    install: Install
    spans: tuple[Span, ...]
    more: bool
    # Whether ODP has refused customers of this install who are still parked for it.
    has_refusals: bool

    @property
    def audience_ids(self) -> list[int]:
        return [span.audience_id for span in self.spans]


@dataclass
class Result:
    """What became of one span. ``complete`` moves the cursor over it; else what is known goes to the ledger alone."""

    span: Span
    complete: bool = True
    events: int = 0
    sent: bool = False
    accepted: list[Entry] = field(default_factory=list)
    refused: list[tuple[Entry, str]] = field(default_factory=list)
    block_reason: str = ""


def capacity_of(install: Install) -> int:
    """How many events fill one request."""
    per_change = MECHANISMS[install.mechanism].items_per_change
    return max(1, min(install.batch_size, install.learned_batch_size or install.batch_size) // per_change)


def latest_ns() -> int:
    """The latest transition time that is believed now: so far ahead may the clock of Lytics be."""
    return round((time.time() + settings.CLOCK_TOLERANCE_SECONDS) * times.SECOND)


def arrays(spans: Iterable[Span]) -> list[str]:
    return [
        prepared_statements.numbers(column)
        for column in zip(*((s.audience_id, s.first, s.last) for s in spans), strict=True)
    ]


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"[:100]
