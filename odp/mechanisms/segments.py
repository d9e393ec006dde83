"""The real-time audience in ODP (a segment in its API) that each mechanism needs for one Lytics audience."""

from collections.abc import Callable
from typing import Any

import msgspec

from odp import definitions
from odp.client import Client
from odp.mechanisms.base import Look, Refusal
from odp.mechanisms.reading import failure, not_shown, read
from odp.outcomes import Answer, Outcome
from odp.paths import SEGMENTS

# Marks a reason that quotes a definition, which holds no customer data and is therefore shown unmasked.
ANOTHER_DEFINITION = "is in ODP with another definition. ODP has"


def read_definition(client: Client, odp_id: str, *, seconds: float) -> Any | Answer | Refusal | None:
    """The definition of a real-time audience as ODP shows it; None when the audience doesn't exist."""
    return read(client, _path(odp_id), _definition, f"The audience {odp_id}", seconds=seconds)


def ensure_segment(
    client: Client,
    odp_id: str,
    label: str,
    ours: dict[str, Any],
    *,
    seconds: float,
    accepted: str,
    replaced: str = "",
) -> Answer | Refusal | None:
    """Create the real-time audience with our definition, unless it exists.

    Reads first and writes only what is missing: PUT replaces, and a person may have edited the audience in ODP. The
    definition with the digest ``replaced`` is replaced, because a person has decided so.
    """
    found = read_definition(client, odp_id, seconds=seconds)
    if found is None or (
        replaced and not isinstance(found, Answer | Refusal) and definitions.digest(found) == replaced
    ):
        body = {"description": label, "metadata": {"display_name": label}, "definition": ours}
        created = client.call("PUT", _path(odp_id), body=msgspec.json.encode(body), seconds=seconds)
        if (failed := failure(created, f"The audience {odp_id} could not be created")) is not None:
            return failed
        found = read_definition(client, odp_id, seconds=seconds)
        if found is None:
            return not_shown(created, f"the audience {odp_id}")
    if isinstance(found, Answer | Refusal):
        return found
    if definitions.same(ours, found) or definitions.digest(found) == accepted:
        return None
    return foreign_definition(odp_id, found, definitions.in_words(ours))


def delete_segment(client: Client, odp_id: str, *, seconds: float) -> Answer | Refusal | None:
    """Delete the real-time audience. Members stay in the object that holds them. One that isn't there is no failure."""
    deleted = client.call("DELETE", _path(odp_id), seconds=seconds)
    return None if deleted.status == 404 else failure(deleted, f"The audience {odp_id} could not be deleted")


def look_at_segment(
    client: Client, odp_id: str, ours: dict[str, Any], before: Look, *, seconds: float, accepted: str
) -> Answer | Look:
    """``before``, and what ODP has of the real-time audience itself."""
    found = read_definition(client, odp_id, seconds=seconds)
    if isinstance(found, Answer):
        return found
    if isinstance(found, Refusal):
        return before._replace(problem=before.problem or found.reason)
    if found is None:
        return before._replace(missing=(*before.missing, f"the audience {odp_id}"))
    if definitions.same(ours, found) or definitions.digest(found) == accepted:
        return before
    return before._replace(
        found=definitions.in_words(found), ours=definitions.in_words(ours), definition=definitions.digest(found)
    )


def remove_segment(
    client: Client, odp_id: str, is_ours: Callable[[Any], bool], *, seconds: float, accepted: str
) -> Answer | Refusal | None:
    """Delete the real-time audience, unless a person has given it another definition."""
    found = read_definition(client, odp_id, seconds=seconds)
    if found is None or isinstance(found, Answer):
        return found
    if isinstance(found, Refusal):
        return _later(found)
    if not is_ours(found) and definitions.digest(found) != accepted:
        return Refusal(
            f"The audience {odp_id} was left in ODP, because somebody gave it a definition that isn't ours:"
            f" {definitions.in_words(found)}.",
            definition=definitions.digest(found),
        )
    deleted = client.call("DELETE", _path(odp_id), seconds=seconds)
    if deleted.status == 404:  # the read that follows tells whether ODP says so, or another server
        return None if read_definition(client, odp_id, seconds=seconds) is None else deleted
    failed = failure(deleted, f"The audience {odp_id} could not be deleted")
    return _later(failed) if isinstance(failed, Refusal) else failed


def _later(refusal: Refusal) -> Answer:
    """A rejected request that only a change in ODP can correct: it is tried again, slowly."""
    return Answer(Outcome.RETRY_LATER, refusal.reason, fixed_backoff=True)


def foreign_definition(odp_id: str, found: Any, ours: str) -> Refusal:
    """The refusal of an audience whose definition in ODP isn't ours; ``ours`` is our definition in words."""
    return Refusal(
        f"The audience {odp_id} {ANOTHER_DEFINITION} {definitions.in_words(found)}; this service"
        f" would write {ours}. It is never overwritten without a person. To use ours, press Take ours;"
        " to keep it as it is, press Accept definition.",
        definition=definitions.digest(found),
    )


def _path(odp_id: str) -> str:
    return f"{SEGMENTS}/{odp_id}"


def _definition(segment: Any) -> Any | None:
    return (segment.get("definition") or None) if isinstance(segment, dict) else None
