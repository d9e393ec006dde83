"""Identifiers and audience names as texts: which values are usable, and which are placeholders."""

import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

from lytics import reasons
from lytics.facts import IDENTIFIER_BYTES, NAME_BYTES
from lytics.json_pieces import read_value
from lytics.reasons import UnreadableError

# What stands around and between zeros that are nobody's.
FILLING = "0-.{}"


def placeholder(text: str) -> str:
    """A placeholder as it is compared: in small letters and without blanks."""
    return "".join(text.casefold().split())


@lru_cache(maxsize=64)
def placeholder_beginnings(placeholders: frozenset[str]) -> frozenset[str]:
    """With which characters a plain placeholder begins."""
    if not placeholders:
        return frozenset()
    return frozenset(FILLING).union(*((word[0], word[0].upper()) for word in placeholders if word))


def is_plain_text(text: str) -> bool:
    """Whether it is what nearly all identifiers are, and nothing could be wrong with it."""
    return 0 < len(text) <= IDENTIFIER_BYTES and text.isascii() and text.isprintable()


_NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][+-]?\d{1,4})?")


def as_identifier(value: Any) -> str:
    """The identifier in one JSON value: text trimmed, a number by its own digits, anything else empty."""
    value = read_value(value)
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, bytes):
        return ""
    if value.startswith(b'"'):
        return "\x00"  # a string that can't be decoded: rejected below under its own reason
    match = _NUMBER.fullmatch(value)
    if match is None:
        return ""
    return as_whole_number(value.decode()) if match[1] or match[2] else value.decode()


def as_whole_number(number: str) -> str:
    """A whole number that was written as 12345.0 or 1.2345e4, as the integer that it is. Others stay as they came."""
    value = Decimal(number)
    if abs(value.adjusted()) > IDENTIFIER_BYTES or value != value.to_integral_value():
        return number
    return f"{value:.0f}"


def refusal_reason(identifier: str) -> str | None:
    kept = storable(identifier)
    if kept is None:
        return reasons.UNREADABLE_IDENTIFIER
    return reasons.IDENTIFIER_TOO_LONG if len(kept) > IDENTIFIER_BYTES else None


def storable(text: str) -> bytes | None:
    """As PostgreSQL keeps it: every character but NUL and lone surrogates, of which the one is no UTF-8 either."""
    try:
        return None if "\x00" in text else text.encode()
    except UnicodeEncodeError:
        return None


def audience_names(came_id: str | int | None, came_slug: str | int | None) -> tuple[str, str]:
    """Segment id and slug, at least one of which is there. A slug that can't be stored is dropped beside an id."""
    segment_id, slug = as_name(came_id), as_name(came_slug)
    if not segment_id and not slug:
        raise UnreadableError(reasons.NO_AUDIENCE)
    if not _fits(segment_id) or not (segment_id or _fits(slug)):
        raise UnreadableError(reasons.NO_AUDIENCE, "the segment id or slug can't be kept")
    return segment_id, slug if _fits(slug) else ""


def _fits(name: str) -> bool:
    kept = storable(name)
    return kept is not None and len(kept) <= NAME_BYTES


def as_name(value: str | int | None) -> str:
    return "" if value is None else str(value).strip()
