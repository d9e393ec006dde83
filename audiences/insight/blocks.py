"""The remedy for a blocked audience, in words for a person."""

import re

from audiences.delivery.leases import GAP
from audiences.models import Lane

# Some reasons of this service name the button to press.
_NAMES_A_BUTTON = re.compile(r"\b[Pp]ress [A-Z]")


def remedy(lane: Lane, *, where: str = "", others_where: str = "") -> str:
    """What to do about the block. ``where`` names the page that has *Unblock*, ``others_where`` that of the others."""
    if GAP in lane.block_reason:
        return "Keep the audience blocked: rows of the log are missing. Run manage.py audit_log and check PostgreSQL."
    if _NAMES_A_BUTTON.search(lane.block_reason):
        return "Do what the reason says. Waiting events are then sent in order."
    return (
        f"Fix the cause in ODP, then press Unblock{where}. Waiting events are sent in order."
        f" If it can't be fixed there, press Use another ODP id or Set aside{others_where}."
    )
