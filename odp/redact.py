"""Mask customers in ODP's messages, which may quote them, before the messages are stored, shown or logged."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

_WITHIN = r"[^\s'\"<>()\[\]{},;]"
# Anchored to the beginning of a word: matched from each of its letters, a long word would take seconds.
_EMAIL = re.compile(rf"(?<!{_WITHIN}){_WITHIN}+(?:@|%40){_WITHIN}+", re.IGNORECASE)
# Text in quotes: a value to mask, unless it is the name of a field, an audience or a part of a request.
_QUOTED = re.compile(r"""(['"`])((?:(?!\1).){1,300})(\1)|([‘“«])([^’”»]{1,300})([’”»])""")
_WORD = re.compile(
    r"lytics_\w*|id|vuid|email|phone|type|action|identifiers|attributes|customers|profiles|segments|list|lists|event"
    r"|enter|exit|invalids|message|status|title|detail|boolean|string|number|true|false|null"
)
_NAME = re.compile(rf"{_WORD.pattern}|[a-z]+_user_id|[a-z]+_id")
HIDDEN = "•••"
# Characters. Shorter values of a request are not masked: they occur in too many sentences by chance.
_SHORTEST = 3


def words(text: str) -> str:
    """``text`` with e-mail addresses and quoted values masked. Names of fields and audiences stay."""
    return _EMAIL.sub(HIDDEN, _QUOTED.sub(_masked, text))


def _masked(match: re.Match[str]) -> str:
    before, value, after = (part for part in match.groups() if part is not None)
    return match[0] if _NAME.fullmatch(value) else f"{before}{HIDDEN}{after}"


def values_of(body: bytes | None) -> Sequence[str]:
    """The values of a request that its response may quote, longest first, without names of fields and audiences."""
    try:
        return values_in(json.loads(body or b"null"))
    except (ValueError, RecursionError):
        return ()


def values_in(part: Any) -> Sequence[str]:
    """``values_of`` for a request that is parsed already."""
    found = set(_values(part))
    found |= {quote(value, safe="", errors="replace") for value in found}
    return sorted((value for value in found if len(value) >= _SHORTEST and not _WORD.fullmatch(value)), key=len)[::-1]


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
