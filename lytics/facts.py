"""What a call says: facts, the items set aside from it, and the limits of both."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import msgspec

IDENTIFIER_BYTES = 256
# Not documented; long enough for any slug a person typed, short enough for a column that also holds a prefix.
NAME_BYTES = 500
# Lytics documents 1,000 messages in a call, 50 identifiers of a person and 500 audiences. A body that goes far beyond
# would take a web process's memory: the product of two long lists fits into few bytes.
MESSAGES_AT_MOST = 100_000
FACTS_AT_MOST = 500_000


class Kind(IntEnum):
    """What happened. A change is the news that a member's profile changed, so it asserts membership."""

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


class SetAside(NamedTuple):
    """A message, or a part of it, that gave no fact: the reason's code, what was seen, and the message's own bytes.

    There is one for each reason that a message gives, however many parts of it share the reason.
    """

    reason: str
    detail: str
    raw: bytes


@dataclass
class Reading:
    """What one body held. ``skipped`` counts identifier values that were blank or no identifiers at all.

    ``claims`` counts segment events whose time was not believed; their facts have ``claimed_ns``.
    ``emptied`` are facts of profiles whose list of identifiers has nothing in it; their identifier is blank.
    """

    messages: int = 0
    facts: list[Fact] = field(default_factory=list)
    emptied: list[Fact] = field(default_factory=list)
    aside: list[SetAside] = field(default_factory=list)
    skipped: int = 0
    claims: int = 0
    job: str = ""
