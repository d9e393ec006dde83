"""The identifiers on customers' profiles in ODP, read over GraphQL."""

from collections.abc import Sequence
from typing import Any

import msgspec

from odp.client import Client
from odp.graphql import FS, WEB
from odp.outcomes import Outcome
from odp.paths import GRAPHQL


def names_of(client: Client, identifiers: Sequence[str], *, seconds: float) -> dict[str, set[str]]:
    """The other identifiers on the profile of each customer in ODP, by the identifier in the query.

    ODP documents identifiers as fields of a customer, but not which of several values it returns; the newest is
    assumed. Customers without another identifier are left out. The result is empty if ODP didn't answer the query.
    """
    customers = [(name, identifier) for identifier in identifiers for name in (FS, WEB)]
    declared = ", ".join(f"$p{nth}: String" for nth in range(len(customers)))
    fields = " ".join(f"c{nth}: customer({name}: $p{nth}) {{ {FS} {WEB} }}" for nth, (name, _) in enumerate(customers))
    variables = {f"p{nth}": identifier for nth, (_, identifier) in enumerate(customers)}
    body = msgspec.json.encode({"query": f"query({declared}) {{ {fields} }}", "variables": variables})
    answer = client.call("POST", GRAPHQL, body=body, seconds=seconds)
    found: Any = answer.json if answer.outcome is Outcome.DELIVERED else None
    data = found.get("data") if isinstance(found, dict) else None
    names: dict[str, set[str]] = {}
    for nth, (_, identifier) in enumerate(customers):
        profile = data.get(f"c{nth}") if isinstance(data, dict) else None
        values = [profile.get(name) for name in (FS, WEB)] if isinstance(profile, dict) else []
        if others := {value for value in values if isinstance(value, str) and value not in ("", identifier)}:
            names.setdefault(identifier, set()).update(others)
    return names
