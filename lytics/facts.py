"""The result of reading a call: facts and items to park; and the limits of both."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import msgspec

IDENTIFIER_BYTES = 256
# Lytics documents no limit. Any slug that a person types is shorter; the ODP id adds a prefix in the same column.
NAME_BYTES = 500
# Lytics documents 1,000 messages per call, and 50 identifiers and 500 audiences per person. Without these limits, a
# small body with two long lists would use up the memory of a web process: each pair becomes a fact.
MESSAGES_AT_MOST = 100_000
FACTS_AT_MOST = 500_000


class Kind(IntEnum):
    """The kind of a transition. A change reports a new profile of a member, so it also asserts membership."""

    EXIT = 0
    ENTER = 1
    CHANGE = 2


class Fact(msgspec.Struct, frozen=True, gc=False):
    """One identifier entered, left or was confirmed in one audience: by segment id, slug, or both."""

    segment_id: str
    slug: str
    identifier: str
    kind: Kind
    occurred_ns: int
    # The Lytics ID of the profile, when the identifier field is another one.
    profile: str = ""
    # The transition time in the message if it is too far ahead of the clock to be used, else 0.
    claimed_ns: int = 0


class Columns(NamedTuple):
    """Facts as parallel lists. Reading and storing a batch takes longer with an object for each fact.

    ``names`` are pairs of segment id and slug, ``profiles`` Lytics IDs or blank.
    """

    names: list[tuple[str, str]]
    identifiers: list[str]
    kinds: list[Kind]
    occurred_ns: list[int]
    profiles: list[str]


class ItemToPark(NamedTuple):
    """An item to park, because a message or a part of it gave no fact: reason code, detail, bytes of the message.

    A message has one per reason, also if several parts share the reason.
    """

    reason: str
    detail: str
    raw: bytes


@dataclass
class Reading:
    """The result of reading one body. ``skipped`` counts identifier values that are blank or of another type.

    ``claims`` counts segment events with a time too far ahead to be used; their facts have ``claimed_ns``.
    ``emptied`` are facts of profiles with an empty list of identifiers; their identifier is blank.
    """

    messages: int = 0
    # The facts in one of two forms: as columns, if all messages of a batch are common, or as a list.
    _columns: Columns | None = None
    _facts: list[Fact] = field(default_factory=list)
    emptied: list[Fact] = field(default_factory=list)
    to_park: list[ItemToPark] = field(default_factory=list)
    skipped: int = 0
    claims: int = 0
    job: str = ""

    @property
    def facts(self) -> list[Fact]:
        if self._columns is not None:
            columns, self._columns = self._columns, None
            self._facts = [
                Fact(*name, identifier, kind, occurred_ns, profile)
                for name, identifier, kind, occurred_ns, profile in zip(
                    columns.names,
                    columns.identifiers,
                    columns.kinds,
                    columns.occurred_ns,
                    columns.profiles,
                    strict=True,
                )
            ]
        return self._facts

    @property
    def columns(self) -> Columns:
        if self._columns is not None:
            return self._columns
        return Columns(
            [(fact.segment_id, fact.slug) for fact in self._facts],
            [fact.identifier for fact in self._facts],
            [fact.kind for fact in self._facts],
            [fact.occurred_ns for fact in self._facts],
            [fact.profile for fact in self._facts],
        )

    @columns.setter
    def columns(self, columns: Columns) -> None:
        self._columns = columns
