"""The sizes of an audience: Lytics' size, the ledger's count, and ODP's estimate. Two requests."""

from typing import Any

from audiences import lytics_account
from audiences.delivery.odp_account import client_of, mechanism_for
from audiences.models import Audience, Audit
from lytics.api.audiences import audience
from odp.graphql import population

SECONDS = 10.0


def of(audit: Audit) -> dict[str, Any]:
    """The sizes as columns of the Audit; None where a side gives no size."""
    install = audit.install
    lytics_size = None
    lytics = lytics_account.client_of(install)
    if lytics is not None:
        found = audience(lytics, audit.audience.segment_id)
        lytics_size = found.item.size if found.item else None
    low, high = _estimate(audit)
    return {
        "lytics_size": lytics_size,
        "ledger_size": audit.audience.lane.member_count,
        "odp_low": low,
        "odp_high": high,
    }


def only_in_odp(audit: Audit) -> int:
    """By how many ODP's low estimate exceeds the ledger, both before and after the audit: people whom it can't name.

    One request, if the estimate exceeded it before. Each event since the audit began may be one member on one side.
    """
    before = above_ledger(audit.odp_low, audit.ledger_size) or 0
    if audit.mode == Audit.Mode.QUICK or before <= audit.moving:
        return 0
    low, _ = _estimate(audit)
    audience = Audience.objects.select_related("lane").get(pk=audit.audience_id)
    after = above_ledger(low, audience.lane.member_count) or 0
    return max(0, min(before - audit.moving, after - (audience.last_sequence - audit.before_sequence)))


def above_ledger(low: int | None, ledger_size: int | None) -> int | None:
    """By how many members ODP's low estimate exceeds the ledger; None when a side has no size."""
    return None if low is None or ledger_size is None else max(0, low - ledger_size)


def _estimate(audit: Audit) -> tuple[int | None, int | None]:
    """ODP's estimate. None if ODP gets an item for each of a person's two identifiers: it may count both."""
    if mechanism_for(audit.audience).items_per_change > 1:
        return None, None
    found = population(client_of(audit.install), odp_id=audit.audience.odp_id, seconds=SECONDS)
    return found or (None, None)
