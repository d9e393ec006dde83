"""ODP's own words, as they may be stored, shown and logged: they can quote the customer whom they are about."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

_WITHIN = r"[^\s'\"<>()\[\]{},;]"
# From the beginning of a word only: tried from each of its letters, a long word would take seconds.
_EMAIL = re.compile(rf"(?<!{_WITHIN}){_WITHIN}+(?:@|%40){_WITHIN}+", re.IGNORECASE)
# What stands in quotes: a value, unless it is the name of a field, an audience or a part of a request.
_QUOTED = re.compile(r"""(['"`])((?:(?!\1).){1,300})(\1)|([‘“«])([^’”»]{1,300})([’”»])""")
_WORD = re.compile(
    r"lytics_\w*|id|vuid|email|phone|type|action|identifiers|attributes|customers|profiles|segments|list|lists|event"
    r"|enter|exit|invalids|message|status|title|detail|boolean|string|number|true|false|null"
)
_NAME = re.compile(rf"{_WORD.pattern}|[a-z]+_user_id|[a-z]+_id")
HIDDEN = "•••"


# Shorter values stand in too many sentences by chance.
_SHORTEST = 3


def words(text: str) -> str:
    """``text`` without e-mail addresses and quoted values; names of fields and audiences stay."""
    return _EMAIL.sub(HIDDEN, _QUOTED.sub(_unquoted, text))


def _unquoted(found: re.Match[str]) -> str:
    before, value, after = (part for part in found.groups() if part is not None)
    return found[0] if _NAME.fullmatch(value) else f"{before}{HIDDEN}{after}"


def values_of(body: bytes | None) -> Sequence[str]:
    """What a request says that its answer may quote, longest first: every value but names of fields and audiences."""
    try:
        return values_in(json.loads(body or b"null"))
    except (ValueError, RecursionError):
        return ()


def values_in(part: Any) -> Sequence[str]:
    """The same of a request that was read already."""
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
    """``text`` without any of ``values``, where they stand as words of their own."""
    for value in values:
        if value in text:
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", HIDDEN, text)
    return text
