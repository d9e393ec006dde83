"""The verification of a guided change: a sample of an audience's people in ODP against the ledger."""

import math
import random
from collections.abc import Sequence

from audiences.models import Audience, Event, Membership
from odp.client import Client
from odp.graphql import FS, WEB, Customer, ask

# The number of an audience's people who are verified in ODP.
SAMPLE = 200


def sample(audience_id: int, *, first: int, last: int, seed: int) -> Sequence[Membership]:
    """A sample of the people with events from ``first`` to ``last``, without those whose state ODP rejected. A ``seed``
    gives the same sample each time."""
    if last < first:
        return []
    numbers = range(first, last + 1)
    # A sample, no secret.
    picked = numbers if len(numbers) <= SAMPLE else random.Random(seed).sample(numbers, SAMPLE)  # noqa: S311
    events = Event.objects.filter(audience=audience_id, sequence__in=list(picked))
    people = set(events.values_list("identifier", flat=True))
    rows = Membership.objects.filter(audience=audience_id, identifier__in=people, rejected=False)
    return list(rows.order_by("identifier"))


def of_ledger(audience_id: int, *, upto: int, seed: int) -> Sequence[Membership]:
    """A sample of the people whose state is decided by an event up to ``upto``.

    Old events may be deleted (docs/retention.md), so the ledger's first people fill the sample up.
    """
    people = {row.identifier: row for row in sample(audience_id, first=1, last=upto, seed=seed) if row.sequence <= upto}
    ledger = Membership.objects.filter(audience=audience_id, rejected=False, sequence__lte=upto).order_by("identifier")
    if len(people) < SAMPLE:
        first = {row.identifier: row for row in ledger[:SAMPLE]}
        lacking = [identifier for identifier in first if identifier not in people][: SAMPLE - len(people)]
        people |= {identifier: first[identifier] for identifier in lacking}
    return [people[identifier] for identifier in sorted(people)]


def explained(rejected: int, *, people: int, of: int) -> int:
    """The most people in a sample who differ because ODP rejected them, if it rejected that many people among ``of``.

    Of a part of these, a sample has three standard deviations above the mean at most.
    """
    mean = rejected * min(1.0, people / max(1, of))
    return rejected if people >= of else min(rejected, math.floor(mean + 3 * math.sqrt(mean)) + 1)


def names(people: Sequence[Membership]) -> list[Customer]:
    """Both identifiers of each person, so each person has two entries in the result of a query."""
    return [(name, row.identifier) for row in people for name in (FS, WEB)]


def without_hidden(old: Client, odp_id: str, people: Sequence[Membership], *, seconds: float) -> list[Membership]:
    """The people without the members whom the old account doesn't show either, for example without consent."""
    members = [row for row in people if row.is_member]
    found = ask(old, customers=names(members), odp_ids=[odp_id], seconds=seconds) if members else None
    if found is None or not found.succeeded:
        return list(people)
    hidden = {
        row.identifier
        for nth, row in enumerate(members)
        if not all(odp_id in (known or set()) for known in found.qualified[2 * nth : 2 * nth + 2])
    }
    return [row for row in people if row.identifier not in hidden]


def differing(
    people: Sequence[Membership], qualified: Sequence[set[str] | None], new: str, old: str = ""
) -> list[Membership]:
    """The people in the sample whom the new definition doesn't show as the ledger has them.

    A member whom the old definition doesn't show either, for example without consent, doesn't count as a difference.
    If the new definition shows no member at all, such members count too.
    """
    names = [[known or set() for known in qualified[2 * nth : 2 * nth + 2]] for nth in range(len(people))]
    is_shown = [{new in known for known in both} for both in names]
    was_shown = [not old or all(old in known for known in both) for both in names]
    some = any({True} == shown for shown in is_shown)
    return [
        row
        for row, shown, before in zip(people, is_shown, was_shown, strict=True)
        if shown != {row.is_member} and (before or not row.is_member or not some)
    ]


def unchanged(audience: Audience, rows: Sequence[Membership]) -> list[Membership]:
    """The rows that didn't change since they were read. A live event may have changed the others."""
    again = Membership.objects.filter(audience=audience, identifier__in=[row.identifier for row in rows])
    now_held = {row.identifier: (row.is_member, row.sequence) for row in again}
    return [row for row in rows if now_held.get(row.identifier) == (row.is_member, row.sequence)]
