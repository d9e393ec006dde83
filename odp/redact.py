"""Mask customers in ODP's messages, which may quote them, before the messages are stored, shown or logged."""

import html
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from odp import quoted

_WITHIN = r"[^\s'\"<>()\[\]{},;]"
_PART = rf"(?:{_WITHIN}|(?<=\w)['’](?=\w))"
# Anchored to the beginning of a word: matched from each of its letters, a long word would take seconds.
_EMAIL = re.compile(rf"(?<!{_WITHIN})(?!(?<=\w['’])\w){_PART}+(?:@|%40){_PART}+", re.IGNORECASE)
_WORD = re.compile(
    r"lytics_\w*|id|vuid|email|phone|type|action|identifiers|attributes|customers|profiles|segments|list|lists|event"
    r"|enter|exit|invalids|message|status|title|detail|boolean|string|number|true|false|null"
)
_NAME = re.compile(rf"{_WORD.pattern}|[a-z]+_user_id|[a-z]+_id")
HIDDEN = "•••"
# Characters. Shorter values of a request are not masked: they occur in too many sentences by chance.
_SHORTEST = 3
# The same for an API key: ODP's are longer, and a shorter text may be a part of a word.
_SHORTEST_KEY = 8


def words(text: str) -> str:
    """``text`` with e-mail addresses and quoted values masked. Names of fields and audiences stay."""
    kept, place = [], 0
    for start, end in quoted.values(text, is_name=_NAME.fullmatch):
        kept.append(text[place:start])
        place = end
    return _EMAIL.sub(HIDDEN, HIDDEN.join([*kept, text[place:]]))


def values_of(body: bytes | None) -> Sequence[str]:
    """The values of a request that its response may quote, longest first, without names of fields and audiences."""
    try:
        return values_in(json.loads(body or b"null"))
    except (ValueError, RecursionError):
        return ()


def values_in(part: Any) -> Sequence[str]:
    """``values_of`` for a request that is parsed already."""
    found = set(_values(part))
    found |= {spelled for value in found for spelled in spellings(value)}
    return sorted((value for value in found if len(value) >= _SHORTEST and not _WORD.fullmatch(value)), key=len)[::-1]


def spellings(value: str) -> Iterator[str]:
    """``value`` as a response may spell it: in a URL, JSON, HTML, or with its apostrophes escaped. And as ``words``
    leaves it, which masks only the address in "Kim Lee <kim@example.com>".
    """
    masked = words(value)
    if masked != value and len(re.findall(r"\w", masked)) >= _SHORTEST:
        yield masked
    yield quote(value, safe="", errors="replace")
    yield json.dumps(value)[1:-1]
    yield from (html.escape(value), html.escape(value, quote=False))
    if "'" in value:
        yield from (value.replace("'", escaped) for escaped in ("\\'", "''", "’"))


def _values(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from _values(inner)
    elif isinstance(part, str):
        yield part


def without(text: str, values: Sequence[str]) -> str:
    """``text`` with each of ``values`` masked where it is a word of its own."""
    for value in values:
        if value in text:
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", HIDDEN, text)
    return text


def without_key(text: str, api_key: str) -> str:
    """``text`` without the API key, or its private part alone, which a gateway may quote in an error."""
    for secret in (api_key, api_key.partition(".")[2]):
        if len(secret) >= _SHORTEST_KEY:
            text = text.replace(secret, HIDDEN)
    return text
