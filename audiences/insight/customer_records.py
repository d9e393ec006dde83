"""Where the log and the ledger have a customer, found without scanning either."""

import re
from collections.abc import Collection
from datetime import datetime
from itertools import product
from math import prod
from typing import NamedTuple

from django.db import connection, transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Lower

from audiences import sql
from audiences.models import Event, Install

# The largest number of events read for one page. More are read than shown, because an older event may have decided a
# shown one.
READ = 2_000
# The largest number of spellings of one identifier that are all looked up.
SPELLINGS = 256

_SQL = sql.beside(__file__)


class Place(NamedTuple):
    """Where a page of events ends, newest first."""

    received_at: datetime
    audience_id: int
    sequence: int


class InLedger(NamedTuple):
    audience: int


class Spelling(NamedTuple):
    identifier: str


_IN_LEDGER = _SQL.query("audiences_with_membership", InLedger._make)
_SPELLINGS = _SQL.query("identifiers_with_membership", Spelling._make)


def audiences_with(identifier: str, before: Place | None = None) -> set[int]:
    """The audiences that have the customer in the ledger, or in a page of the log."""
    with_events = {event.audience_id for event in events(identifier, before)}
    return with_events | {row.audience for row in _IN_LEDGER.run(identifier=identifier).all()}


def installs_with(identifier: str) -> list[Install]:
    """The installs whose ledger or log has this customer, by name."""
    found = Install.objects.filter(audiences__in=audiences_with(identifier)).distinct()
    return list(found.order_by(Lower("name"), "pk"))


def variants(identifier: str) -> list[str]:
    """Spellings of the identifier in other letter case for which the ledger has a row."""
    others = _spellings(identifier) - {identifier}
    return sorted(row.identifier for row in _SPELLINGS.run(identifiers=[*others], many=len(others)).all())


def _spellings(identifier: str) -> set[str]:
    """The identifier in other letter case, as a whole and word by word; at most about ``SPELLINGS``.

    There is no case-insensitive index: it would slow down receiving more than this hint is worth.
    """
    spellings = {identifier.lower(), identifier.upper(), identifier.title(), identifier.capitalize()}
    words = re.split(r"([\W_]+)", identifier)
    ways = [list(dict.fromkeys((word, word.lower(), word.upper(), word.capitalize()))) for word in words]
    if prod(map(len, ways)) <= SPELLINGS:
        return spellings | {"".join(way) for way in product(*ways)}
    for place, others in enumerate(ways[:SPELLINGS]):
        spellings |= {"".join((*words[:place], other, *words[place + 1 :])) for other in others}
    return spellings


def events(identifier: str, before: Place | None, among: Collection[int] | None = None) -> list[Event]:
    """Newest first, of all audiences or of those in ``among``."""
    wanted = Event.objects.filter(identifier=identifier).order_by("-received_at", "-audience_id", "-sequence")
    if among is not None:
        # The sum keeps the planner from reading every event of these audiences by the index of their numbers.
        wanted = wanted.alias(of=F("audience_id") + 0).filter(of__in=among)
    return _read(wanted if before is None else wanted.filter(_is_before(before)))


def newer_events(identifier: str, page: Place) -> list[Event]:
    """The event at the place and the next newer ones, oldest first: one of them may have decided an event of the page
    before the place.
    """
    wanted = Event.objects.filter(identifier=identifier).exclude(_is_before(page))
    return _read(wanted.order_by("received_at", "audience_id", "sequence"))


def _is_before(place: Place) -> Q:
    at, audience, sequence = place
    return (
        Q(received_at__lt=at)
        | Q(received_at=at, audience_id__lt=audience)
        | Q(received_at=at, audience_id=audience, sequence__lt=sequence)
    )


def _read(wanted: QuerySet[Event]) -> list[Event]:
    """Without ``enable_seqscan = off`` the planner scans the whole log instead of the BRIN index."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        return list(wanted[:READ])
