"""The requests of a guided change to the account that the install doesn't use (docs/guided-changes.md)."""

from collections.abc import Sequence
from typing import Any

from django.db.models.functions import Now

from audiences.delivery import leases
from audiences.delivery.fold import FORGOTTEN
from audiences.delivery.odp_account import mechanism_for
from audiences.models import Audience, GuidedChange, Membership
from audiences.operations.change_steps import LATER, SECONDS, Step
from odp.client import Client
from odp.mechanisms import Change, Mechanism, Refusal, encode
from odp.outcomes import Outcome

# If ODP rejects more customers of one audience than this, the cause isn't the customers, and the change ends.
MOST_REJECTED = 100


def next_rows(change: GuidedChange, audience: Audience) -> list[Membership]:
    """The people of the ledger in the next request."""
    fitting = leases.capacity_of(audience.install, audience.mechanism)
    size = min(change.request_size or fitting, fitting)
    ledger = Membership.objects.filter(audience=audience, identifier__gt=change.after_identifier)
    return list(ledger.order_by("identifier")[:size])


def send(
    change: GuidedChange,
    client: Client,
    audience: Audience,
    rows: Sequence[Membership],
    states: Sequence[tuple[Membership, bool]],
) -> Step | Refusal:
    """Send the states in one request, and continue after the last row. If ODP rejects it, the next one has half.

    Returns a Refusal when ODP rejects too many customers of the audience.
    """
    items = _items(mechanism_for(audience), audience, states)
    on = {"after_identifier": rows[-1].identifier, "request_size": min(2 * len(rows), 500), "waits_for": ""}
    if not items:
        return Step(on)
    answer = client.call("POST", mechanism_for(audience).path, body=encode(items), seconds=SECONDS)
    sent = {"copied_at": Now()} if change.phase == GuidedChange.Phase.COPY else {}
    if answer.outcome is Outcome.DELIVERED:
        return Step({**on, **sent}, _pause(audience))
    if answer.outcome is not Outcome.REJECTED:
        return Step({"waits_for": answer.reason, **sent}, max(LATER, answer.retry_after or 0.0))
    if len(rows) > 1:
        return Step({"request_size": len(rows) // 2, **sent}, _pause(audience))
    if change.rejected >= MOST_REJECTED:
        return Refusal(f"ODP rejects too many customers of {audience.odp_id}: {answer.reason}.")
    return Step({**on, "rejected": change.rejected + 1, **sent}, _pause(audience))


def _pause(audience: Audience) -> float:
    """Seconds after a request, so that the other account gets no more requests a second than the install may send."""
    rate = audience.install.requests_per_second if mechanism_for(audience).rate_limit else 0
    return 1 / rate if rate else 0.0


def _items(mechanism: Mechanism, audience: Audience, states: Sequence[tuple[Membership, bool]]) -> list[dict[str, Any]]:
    found = [
        Change(audience.pk, audience.odp_id, row.identifier, is_member, row.occurred_ns, row.sequence)
        for row, is_member in states
        if not row.identifier.startswith(FORGOTTEN)
    ]
    return [item for group in mechanism.groups(found) for item in mechanism.items(group)]
