"""Finds the identifier of a customer in stored texts: ODP's responses, requests to ODP, and parked items."""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from audiences import request_bodies
from lytics.bodies import as_utf8
from odp import redact

# Parts of a message that describe its structure and name no customer.
_STRUCTURE = {"meta", "type", "specversion", "id"}
_STRUCTURE_IN_DATA = {"segment_events"}


def names(raw: bytes, identifier: str) -> bool:
    """Whether a parked item names the customer: in one of its values, or anywhere if it isn't JSON.

    Only the whole identifier counts, because an item of ``kimberly`` isn't about ``kim``.
    """
    text = as_utf8(raw).decode(errors="replace")
    try:
        texts, wanted = [*_values(json.loads(text))], _as_a_word([identifier])
    except (ValueError, RecursionError):
        texts, wanted = [text], _as_a_word(_spellings(identifier))
    return any(wanted.search(value) for value in texts)


def _as_a_word(spellings: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the spellings as a whole identifier, and not as a part of a longer one, such as an address."""
    return re.compile(rf"(?<![\w@+-])(?<!\w\.)(?:{_any_of(spellings)})(?![\w@+-]|\.\w)", re.IGNORECASE)


def _any_of(spellings: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(spellings, key=len, reverse=True)))


def _spellings(identifier: str) -> Collection[str]:
    return {identifier, *redact.spellings(identifier)}


def _values(item: Any) -> Iterator[str]:
    """The values that can name a customer: of a message, or of each one in a list."""
    if isinstance(item, list):
        for one in item:
            yield from _values(one)
    elif isinstance(item, dict):
        yield from _inside([value for name, value in item.items() if name not in {*_STRUCTURE, "data"}])
        data = item.get("data")
        if isinstance(data, dict):
            data = [value for name, value in data.items() if name not in _STRUCTURE_IN_DATA]
        yield from _inside(data)
    else:
        yield from _inside(item)


def _inside(item: Any) -> Iterator[str]:
    if isinstance(item, dict):
        yield from item
        item = list(item.values())
    if isinstance(item, list):
        for one in item:
            yield from _inside(one)
    elif isinstance(item, str):
        yield item
    elif isinstance(item, int | float) and not isinstance(item, bool):
        yield str(item)


def pattern(identifier: str) -> str:
    """A regular expression for PostgreSQL: the identifier as a response of ODP may spell it."""
    return rf"(?<!\w)(?:{_any_of(_spellings(identifier))})(?!\w)"


def out_of_request(body: str, identifier: str, token: str) -> str:
    """The body with the token in place of the identifier. If the stored body ends within the identifier, its beginning
    is removed.
    """
    for spelling in {json.dumps(identifier), json.dumps(identifier, ensure_ascii=False)}:
        body = body.replace(spelling, json.dumps(token))
        if len(body.encode()) >= request_bodies.KEPT_BYTES - 4:
            cut = next((size for size in range(len(spelling) - 1, 1, -1) if body.endswith(spelling[:size])), 0)
            body = body[: len(body) - cut]
    return body
