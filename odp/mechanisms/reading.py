"""Steps that all mechanisms share when they create something in ODP: read it, and turn a response into a result."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from odp.client import Client
from odp.mechanisms.base import Refusal
from odp.outcomes import Answer, Outcome


def read(
    client: Client, path: str, parse: Callable[[Any], Any], name: str, *, seconds: float
) -> Any | Answer | Refusal | None:
    """Read an object from ODP: what ``parse`` makes of the response body, or None when ODP says that it doesn't exist.

    ``name`` begins the reason of a failure. ``parse`` returns None for a body that it doesn't understand: such a body
    comes from a proxy or another service, so it is no evidence for or against the object; the result is an ``Answer``
    to retry later.
    """
    answer = client.call("GET", path, seconds=seconds)
    # ODP's specification leaves the body of this 404 open. A text page comes from a proxy or another service.
    if answer.status == 404 and (answer.json is not None or not answer.text.strip()):
        return None
    if (failed := failure(answer, f"{name} could not be read")) is not None:
        return failed
    parsed = parse(answer.json)
    if parsed is None:
        reason = f"{name} could not be read: the {answer.status} response does not describe it"
        return _retry_later(answer, reason, fixed_backoff=True)
    return parsed


def failure(answer: Answer, what_failed: str) -> Answer | Refusal | None:
    """None for a success, a ``Refusal`` when ODP rejects the request, and the answer itself for a retry."""
    if answer.outcome is Outcome.DELIVERED:
        return None
    return Refusal(f"{what_failed}: {answer.reason}") if answer.outcome is Outcome.REJECTED else answer


def not_shown(answer: Answer, name: str) -> Answer:
    """ODP confirmed the creation of an object, but a read afterwards doesn't find it."""
    reason = f"ODP answered {answer.status} to creating {name} and does not show it"
    return _retry_later(answer, reason, fixed_backoff=False)


def _retry_later(answer: Answer, reason: str, *, fixed_backoff: bool) -> Answer:
    return replace(answer, outcome=Outcome.RETRY_LATER, reason=reason, fixed_backoff=fixed_backoff)
