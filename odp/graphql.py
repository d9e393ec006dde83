"""Which audiences a customer is in: queried over GraphQL, as the products that personalise by audiences do.

Feature Experimentation looks a customer up by ``fs_user_id``, Web Experimentation by ``web_user_id``. Both results
count, so one request queries both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from odp import redact
from odp.client import Client
from odp.outcomes import Answer, Outcome, readable
from odp.paths import GRAPHQL

FS, WEB = "fs_user_id", "web_user_id"
# ODP pages hold at most 1,000 audiences. It documents neither the default page size nor how many ids a query may name.
AUDIENCES_PER_QUERY = 100
# The largest estimate that is read: PostgreSQL can't store a larger one.
LARGEST = 2**63 - 1
# ODP reports an unknown customer as an error with this code, in older responses with this classification.
_UNKNOWN = {"INVALID_IDENTIFIER_EXCEPTION", "InvalidIdentifierException"}

# The name of an identifier (``fs_user_id``) and its value.
Customer = tuple[str, str]


@dataclass(frozen=True)
class CustomersAnswer:
    """The result for several customers.

    ``qualified`` has for each customer the audiences, or None when ODP doesn't know the customer. It is empty when the
    query failed; ``answer`` says why.
    """

    answer: Answer
    qualified: list[set[str] | None] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        return self.answer.outcome is Outcome.DELIVERED


@dataclass(frozen=True)
class MembershipAnswer:
    """The result for one customer.

    ``by_name`` holds the customer's audiences by the name of the identifier, None when ODP doesn't know the customer by
    that name. It is empty when the query failed; ``answer`` says why.
    """

    answer: Answer
    by_name: dict[str, set[str] | None] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether ODP knows the customer, by any name."""
        return any(found is not None for found in self.by_name.values())

    def is_in(self, odp_id: str) -> bool:
        """Whether the customer is in the audience under every name, so that both products personalise."""
        return bool(self.by_name) and all(odp_id in (found or ()) for found in self.by_name.values())

    def is_out(self, odp_id: str) -> bool:
        """Whether the customer is in the audience under no name. A customer unknown to ODP is in no audience."""
        return bool(self.by_name) and not any(odp_id in (found or ()) for found in self.by_name.values())


def audiences_of(client: Client, *, identifier: str, odp_ids: Sequence[str], seconds: float) -> MembershipAnswer:
    """Which of ``odp_ids``, all of which must exist in ODP, this customer is in. All requests share ``seconds``."""
    customers = [(name, identifier) for name in (FS, WEB)]
    found = ask(client, customers=customers, odp_ids=odp_ids, seconds=seconds)
    by_name = {name: qualified for (name, _), qualified in zip(customers, found.qualified, strict=False)}
    return MembershipAnswer(found.answer, by_name)


def ask(client: Client, *, customers: Sequence[Customer], odp_ids: Sequence[str], seconds: float) -> CustomersAnswer:
    """Query several customers at once, each under its own alias. The first failed request ends the query."""
    qualified: list[set[str] | None] = []
    elapsed, answer = 0.0, Answer(Outcome.DELIVERED)
    for start in range(0, max(len(odp_ids), 1), AUDIENCES_PER_QUERY):
        among = odp_ids[start : start + AUDIENCES_PER_QUERY]
        body = msgspec.json.encode({"query": _query(customers), "variables": _variables(customers, among)})
        answer = client.call("POST", GRAPHQL, body=body, seconds=seconds - elapsed)
        elapsed += answer.seconds
        answer = replace(_checked(answer, len(customers)), seconds=elapsed)
        if answer.outcome is not Outcome.DELIVERED:
            named = redact.values_in([identifier for _, identifier in customers])
            return CustomersAnswer(replace(answer, reason=redact.without(answer.reason, named)))
        page = [_qualified((answer.json["data"] or {}).get(f"c{nth}")) for nth in range(len(customers))]
        qualified = [_joined(*pair) for pair in zip(qualified, page, strict=True)] if qualified else page
    return CustomersAnswer(answer, qualified)


def population(client: Client, *, odp_id: str, seconds: float) -> tuple[int, int] | None:
    """ODP's estimate of an audience's size, lowest and highest. None when ODP gives none.

    Observed in the query of a CMS package, and not documented. ODP chooses the width of the estimate by percent_error.
    """
    query = (
        "query($name: String!) { audience(name: $name) { population_estimate(percent_error: 5)"
        " { estimated_lower_bound estimated_upper_bound } } }"
    )
    body = msgspec.json.encode({"query": query, "variables": {"name": odp_id}})
    answer = client.call("POST", GRAPHQL, body=body, seconds=seconds)
    found: Any = answer.json if answer.outcome is Outcome.DELIVERED else None
    for name in ("data", "audience", "population_estimate"):
        found = found.get(name) if isinstance(found, dict) else None
    bounds = [found.get(f"estimated_{side}_bound") for side in ("lower", "upper")] if isinstance(found, dict) else []
    match bounds:
        case [int(low), int(high)] if 0 <= low <= high <= LARGEST:
            return low, high
    return None


def _query(customers: Sequence[Customer]) -> str:
    declared = "".join(f", $p{nth}: String" for nth in range(len(customers)))
    fields = " ".join(
        f"c{nth}: customer({name}: $p{nth}) {{ audiences(subset: $among) {{ edges {{ node {{ name state }} }} }} }}"
        for nth, (name, _) in enumerate(customers)
    )
    return f"query($among: [String]{declared}) {{ {fields} }}"


def _variables(customers: Sequence[Customer], among: Sequence[str]) -> dict[str, object]:
    return {"among": list(among), **{f"p{nth}": value for nth, (_, value) in enumerate(customers)}}


def _checked(answer: Answer, customers: int) -> Answer:
    """GraphQL answers 200 even to a failed query: any of its ``errors`` but an unknown customer is a rejection."""
    if answer.outcome is not Outcome.DELIVERED:
        return answer
    body = answer.json if isinstance(answer.json, dict) else {}
    data, errors = body.get("data"), body.get("errors") or []
    errors = errors if isinstance(errors, list) else [errors]
    others = [error for error in errors if not is_unknown_customer(error)]
    if others:
        return replace(answer, outcome=Outcome.REJECTED, reason=f"GraphQL: {_message(others[0])}")
    named = data if isinstance(data, dict) else {}
    # ODP may leave out ``data``, so the errors have to say of each customer without audiences that it is unknown.
    lacking = sum(not _has_edges(named.get(f"c{nth}")) for nth in range(customers))
    if lacking > len(errors):
        reason = "The response says nothing about a customer" if errors else "The response is not one of GraphQL"
        return replace(answer, outcome=Outcome.RETRY_LATER, reason=reason)
    return replace(answer, json={"data": named})


def is_unknown_customer(error: Any) -> bool:
    extensions = error.get("extensions") if isinstance(error, dict) else None
    if not isinstance(extensions, dict):
        return False
    return any(str(extensions.get(name)) in _UNKNOWN for name in ("code", "classification"))


def _message(error: Any) -> str:
    return readable(str(error.get("message") or error) if isinstance(error, dict) else str(error))


def _has_edges(customer: Any) -> bool:
    audiences = customer.get("audiences") if isinstance(customer, dict) else None
    return isinstance(audiences, dict) and isinstance(audiences.get("edges"), list)


def _qualified(customer: Any) -> set[str] | None:
    if not _has_edges(customer):
        return None
    nodes = [edge.get("node") for edge in customer["audiences"]["edges"] if isinstance(edge, dict)]
    return {str(node.get("name")) for node in nodes if isinstance(node, dict) and node.get("state") == "qualified"}


def _joined(one: set[str] | None, other: set[str] | None) -> set[str] | None:
    return None if one is None and other is None else (one or set()) | (other or set())
