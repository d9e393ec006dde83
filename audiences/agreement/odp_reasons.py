"""Reasons of differences in ODP that the membership query doesn't show. They are searched for once per audit.

The audience in ODP is checked first: a missing field or another definition explains all differences. Otherwise ODP is
asked for the other identifiers of each customer who differs, because a merged profile has those of several people.
"""

from collections.abc import Sequence

from audiences.delivery.odp_account import client_of, mechanism_for
from audiences.models import Audience, Membership, Twin
from odp.mechanisms import Look
from odp.outcomes import Answer
from odp.profiles import names_of

UNKNOWN = "ODP doesn't know the customer: consent was withdrawn, or the profile was merged or deleted."
CHANGED = "ODP has another value: another system wrote it, or ODP did not apply what it accepted."
NOT_IN_LIST = "ODP doesn't show the list membership: consent was withdrawn, or another system ended it."
SPLIT = "The two identifiers are not on one profile in ODP: another system moved one of them."
ACCEPTED = "ODP's audience has a definition that a person accepted in place of ours."
MERGED = (
    "Merged profile in ODP: the customer also has the identifier of a person with the other state, and ODP has one"
    " state for both. The one who was sent last decides."
)
# Reasons that are a guess, until ODP shows another one.
GUESSES = (CHANGED, NOT_IN_LIST)
# The number of people whose profiles one query reads.
AT_ONCE = 100


def finding(audience: Audience, seen: Look) -> tuple[Twin.Finding, str]:
    """The finding of a look at an audience in ODP, and its reason in a sentence; empty without a finding."""
    if seen.problem:
        return Twin.Finding.WRONG, seen.problem
    if seen.missing:
        return Twin.Finding.MISSING, f"ODP no longer has {' and '.join(seen.missing)}."
    if seen.definition:
        return Twin.Finding.CHANGED, f"The definition of {audience.odp_id} was changed in ODP."
    return Twin.Finding.NOTHING, ""


def of_audience(audience: Audience, *, seconds: float) -> str:
    """Why the audience in ODP differs from ours now, or in the last look if ODP doesn't respond; else empty."""
    accepted = audience.accepted_definition
    client = client_of(audience.install)
    seen = mechanism_for(audience).look(client, audience.odp_id, seconds=seconds, accepted=accepted)
    if isinstance(seen, Answer):
        twin = Twin.objects.filter(pk=audience.pk).first()
        return str(twin.problem) if twin else ""
    return finding(audience, seen)[1] or (ACCEPTED if accepted else "")


def merged(audience: Audience, people: Sequence[str], *, seconds: float) -> list[str]:
    """The people whose profile in ODP also has the identifier of a person with the other state in the ledger."""
    client = client_of(audience.install)
    names: dict[str, set[str]] = {}
    for start in range(0, len(people), AT_ONCE):
        names |= names_of(client, people[start : start + AT_ONCE], seconds=seconds)
    wanted = {*names, *(name for found in names.values() for name in found)}
    ledger = Membership.objects.filter(audience=audience, identifier__in=wanted)
    states = dict(ledger.values_list("identifier", "is_member"))
    return [
        person
        for person, found in names.items()
        if any(states.get(name, states.get(person)) != states.get(person) for name in found)
    ]
