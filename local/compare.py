"""Compares the members that Lytics would count with those that ODP shows over GraphQL, person by person.

``python -m local.compare --odp-host URL --odp-api-key KEY --memberships FILE`` takes the memberships that the
sandbox's Lytics sender writes, queries ODP about all people in them, and exits with 0 when every audience is equal.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odp.client import Client
from odp.graphql import FS, ask

# Customers in one GraphQL query, each under its own alias.
CUSTOMERS_PER_QUERY = 200
DEADLINE_SECONDS = 30
# The number of people that are named for a difference.
EXAMPLES = 3

# The audiences by slug, as the sender writes them: segment_id, odp_id, members, and people who aren't members any more.
Audiences = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One audience: its expected members and those in ODP."""

    odp_id: str
    expected: frozenset[str]
    answered: frozenset[str]

    @property
    def equal(self) -> bool:
        return self.expected == self.answered


@dataclass(frozen=True, kw_only=True)
class Odp:
    """The host of ODP and the key for it."""

    host: str
    api_key: str

    def audiences_of(self, people: Sequence[str], *, among: Sequence[str]) -> Iterator[tuple[str, set[str]]]:
        """For each of ``people`` the audiences for which they qualify, out of ``among``."""
        client = Client(host=self.host.rstrip("/"), api_key=self.api_key)
        for start in range(0, len(people), CUSTOMERS_PER_QUERY):
            some = people[start : start + CUSTOMERS_PER_QUERY]
            asked = ask(client, customers=[(FS, who) for who in some], odp_ids=among, seconds=DEADLINE_SECONDS)
            if not asked.succeeded:
                raise SystemExit(asked.answer.reason)
            # None: ODP doesn't know the customer, who is then in no audience.
            yield from zip(some, (found or set() for found in asked.qualified), strict=True)


def compare(*, audiences: Audiences, odp_ids: Mapping[str, str], odp: Odp) -> list[Comparison]:
    """Query ODP about every customer named in any audience, so that a member of a wrong audience is found too."""
    expected = {odp_ids.get(one["segment_id"], one["odp_id"]): frozenset(one["members"]) for one in audiences.values()}
    people = sorted({who for one in audiences.values() for who in (*one["members"], *one["others"])})
    answered = defaultdict(set)
    for person, theirs in odp.audiences_of(people, among=list(expected)):
        for odp_id in theirs:
            answered[odp_id].add(person)
    return [
        Comparison(odp_id=odp_id, expected=members, answered=frozenset(answered[odp_id]))
        for odp_id, members in expected.items()
    ]


def compare_patiently(
    *, audiences: Audiences, odp_ids: Mapping[str, str], odp: Odp, patience: float
) -> list[Comparison]:
    """Compare until all are equal or ``patience`` is over, because ODP shows accepted changes after some seconds."""
    until = time.monotonic() + patience
    while True:
        comparisons = compare(audiences=audiences, odp_ids=odp_ids, odp=odp)
        if all(one.equal for one in comparisons) or time.monotonic() > until:
            return comparisons
        time.sleep(1)


def table(comparisons: Sequence[Comparison]) -> str:
    """A row per audience and, where an audience differs, a few of the customers that differ."""
    rows = [("audience", "members Lytics would count", "members ODP answers over GraphQL", "equal")]
    for one in comparisons:
        rows.append((one.odp_id, f"{len(one.expected):,}", f"{len(one.answered):,}", "yes" if one.equal else "NO"))
    first, second, third = (max(len(row[column]) for row in rows) for column in range(3))
    lines = [f"{row[0]:<{first}}  {row[1]:>{second}}  {row[2]:>{third}}  {row[3]}" for row in rows]
    for one in comparisons:
        lines += _difference(f"{one.odp_id}: ODP lacks", one.expected - one.answered)
        lines += _difference(f"{one.odp_id}: only ODP has", one.answered - one.expected)
    return "\n".join(lines)


def _difference(what: str, people: frozenset[str]) -> list[str]:
    if not people:
        return []
    more = f" and {len(people) - EXAMPLES:,} more" if len(people) > EXAMPLES else ""
    return [f"{what} {', '.join(sorted(people)[:EXAMPLES])}{more}"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m local.compare", description=__doc__)
    parser.add_argument("--odp-host", required=True)
    parser.add_argument("--odp-api-key", required=True)
    parser.add_argument("--memberships", required=True, type=Path, metavar="FILE", help="what the sender wrote")
    parser.add_argument(
        "--lanes", type=Path, metavar="FILE", help="what lane_status --json printed: the ODP ids in use"
    )
    parser.add_argument("--patience", type=float, default=0, metavar="SECONDS", help="ask again until all are equal")
    options = parser.parse_args(arguments)
    audiences = json.loads(options.memberships.read_text(encoding="utf-8"))["audiences"]
    lanes = json.loads(options.lanes.read_text(encoding="utf-8"))["lanes"] if options.lanes else []
    comparisons = compare_patiently(
        audiences=audiences,
        odp_ids={lane["segment_id"]: lane["odp_id"] for lane in lanes},
        odp=Odp(host=options.odp_host, api_key=options.odp_api_key),
        patience=options.patience,
    )
    print(table(comparisons))
    return 0 if all(one.equal for one in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
