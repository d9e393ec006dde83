"""What all mechanisms have in common: the interface, and the values that pass through it."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from odp.client import Client
from odp.outcomes import Answer


class Change(NamedTuple):
    """One identifier's absolute state in one audience. ``lane`` is the caller's key for the audience."""

    lane: int
    odp_id: str
    identifier: str
    is_member: bool
    occurred_ns: int
    sequence: int


class Refusal(NamedTuple):
    """ODP can't hold this audience, and a person has to act.

    ``definition`` is the digest of the definition found in ODP when it isn't ours, else empty.
    """

    reason: str
    definition: str = ""


class Look(NamedTuple):
    """What ODP has of one audience, read without writing anything. All fields empty: it is as this service made it.

    ``missing`` names the objects that ODP doesn't have; ``lost_members`` says that memberships went with one of them,
    or with one that somebody has replaced by another one of its name.
    ``problem`` says what only a person can correct. ``found`` and ``ours`` are the two definitions in words where they
    differ, and ``definition`` is the digest of the one in ODP.
    """

    missing: tuple[str, ...] = ()
    lost_members: bool = False
    problem: str = ""
    found: str = ""
    ours: str = ""
    definition: str = ""


class Mechanism(Protocol):
    """One way to write memberships to ODP."""

    # Stored in ``Install.mechanism``, at most 12 characters.
    name: str
    # Shown in the form of an install.
    label: str
    # What ``ensure`` creates for one audience, in words that the audience's id can follow.
    creates: str
    # The object that holds the memberships, in words that the audience's id can follow; empty when it is the real-time
    # audience itself.
    store: str
    # What a retired audience leaves in ODP, as a sentence.
    keeps: str
    # Where changes are posted.
    path: str
    # The documented rate limit that ``path`` counts against, named by the path segment after ``/v3/``: all requests
    # under that segment share it. Empty when ODP documents none.
    rate_limit: str
    # The number of items that one group becomes.
    items_per_change: int
    # The smallest difference between two transition times that the items show, in nanoseconds; 1 when they show none.
    time_step_ns: int
    # Fields of an item whose values name no customer: the admin shows them unmasked.
    plain_fields: frozenset[str]

    def groups(self, changes: Sequence[Change]) -> list[tuple[Change, ...]]:
        """Group the changes that share items: a group is sent, accepted and rejected as one."""
        ...

    def items(self, group: tuple[Change, ...]) -> list[dict[str, Any]]:
        """The request items for one group, always ``items_per_change`` of them."""
        ...

    def read(self, item: dict[str, Any], odp_id: str) -> tuple[str, bool] | None:
        """The reverse of ``items``: the identifier, and whether it is a member of this audience.

        None when the item is about another audience or of another mechanism.
        """
        ...

    def control(self, change: Change) -> dict[str, Any] | None:
        """An item that names the same customer but no audience; None when there is no such item.

        Bisection sends it to find out whether ODP rejects the customer or the audience.
        """
        ...

    def definition(self, odp_id: str) -> dict[str, Any] | None:
        """The definition that ``ensure`` writes. None when ODP doesn't document it and the settings don't have it."""
        ...

    def ensure_store(self, client: Client, odp_id: str, label: str, *, seconds: float) -> Answer | Refusal | None:
        """The part of ``ensure`` before the real-time audience: create the object that holds the memberships."""
        ...

    def ensure(
        self, client: Client, odp_id: str, label: str, *, seconds: float, accepted: str = "", replaced: str = ""
    ) -> Answer | Refusal | None:
        """Create what the audience needs in ODP.

        Returns None when ODP shows all of it, an ``Answer`` when to try again later, a ``Refusal`` when a person has to
        act. Nothing that exists in ODP is overwritten: a definition that isn't ours is a ``Refusal``, unless
        ``accepted`` is its digest. If ``replaced`` is its digest, a person has decided that ours takes its place. Each
        request gets ``seconds``.
        """
        ...

    def look(self, client: Client, odp_id: str, *, seconds: float, accepted: str = "") -> Answer | Look:
        """Read what ODP has of the audience. An ``Answer`` when ODP didn't say. Each request gets ``seconds``."""
        ...

    def remove(self, client: Client, odp_id: str, *, seconds: float, accepted: str = "") -> Answer | Refusal | None:
        """Delete the audience's real-time audience, and no field or list.

        Returns None when ODP doesn't have it any more, an ``Answer`` when to try again later, and a ``Refusal`` when it
        is left alone: its definition is neither ours nor ``accepted``. Each request gets ``seconds``.
        """
        ...


def encode(items: Sequence[dict[str, Any]]) -> bytes:
    return msgspec.json.encode(items)


def identifiers(identifier: str) -> dict[str, str]:
    """Both names of a customer: Feature Experimentation reads ``fs_user_id``, Web Experimentation ``web_user_id``."""
    return {"fs_user_id": identifier, "web_user_id": identifier}
