"""How "this customer is in this Lytics audience" is written to ODP: one file per mechanism, and their registry.

| mechanism | in ODP |
|---|---|
| ``attribute`` | one boolean customer field per audience, and a real-time audience over it |
| ``list`` | one list per audience, and a real-time audience over membership in it |
| ``passthrough`` | ODP's own events for audiences computed elsewhere |

Which of them Optimizely's hosted app uses is not published (docs/decisions/0017-mechanism.md). The real-time audience
has the same id, name and description in all three. To add one, see docs/adding/a-mechanism.md.
"""

from typing import Any

from odp.mechanisms.attribute import Attribute
from odp.mechanisms.base import Change, Look, Mechanism, Refusal, encode
from odp.mechanisms.list_membership import ListMembership
from odp.mechanisms.passthrough import Passthrough
from odp.mechanisms.segments import ANOTHER_DEFINITION

__all__ = [
    "ANOTHER_DEFINITION",
    "CHOICES",
    "MECHANISMS",
    "PLAIN_FIELDS",
    "Attribute",
    "Change",
    "ListMembership",
    "Look",
    "Mechanism",
    "Passthrough",
    "Refusal",
    "encode",
    "limit_of",
    "mechanism",
    "membership_in",
]

_ALL: tuple[Mechanism, ...] = (Attribute(), ListMembership(), Passthrough())

# By name, in the order in which the form of an install offers them.
MECHANISMS: dict[str, Mechanism] = {each.name: each for each in _ALL}
# The choices of ``Install.mechanism``. A change here needs a migration.
CHOICES = [(each.name, each.label) for each in _ALL]
# Fields of request items whose values name no customer, in any mechanism: stored requests may be of another one.
PLAIN_FIELDS = frozenset[str]().union(*(each.plain_fields for each in _ALL))
_RATE_LIMITS = {each.rate_limit for each in _ALL}


def mechanism(name: str, *, passthrough_definition: dict[str, Any] | None = None) -> Mechanism:
    """The mechanism with that name, configured. Raises ``KeyError`` for an unknown name."""
    if name == Passthrough.name:
        return Passthrough(passthrough_definition)
    return MECHANISMS[name]


def limit_of(path: str) -> str:
    """The documented rate limit that a request to this path counts against; empty for none."""
    segment = path.removeprefix("/v3/").partition("/")[0]
    return segment if segment in _RATE_LIMITS else ""


def membership_in(item: dict[str, Any], odp_id: str) -> tuple[str, bool] | None:
    """The identifier in a request item, and whether it is a member of this audience; None for another audience.

    Tries each mechanism: a stored request may have been sent with another one than the install has now.
    """
    return next((found for each in _ALL if (found := each.read(item, odp_id))), None)
