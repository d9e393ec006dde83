"""The identifiers on customers' profiles in ODP, read over GraphQL."""

from collections.abc import Sequence
from typing import Any

import msgspec

from odp.client import Client
from odp.graphql import FS, WEB
from odp.outcomes import Outcome
from odp.paths import GRAPHQL


def names_of(client: Client, identifiers: Sequence[str], *, seconds: float) -> dict[str, set[str]]:
    """The identifiers that ODP gives for each customer, beside the one by which it was asked.

    ODP documents identifiers as fields of a customer, and not which of several values it gives; the newest is assumed.
    Customers about whom ODP says nothing are left out, all of them when it can't be asked this way.
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
