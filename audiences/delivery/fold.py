"""The fold: from events in any order, repeated or not, to what each customer's membership is. Pure.

The later transition time wins and an exit wins a tie, so arrival order, repeats and the cutting into runs make no
difference: the fold is commutative, associative and idempotent.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lytics.facts import Kind

# The values in the log. Compared for every event: an attribute of the enum costs several times as much.
EXIT, ENTER, CHANGE = int(Kind.EXIT), int(Kind.ENTER), int(Kind.CHANGE)
# The prefix of the tokens that replace forgotten identifiers (``operations/forgetting.py``). They are never sent.
FORGOTTEN = "lytics-sync-forgotten-"
# A time before each transition time.
EARLIEST_NS = -(2**63)


class Entry(NamedTuple):
    """The columns of an event that the fold needs."""

    sequence: int
    identifier: str
    kind: int
    occurred_ns: int
    forced: bool = False


class Held(NamedTuple):
    """What the ledger holds of one identifier in one audience."""

    is_member: bool
    occurred_ns: int
    rejected: bool = False


@dataclass
class Folded:
    """One run, folded. ``send`` has to go to ODP; ``unchanged`` is newer than the ledger and changes nothing in ODP."""

    send: list[Entry] = field(default_factory=list)
    unchanged: list[Entry] = field(default_factory=list)


def disbelieve(entries: Sequence[Entry], ahead: Container[int], ledger: Mapping[str, Held]) -> list[Entry]:
    """``entries``; those numbered in ``ahead`` get ``EARLIEST_NS`` if another event or the ledger has their customer.

    Older versions stored times ahead of the clock. Such an event decides only where nothing else is known. In
    ``ledger``, such a time is ``EARLIEST_NS`` already.
    """
    real = {entry.identifier for entry in entries if entry.sequence not in ahead}
    real |= {identifier for identifier, held in ledger.items() if held.occurred_ns != EARLIEST_NS}
    return [
        entry._replace(occurred_ns=EARLIEST_NS) if entry.sequence in ahead and entry.identifier in real else entry
        for entry in entries
    ]


def precedence(entry: Entry) -> tuple[int, bool]:
    """Which of two events of one membership decides it: the greater one."""
    return entry.occurred_ns, entry.kind == EXIT


def newest(entries: Iterable[Entry]) -> dict[str, Entry]:
    """The deciding event of each identifier. Among equal times a forced event decides, then an enter."""
    winners: dict[str, Entry] = {}
    for entry in entries:
        other = winners.get(entry.identifier)
        if other is None or _rank(entry) > _rank(other):
            winners[entry.identifier] = entry
    return winners


def _rank(entry: Entry) -> tuple[int, bool, bool, bool, int]:
    return *precedence(entry), entry.forced, entry.kind == ENTER, entry.sequence


def fold(entries: Iterable[Entry], ledger: Mapping[str, Held]) -> Folded:
    """The changes to send for a run, given the ledger of its audience.

    An exit of a customer without a ledger row is sent: the customer may be a member from before this service. A change
    of a known member isn't sent, because ODP's state wouldn't differ, unless the run has an exit between the two, which
    a failed request may have applied. It still updates the ledger. So a forced event is sent with the ledger's time
    when that is newer, and dropped only when another state was sent since.
    """
    entries = list(entries)
    again = newest([entry for entry in entries if entry.forced])
    exits: dict[str, Entry] | None = None
    folded = Folded()
    for identifier, entry in newest(entries).items():
        if identifier.startswith(FORGOTTEN):
            continue
        held, forced = ledger.get(identifier), again.get(identifier)
        if held is not None and not _decides(entry, held):
            if forced is not None and (forced.kind != EXIT) == held.is_member:
                folded.send.append(forced._replace(occurred_ns=held.occurred_ns))
            continue
        if entry.kind == CHANGE and held is not None and held.is_member and not held.rejected and forced is None:
            if exits is None:
                exits = newest([entry for entry in entries if entry.kind == EXIT])
            if not _has_left(exits.get(identifier), held):
                folded.unchanged.append(entry)
                continue
        folded.send.append(entry)
    return folded


def _has_left(leaving: Entry | None, held: Held) -> bool:
    return leaving is not None and _decides(leaving, held)


def _decides(entry: Entry, held: Held) -> bool:
    ours, theirs = precedence(entry), (held.occurred_ns, not held.is_member)
    return ours > theirs or (ours == theirs and entry.forced)
