"""The sizes of an audience: Lytics' size, the ledger's count, and ODP's estimate. Two requests."""

from typing import Any

from audiences import lytics_account
from audiences.delivery.odp_account import client_of
from audiences.models import Audit
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
    low, high = population(client_of(install), odp_id=audit.audience.odp_id, seconds=SECONDS) or (None, None)
    return {
        "lytics_size": lytics_size,
        "ledger_size": audit.audience.lane.member_count,
        "odp_low": low,
        "odp_high": high,
    }
