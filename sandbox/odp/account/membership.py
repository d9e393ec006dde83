"""The members of a segment."""

from sandbox.odp.account.accounts import Account, Segment
from sandbox.odp.account.customers import Customer


def qualifies(account: Account, segment: Segment, customer: Customer | None, identifier: tuple[str, str]) -> bool:
    """Whether a customer is in a segment. A missing value never qualifies."""
    if segment.condition is None:
        members = account.passthrough_members.get(identifier, {})
        return members.get(segment.external_id or segment.id, (0.0, False))[1]
    return customer is not None and segment.condition(customer) is True


def members(account: Account, segment: Segment, kind: str) -> list[str]:
    """The sorted values of one identifier of all members."""
    if segment.condition is None:
        external = segment.external_id or segment.id
        known = account.passthrough_members.items()
        return sorted(value for (of_kind, value), ids in known if of_kind == kind and ids.get(external, (0, False))[1])
    inside = (customer for customer in account.customers if segment.condition(customer) is True)
    return sorted(value for customer in inside for value in customer.values_of(kind))


def population(account: Account, segment: Segment) -> int:
    if segment.condition is None:
        external = segment.external_id or segment.id
        return sum(ids.get(external, (0, False))[1] for ids in account.passthrough_members.values())
    return sum(segment.condition(customer) is True for customer in account.customers)
