"""Mask personal data in an item before it is shown. Its layout stays readable."""

import json
from typing import Any

from audiences.admin.pages import mask
from odp.mechanisms import PLAIN_FIELDS

# Parts of a message that describe its structure and no customer, and the names in them whose values are shown. Fields
# with the same names deeper in a profile are masked.
PLAIN = {"meta", "type", "specversion"}
PLAIN_IN_DATA = {"segment_events"}
PLAIN_NAMES = {"object", "subscription_id", "timestamp", "id", "slug", "event", "enter", "exit", "time"}
LONGEST_PLAIN = 100
HIDDEN = "•••"


def masked(raw: str) -> str:
    try:
        item = json.loads(raw)
        return written(_mask_message(item), indent=2)
    except (ValueError, RecursionError):
        return f"{len(raw):,} characters that are not JSON, or nested too deeply to be shown"


def written(item: Any, *, indent: int | None = None) -> str:
    """The item as JSON for a page. A lone surrogate stays escaped, because UTF-8 can't encode it."""
    return json.dumps(item, indent=indent, ensure_ascii=False).encode(errors="backslashreplace").decode()


def _mask_message(item: Any) -> Any:
    """A message, or each message of a list of them."""
    if isinstance(item, list):
        return [_mask_message(value) for value in item]
    if not isinstance(item, dict):
        return _mask(item)
    shown = {_name(key): _layout(value) if key in PLAIN else _mask(value) for key, value in item.items()}
    if isinstance(data := item.get("data"), dict):
        shown["data"] = {
            _name(key): _layout(value) if key in PLAIN_IN_DATA else _mask(value) for key, value in data.items()
        }
    return shown


def _layout(item: Any) -> Any:
    """Show the known fields of a part that Lytics defines; any other field may hold personal data."""
    if isinstance(item, dict):
        return {_name(key): _plain(value) if key in PLAIN_NAMES else _mask(value) for key, value in item.items()}
    if isinstance(item, list):
        return [_layout(value) if isinstance(value, dict) else _mask(value) for value in item]
    return _plain(item)


def _plain(item: Any) -> Any:
    if isinstance(item, dict | list):
        return _mask(item)
    return item if not isinstance(item, str) or _is_plain(item) else HIDDEN


def _is_plain(text: str) -> bool:
    return "@" not in text and len(text) <= LONGEST_PLAIN


def _name(text: str) -> str:
    """A name of the layout. A map in a profile may have e-mail addresses or telephone numbers as names."""
    return text if _is_plain(text) and any(map(str.isalpha, text)) else HIDDEN


def _mask(item: Any) -> Any:
    if isinstance(item, dict):
        return {_name(key): _mask(value) for key, value in item.items()}
    if isinstance(item, list):
        return [_mask(value) for value in item]
    return HIDDEN if isinstance(item, str | int | float) and not isinstance(item, bool) else item


def mask_items(item: Any) -> Any:
    """The items of a request with each identifier masked to its first and last two characters."""
    if isinstance(item, dict):
        return {key: value if key in PLAIN_FIELDS else mask_items(value) for key, value in item.items()}
    if isinstance(item, list):
        return [mask_items(value) for value in item]
    return mask(item) if isinstance(item, str) else item
