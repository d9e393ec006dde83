"""Finds the identifier of a customer in stored texts: ODP's responses, requests to ODP, and parked items."""

import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import structlog
from django.core.exceptions import ImproperlyConfigured

from audiences import request_bodies, sql
from audiences.encryption import decrypt
from audiences.models import Parked
from lytics.bodies import as_utf8
from odp import redact

log = structlog.get_logger(__name__)


class _Id(NamedTuple):
    id: int


_DELIVERIES = sql.beside(__file__).query("deliveries", _Id._make)

# The number of parked items decrypted at a time.
PIECE = 200

# Parts of a message that describe its structure and name no customer.
_STRUCTURE = {"meta", "type", "specversion", "id"}
_STRUCTURE_IN_DATA = {"segment_events"}


def deliveries_covering(*, audiences: Sequence[int], sequences: Sequence[int]) -> list[int]:
    """The ids of the Deliveries whose requests may name the customer of these events."""
    return [row.id for row in _DELIVERIES.run(audiences=audiences, sequences=sequences).all()]


def parked_about(install_id: int, identifier: str) -> set[int]:
    """The parked items that name the person. Items that the present keys can't decrypt are not searched."""
    named = set(Parked.objects.filter(install=install_id, identifier=identifier).values_list("pk", flat=True))
    stored = Parked.objects.filter(install=install_id, raw__isnull=False).order_by("pk").only("pk", "raw")
    unreadable = 0
    for parked in stored.iterator(chunk_size=PIECE):
        try:
            raw = decrypt(bytes(parked.raw or b""))
        except ImproperlyConfigured:
            unreadable += 1
            continue
        if names(raw, identifier):
            named.add(parked.pk)
    if unreadable:
        log.warning("parked items can't be decrypted and were not searched", install=install_id, items=unreadable)
    return named


def names(raw: bytes, identifier: str) -> bool:
    """Whether a parked item names the customer: in one of its values, or anywhere if it isn't JSON.

    Only the whole identifier counts, because an item of ``kimberly`` isn't about ``kim``.
    """
    text = as_utf8(raw).decode(errors="replace")
    try:
        texts, wanted = [*_values(json.loads(text))], _as_a_word([identifier])
    except (ValueError, RecursionError):
        texts, wanted = [text], _as_a_word(_spellings(identifier))
    return any(_is_whole(found) for value in texts for found in wanted.finditer(value))


def _is_whole(found: re.Match[str]) -> bool:
    """Whether no combining mark is next to the match. Decomposed Unicode spells "José" as "Jose" and an accent."""
    beside = found.string[max(0, found.start() - 1) : found.start()] + found.string[found.end() : found.end() + 1]
    return not any(unicodedata.category(character).startswith("M") for character in beside)


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


def of_one_person(raw: bytes) -> bool:
    """Whether a parked item is one message, and so about one person. Other items may name several."""
    try:
        item = json.loads(as_utf8(raw))
    except (ValueError, RecursionError):
        return False
    return isinstance(item, dict) and isinstance(item.get("data"), dict)


def items_about(packed: bytes | None, identifier: str) -> list[Any]:
    """The items of a stored request that are about the customer. Each item is about one."""
    kept = request_bodies.items(request_bodies.unpack(packed)) if packed else []
    return [item for item in kept if identifier in _inside(item)]
