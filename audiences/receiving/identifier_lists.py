"""Identifiers that a profile no longer has: an option for installs whose identifier field holds a list.

Lytics sends the whole list with each message and never names a removed value. With the option on, the last list of
each profile (its Lytics ID, ``_id``) and audience is stored, and an identifier that a newer list lacks leaves the
audience at that list's time. Off by default: when two profiles are merged, the list that lost an identifier can be
newer than the one that gained it.

The result doesn't depend on the order, as in the fold: a stored newer list corrects a list that arrives late.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from audiences import sql
from audiences.delivery.fold import EARLIEST_NS
from audiences.delivery.leases import is_ahead
from lytics.facts import Fact, Kind


class _Known(NamedTuple):
    """The newest list of one profile in one audience; an exit's is empty and wins a tie, as in the fold."""

    occurred_ns: int
    left: bool
    identifiers: frozenset[str]


_Key = tuple[int, str]


class _Stored(NamedTuple):
    audience_id: int
    profile: str
    occurred_ns: int
    has_left: bool
    identifiers: str


_SQL = sql.beside(__file__)
_READ = _SQL.query("read_lists", _Stored._make)
_WRITE = _SQL.command("write_lists")


def departures(facts: Mapping[int, Sequence[Fact]]) -> dict[int, list[Fact]]:
    """Exits for identifiers that are gone from their profile's list; ``facts`` and the result are by audience id.

    A fact without an identifier means an empty list. The caller holds the locks of the audiences, so that two
    calls about one profile don't overlap.
    """
    listings: dict[tuple[int, str, int, bool], set[str]] = {}
    for audience_id, some in facts.items():
        for fact in some:
            if fact.profile:
                listing = (audience_id, fact.profile, fact.occurred_ns, fact.kind is Kind.EXIT)
                identifiers = listings.setdefault(listing, set())
                if fact.identifier:
                    identifiers.add(fact.identifier)
    known = _read({(audience_id, profile) for audience_id, profile, _, _ in listings})
    exits: dict[int, list[Fact]] = {}
    for (audience_id, profile, occurred_ns, left), identifiers in listings.items():
        new = _Known(occurred_ns, left, frozenset() if left else frozenset(identifiers))
        newest, gone = _merge(known.get((audience_id, profile)), new, frozenset(identifiers))
        known[audience_id, profile] = newest
        if gone:
            exits.setdefault(audience_id, []).extend(
                Fact("", "", identifier, Kind.EXIT, newest.occurred_ns, profile) for identifier in gone
            )
    _write(known)
    return exits


def add(facts: Mapping[int, Sequence[Fact]]) -> None:
    """Add identifiers that a repair enters to the list of their profile, so that they leave with Lytics' next list
    without them. ``facts`` are by audience id. The caller holds the locks of the audiences.

    A list keeps its time, because the repair doesn't know the others of Lytics' list: with a later time, a list that
    arrives late would take out what it names.
    """
    listings: dict[_Key, frozenset[str]] = {}
    for audience_id, some in facts.items():
        for fact in some:
            if fact.profile and fact.kind is not Kind.EXIT:
                key = (audience_id, fact.profile)
                listings[key] = listings.get(key, frozenset()) | {fact.identifier}
    known = _read(listings)
    nothing = _Known(0, False, frozenset())
    for key, identifiers in listings.items():
        before = known.get(key, nothing)
        known[key] = before._replace(left=False, identifiers=before.identifiers | identifiers)
    _write(known)


def _merge(known: _Known | None, new: _Known, listed: frozenset[str]) -> tuple[_Known, frozenset[str]]:
    """The newer of two lists, and the identifiers that leave at its time because it lacks them."""
    if known is None:
        return new, frozenset()
    if known[:2] == new[:2]:
        return new._replace(identifiers=known.identifiers | new.identifiers), frozenset()
    if new[:2] > known[:2]:
        return new, known.identifiers - listed
    return known, frozenset() if new.left else listed - known.identifiers


def _read(keys: Iterable[_Key]) -> dict[_Key, _Known]:
    asked = [{"audience_id": audience_id, "profile": profile} for audience_id, profile in keys]
    known = {}
    for row in _READ.run(asked=json.dumps(asked)).all():
        # An older version stored times later than that: any real list is newer.
        occurred_ns = EARLIEST_NS if is_ahead(row.occurred_ns) else row.occurred_ns
        known[row.audience_id, row.profile] = _Known(occurred_ns, row.has_left, frozenset(json.loads(row.identifiers)))
    return known


def _write(known: dict[_Key, _Known]) -> None:
    rows = [
        {
            "audience_id": audience_id,
            "profile": profile,
            "occurred_ns": newest.occurred_ns,
            "has_left": newest.left,
            "identifiers": sorted(newest.identifiers),
        }
        for (audience_id, profile), newest in known.items()
    ]
    _WRITE.run(lists=json.dumps(rows))
