"""Personal data out of an item before it is shown: the layout stays readable, the person is not recognisable."""

import json
from typing import Any

from audiences.admin.pages import mask

# What says how a message is laid out, and nothing about a customer.
PLAIN = {
    "segment_events",
    "meta",
    "segment_id",
    "slug",
    "event",
    "enter",
    "exit",
    "change",
    "type",
    "specversion",
    "object",
}
HIDDEN = "•••"


def masked(raw: str) -> str:
    try:
        item = json.loads(raw)
    except ValueError:
        return f"{len(raw):,} characters that are not JSON"
    return json.dumps(_mask(item), indent=2, ensure_ascii=False)


def _mask(item: Any) -> Any:
    if isinstance(item, dict):
        return {key: value if key in PLAIN else _mask(value) for key, value in item.items()}
    if isinstance(item, list):
        return [_mask(value) for value in item]
    return HIDDEN if isinstance(item, str | int | float) and not isinstance(item, bool) else item


# What a request to ODP says beside who it is about: names of audiences and fields, and what became of a membership.
PLAIN_IN_REQUESTS = {"type", "action", "list_id", "audience_id"}


def mask_items(item: Any) -> Any:
    """A request with the identifiers masked, recognisable for those who know them."""
    if isinstance(item, dict):
        return {key: value if key in PLAIN_IN_REQUESTS else mask_items(value) for key, value in item.items()}
    if isinstance(item, list):
        return [mask_items(value) for value in item]
    return mask(item) if isinstance(item, str) else item
