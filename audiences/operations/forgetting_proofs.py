"""What is known of requests to forget a customer: the proof of a finished one, and what an unfinished one waits for."""

from datetime import UTC
from typing import NamedTuple

from audiences.delivery import account_switch
from audiences.encryption import Unreadable
from audiences.models import Forgotten, Install
from audiences.operations import forgetting


def proofs(identifier: str, *, install: Install | None = None) -> list[str]:
    """A sentence for each request to forget this customer, newest first. ``install`` narrows them to one install."""
    found = Forgotten.objects.filter(digest=forgetting.digest(identifier)).select_related("install")
    return [_proof(one) for one in (found if install is None else found.filter(install=install))]


def _proof(one: Forgotten) -> str:
    at = (one.ended_at or one.asked_at).astimezone(UTC)
    when = f"{at.day} {at:%B %Y} at {at:%H:%M} UTC (number {one.pk})."
    if one.ended_at is None:
        return f"This customer is being forgotten in {one.install}, asked on {when} It waits for {waits_for(one).why}."
    return f"This customer was forgotten in {one.install} on {when}"


class Wait(NamedTuple):
    """What an unfinished request waits for, without the customer, and what ends it. ``audience_id`` holds it up."""

    why: str
    todo: str
    audience_id: int | None = None


def waits_for(forgotten: Forgotten) -> Wait:
    """The first of the conditions of ``advance`` that is not fulfilled."""
    if isinstance(forgotten.identifier, Unreadable):
        return Wait("the key that it was encrypted with", "Add that key to FIELD_ENCRYPTION_KEYS.")
    if account_switch.is_changing(forgotten.install_id):
        return Wait(
            "the change to another ODP account", "The customer is forgotten after it. Finish or stop the change."
        )
    if forgotten.tell_odp and not forgotten.install.enabled:
        return Wait("the install, which is switched off", "Switch it on, or forget without exits.")
    if forgotten.tell_odp and forgotten.exits is None:
        return Wait("the next run of the workers", "They look each minute. See on Now whether they answer.")
    exits = {int(pk): sequence for pk, sequence in (forgotten.exits or {}).items()}
    progress = forgetting.progress_of(exits)
    late = next((pk for pk, sequence in exits.items() if progress[pk].has_to_send(sequence)), None)
    if late is not None:
        return Wait("ODP to get the exits", "The audience's page says what holds its deliveries up, and ends it.", late)
    if forgotten.tell_odp and forgetting.is_rejected(forgotten):
        return Wait("an item of the customer that ODP rejected", "Release or discard it; Find a customer has it.")
    if forgotten.tell_odp and forgetting.is_leaving(forgotten):
        return Wait("a take-over that still has to read the customer", "It goes on by itself; Resends shows how far.")
    return Wait(
        "a response of ODP, or for the end of a request", "It is tried again each minute. See whether ODP answers."
    )
