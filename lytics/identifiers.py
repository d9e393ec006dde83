"""Convert identifiers and audience names to text, and recognise unusable values and placeholders."""

import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

from lytics import reasons
from lytics.facts import IDENTIFIER_BYTES, NAME_BYTES
from lytics.json_pieces import read_value
from lytics.reasons import UnreadableError

# Characters of placeholders that have no digits but zeros, such as an all-zero UUID.
_FILLING = "0-.{}"
# Brackets and quotes. One pair around a placeholder is ignored, as in (null) and "0".
_PAIRS = frozenset(("()", "[]", "<>", "{}", '""', "''"))
# A text without any other characters may be a placeholder of any length.
FILLING = _FILLING + "".join(sorted(_PAIRS))


@lru_cache(maxsize=64)
def placeholder_beginnings(placeholders: frozenset[str]) -> frozenset[str]:
    """The first characters that a placeholder in plain text can have."""
    if not placeholders:
        return frozenset()
    return frozenset(FILLING).union(*((word[0], word[0].upper()) for word in placeholders if word))


def is_plain_text(text: str) -> bool:
    """Whether ``text`` is a short, printable ASCII text, as nearly all identifiers are. It needs no further checks."""
    return 0 < len(text) <= IDENTIFIER_BYTES and text.isascii() and text.isprintable()


def has_only_plain_texts(json: bytes) -> bool:
    """Whether all strings of a JSON document are printable ASCII without escapes, so that PostgreSQL can store each."""
    return json.isascii() and b"\\" not in json and b"\x7f" not in json


# Blanks, and what Unicode calls Default_Ignorable_Code_Point: zero-width characters, soft hyphens, byte
# order marks, fillers, variation selectors and tags. U+2800 is a Braille cell without dots.
_INVISIBLE = (
    r"\s\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_UNSEEN = re.compile(f"[{_INVISIBLE}]+")
_UNSEEN_OR_CONTROL = re.compile(rf"[{_INVISIBLE}\x00-\x1f\x7f-\x9f]+")


def trimmed(text: str) -> str:
    """Without blanks at both ends; empty if it consists of invisible characters only."""
    text = text.strip()
    return "" if _UNSEEN.fullmatch(text) else text


def placeholder(text: str) -> str:
    """Normalise a placeholder for comparison: case-folded, without blanks, invisible and control characters."""
    return _UNSEEN_OR_CONTROL.sub("", text.casefold())


_NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][+-]?\d{1,4})?")


def as_identifier(value: Any) -> str:
    """The identifier in one JSON value: text trimmed, a number by its own digits, anything else empty.

    Text without a visible character is empty, too.
    """
    value = read_value(value)
    if isinstance(value, str):
        return trimmed(value)
    if not isinstance(value, bytes):
        return ""
    if value.startswith(b'"'):
        return "\x00"  # a string that can't be decoded: rejected below under its own reason
    match = _NUMBER.fullmatch(value)
    if match is None:
        return ""
    return as_whole_number(value.decode()) if match[1] or match[2] else value.decode()


def as_whole_number(number: str) -> str:
    """Convert a whole number written as 12345.0 or 1.2345e4 to its integer; return other numbers unchanged."""
    value = Decimal(number)
    if abs(value.adjusted()) > IDENTIFIER_BYTES or value != value.to_integral_value():
        return number
    return f"{value:.0f}"


def refusal_reason(identifier: str) -> str | None:
    """The reason to park an event with this identifier. None if the identifier can be stored."""
    kept = storable(identifier)
    if kept is None:
        return reasons.UNREADABLE_IDENTIFIER
    return reasons.IDENTIFIER_TOO_LONG if len(kept) > IDENTIFIER_BYTES else None


def is_placeholder(identifier: str, placeholders: frozenset[str]) -> bool:
    """Whether it is in the list or only zeros, ignoring case, blanks, invisible characters and one pair of brackets.

    Nothing is with an empty list.
    """
    if not placeholders:
        return False
    bare = placeholder(identifier)
    inner = bare[1:-1] if bare[:1] + bare[-1:] in _PAIRS else bare
    return not placeholders.isdisjoint((bare, inner)) or (not inner.strip(_FILLING) and inner.count(".") < 2)


def is_identifier(text: str, placeholders: frozenset[str]) -> bool:
    """Whether the text names a customer, by the rules for identifiers in calls."""
    return not is_placeholder(text, placeholders) and refusal_reason(text) is None


def storable(text: str) -> bytes | None:
    """The UTF-8 bytes of ``text``; None if it has a NUL or a lone surrogate, which PostgreSQL can't store."""
    try:
        return None if "\x00" in text else text.encode()
    except UnicodeEncodeError:
        return None


def audience_names(came_id: str | int | None, came_slug: str | int | None) -> tuple[str, str]:
    """Segment id and slug; at least one is not blank. A slug that can't be stored is dropped if there is an id.

    Raises ``UnreadableError`` when neither can be stored.
    """
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
    return "" if value is None else trimmed(str(value))
