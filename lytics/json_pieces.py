"""The careful JSON reader: it reads what it can of a message that msgspec rejects.

Readers are tried from the fastest to the most tolerant:

1. msgspec with a typed decoder, over a whole body or message. It builds only the fields that are used, but rejects a
   message for one flaw, such as NaN or half an emoji, in an unused field.
2. ``json.JSONDecoder`` (``read_value``) over a whole message. It accepts NaN, control characters and cut emojis;
   bytes that are not UTF-8 are kept as lone surrogates.
3. Brackets alone (``cut``), for text that neither accepts: nested too deeply, or not JSON. Only the requested
   pieces are then read by 2.

Numbers keep their digits. A value is a dict, list, str, bool or None; or ``bytes``: the digits of a number, or text
that isn't decoded yet or can't be decoded.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Raw

# Maximum nesting depth that ``find_end`` follows.
_DEPTH_AT_MOST = 1_000_000
# Above this number of values, a text is cut into pieces instead of decoded: an empty object takes 64 bytes.
_VALUES_AT_MOST = 1_000_000

_DECODER = json.JSONDecoder(strict=False, parse_int=str.encode, parse_float=str.encode, parse_constant=str.encode)
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_NAME = re.compile(rb"(" + _STRING + rb")\s*:", re.DOTALL)


class TextBehindError(Exception):
    """Text follows the bracket that closes the array or object."""


class UnclosedError(Exception):
    """The text ends inside a value (``cut_off``), or the value is nested too deeply to find its end."""

    def __init__(self, *, cut_off: bool) -> None:
        self.cut_off = cut_off
        super().__init__(cut_off)


def read_as(raw: bytes | Raw | None, layout: Any) -> Any:
    """``raw`` decoded as ``layout``, or None when it is absent, ``null`` or something else."""
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=layout)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def read_value(value: Any) -> Any:
    """Decode ``value`` if it is text; text that can't be decoded stays ``bytes``."""
    if not isinstance(value, bytes | Raw):
        return value
    text = bytes(value).strip()
    if len(text) > _VALUES_AT_MOST and text.count(b",") + text.count(b"{") + text.count(b"[") > _VALUES_AT_MOST:
        return text
    characters = text.decode("utf-8", "surrogateescape")
    try:
        decoded, end = _DECODER.raw_decode(characters)
    except (ValueError, RecursionError):
        return text
    return decoded if end == len(characters) else text


def read_fields(value: Any) -> dict[str, Any] | None:
    """The members of an object, each for ``read_value``; None for another value or broken members."""
    value = read_value(value)
    if isinstance(value, dict):
        return value
    return cut_members(value) if isinstance(value, bytes) and value.startswith(b"{") else None


def read_elements(value: Any) -> list[Any] | None:
    """The elements of an array, each for ``read_value``; None for another value."""
    value = read_value(value)
    if isinstance(value, list):
        return value
    if not isinstance(value, bytes) or not value.startswith(b"["):
        return None
    try:
        return list(cut(value))
    except (UnclosedError, TextBehindError):
        return []


def cut_members(text: bytes) -> dict[str, bytes] | None:
    """The members of an object by its brackets; None if they are not all a name, a colon and a value."""
    members: dict[str, bytes] = {}
    try:
        for member in cut(text):
            match = _NAME.match(member)
            if match is None:
                return None
            name = read_as(match[1], str)
            if name is not None:  # no used field has a flawed name
                members[name] = member[match.end() :].strip()
    except (UnclosedError, TextBehindError):
        return None
    return members


def cut(text: bytes) -> Iterator[bytes]:
    """The elements of an array or the members of an object by its brackets; none has to be well-formed."""
    position, separator = 1, b","
    last = b"]" if text.startswith(b"[") else b"}"
    while separator == b",":
        end = find_end(text, position)
        piece, separator, position = text[position:end].strip(), text[end : end + 1], end + 1
        if piece or separator != last:
            yield piece
    if position < len(text):
        raise TextBehindError


def _pattern(stops: bytes) -> re.Pattern[bytes]:
    """Match up to the next of ``stops`` or bracket outside of strings, past brackets that close within four levels.

    The quantifiers are possessive: with backtracking, unclosed quotes would take quadratic time.
    """
    inside = flat = rb'[^"\[\]{}]++|' + _STRING
    for _ in range(4):
        inside = flat + rb"|[\[{](?:" + inside + rb")*+[\]}]"
    outside = rb'[^"\[\]{}' + stops + rb"]++|" + _STRING + rb"|[\[{](?:" + inside + rb")*+[\]}]"
    return re.compile(rb"(?:" + outside + rb")*+([\[{]++|[\]}]++|.?)", re.DOTALL)


_TO_BRACKET, _TO_SEPARATOR = _pattern(b""), _pattern(b",")


def find_end(text: bytes, position: int, *, commas: bool = True) -> int:
    """Position of the bracket that closes what surrounds ``position``; with ``commas``, or of the comma before it."""
    depth = 0
    while depth <= _DEPTH_AT_MOST:
        match = (_TO_SEPARATOR if commas and not depth else _TO_BRACKET).match(text, position)
        assert match is not None, "the pattern matches everywhere"
        token, position = match[1], match.end()
        if token in (b"", b'"'):  # the end of the text, or a string that nothing closes
            raise UnclosedError(cut_off=True)
        if token[:1] in b"[{":
            depth += len(token)
        elif token == b"," or len(token) > depth:
            return match.start(1) + (0 if token == b"," else depth)
        else:
            depth -= len(token)
    raise UnclosedError(cut_off=False)
