"""Which of these audiences is a customer in: asked over GraphQL, as the products do that personalise by them.

Feature Experimentation looks a customer up as ``fs_user_id``, Web Experimentation as ``web_user_id``; what both are
answered is what counts, and so both are asked, in one request.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from odp.client import Client
from odp.outcomes import Answer, Outcome, readable
from odp.paths import GRAPHQL

FS, WEB = "fs_user_id", "web_user_id"
# ODP answers in pages of at most 1,000, and says nowhere how long they are unasked, nor how many ids may be named.
AUDIENCES_PER_QUERY = 100
# An id that ODP doesn't know comes back as an error with this code, in older answers with this classification.
_UNKNOWN = {"INVALID_IDENTIFIER_EXCEPTION", "InvalidIdentifierException"}

# An identifier's name and its value.
Customer = tuple[str, str]


@dataclass(frozen=True)
class Asked:
    """What ODP said about several customers. ``qualified`` has a set for each, None for one that ODP doesn't know."""

    answer: Answer
    qualified: list[set[str] | None] = field(default_factory=list)

    @property
    def told(self) -> bool:
        return self.answer.outcome is Outcome.DELIVERED


@dataclass(frozen=True)
class MembershipAnswer:
    """What ODP said about one customer.

    ``by_name`` holds, per name of the identifier, the audiences the customer is in; None when ODP doesn't know the
    customer by that name. It is empty when ODP could not be asked; ``answer`` says why.
    """

    answer: Answer
    by_name: dict[str, set[str] | None] = field(default_factory=dict)

    @property
    def qualified(self) -> set[str] | None:
        """Those that both products would be told; by the one name alone when ODP knows no other. None: not told."""
        if not self.by_name:
            return None
        known = [found for found in self.by_name.values() if found is not None]
        return set.intersection(*known) if known else set()

    @property
    def known(self) -> bool:
        return any(found is not None for found in self.by_name.values())

    def is_in(self, odp_id: str) -> bool:
        """Under every name: both products would personalise."""
        return bool(self.by_name) and all(odp_id in (found or ()) for found in self.by_name.values())

    def is_out(self, odp_id: str) -> bool:
        """Under none of the names; a customer whom ODP doesn't know is in no audience."""
        return bool(self.by_name) and not any(odp_id in (found or ()) for found in self.by_name.values())


def audiences_of(client: Client, *, identifier: str, odp_ids: Sequence[str], seconds: float) -> MembershipAnswer:
    """Which of ``odp_ids`` this customer is in. Ask only for audiences that are in ODP; all calls get ``seconds``."""
    return audiences_of_each(client, identifiers=[identifier], odp_ids=odp_ids, seconds=seconds)[identifier]


def audiences_of_each(
    client: Client, *, identifiers: Sequence[str], odp_ids: Sequence[str], seconds: float
) -> dict[str, MembershipAnswer]:
    """The same of several customers at once, by identifier."""
    customers = [(name, identifier) for identifier in identifiers for name in (FS, WEB)]
    found = ask(client, customers=customers, odp_ids=odp_ids, seconds=seconds)
    answers = {identifier: MembershipAnswer(found.answer) for identifier in identifiers}
    for (name, identifier), qualified in zip(customers, found.qualified, strict=False):
        answers[identifier].by_name[name] = qualified
    return answers


def ask(client: Client, *, customers: Sequence[Customer], odp_ids: Sequence[str], seconds: float) -> Asked:
    """About several customers at once, each under an alias of its own. The first answer that tells nothing ends it."""
    whole: list[set[str] | None] = []
    taken, answer = 0.0, Answer(Outcome.DELIVERED)
    for start in range(0, max(len(odp_ids), 1), AUDIENCES_PER_QUERY):
        among = odp_ids[start : start + AUDIENCES_PER_QUERY]
        body = msgspec.json.encode({"query": _query(customers), "variables": _variables(customers, among)})
        answer = client.call("POST", GRAPHQL, body=body, seconds=seconds - taken)
        taken += answer.seconds
        answer = replace(_understood(answer, len(customers)), seconds=taken)
        if answer.outcome is not Outcome.DELIVERED:
            return Asked(answer)
        found = [_qualified((answer.json["data"] or {}).get(f"c{nth}")) for nth in range(len(customers))]
        whole = [_joined(*pair) for pair in zip(whole, found, strict=True)] if whole else found
    return Asked(answer, whole)


def _query(customers: Sequence[Customer]) -> str:
    declared = "".join(f", $p{nth}: String" for nth in range(len(customers)))
    asked = " ".join(
        f"c{nth}: customer({name}: $p{nth}) {{ audiences(subset: $among) {{ edges {{ node {{ name state }} }} }} }}"
        for nth, (name, _) in enumerate(customers)
    )
    return f"query($among: [String]{declared}) {{ {asked} }}"


def _variables(customers: Sequence[Customer], among: Sequence[str]) -> dict[str, object]:
    return {"among": list(among), **{f"p{nth}": value for nth, (_, value) in enumerate(customers)}}


def _understood(answer: Answer, customers: int) -> Answer:
    """GraphQL says 200 to everything: what its ``errors`` tell beside an unknown customer is a refusal."""
    if answer.outcome is not Outcome.DELIVERED:
        return answer
    body = answer.json if isinstance(answer.json, dict) else {}
    data, errors = body.get("data"), body.get("errors") or []
    errors = errors if isinstance(errors, list) else [errors]
    others = [error for error in errors if not _says_unknown(error)]
    if others:
        return replace(answer, outcome=Outcome.REFUSED, reason=f"GraphQL: {_message(others[0])}")
    named = data if isinstance(data, dict) else {}
    # One unknown customer may come back without any data at all.
    if not errors and any(not _has_edges(named.get(f"c{nth}")) for nth in range(customers)):
        return replace(answer, outcome=Outcome.RETRY_LATER, reason="What came back is no answer of GraphQL")
    return replace(answer, json={"data": named})


def _says_unknown(error: Any) -> bool:
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
