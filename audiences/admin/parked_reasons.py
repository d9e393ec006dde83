"""Why an item is parked, in words, and whether a release can help."""

from audiences.admin.pages import number
from audiences.delivery.leases import REJECTED_BY_ODP
from lytics.reasons import HINTS, RELEASABLE

ALL_HINTS = {
    **HINTS,
    REJECTED_BY_ODP: (
        "ODP rejected this change for the reason shown. Fix that, then release the item:"
        " it is sent again unless something newer has replaced it."
    ),
}


def words(reason: str) -> str:
    if reason == REJECTED_BY_ODP:
        return "rejected by ODP"
    return reason.replace("_", " ").replace(" odp", " ODP")


def hint(reason: str) -> str:
    return ALL_HINTS.get(reason, "Unknown reason; see the detail.")


def can_be_released(reason: str) -> bool:
    """Whether a release can have another result than before. It may, for a reason that only another version knows."""
    return reason in RELEASABLE or reason == REJECTED_BY_ODP or reason not in ALL_HINTS


# In the message, and in the history of the item.
STAYED = "Not released: something in it still can't be read, so it stays parked."


def released_and_stayed(released: int, stayed: int) -> str:
    message = f"Released {number(released)}."
    return f"{message} {number(stayed)} still can't be read and stay parked." if stayed else message
