"""Tolerant reading of objects in Lytics' responses: unknown fields are kept, wrong types count as absent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, TypeVar

from lytics.api.outcomes import Answer, Outcome

Thing = TypeVar("Thing")
Fields = Mapping[str, Any]
# The largest count that is read: PostgreSQL can't store a larger one.
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Many(Generic[Thing]):
    """A list in a response. ``unreadable`` is the number of elements that aren't objects with an id."""

    answer: Answer
    items: tuple[Thing, ...] = ()
    unreadable: int = 0


@dataclass(frozen=True)
class One(Generic[Thing]):
    """One object in a response; None unless ``answer.is_ok``."""

    answer: Answer
    item: Thing | None = None


def many(answer: Answer, read: Callable[[Fields], Thing | None], *, name: str) -> Many[Thing]:
    """The list in an answer. ``data: null`` is an empty list, as servers written in Go send it (inferred)."""
    if not answer.is_ok:
        return Many(answer)
    data = answer.data
    if data is None and isinstance(answer.json, dict):
        data = []
    if not isinstance(data, list):
        return Many(_unexpected(answer, name))
    items = [read(part) if isinstance(part, dict) else None for part in data]
    found = tuple(item for item in items if item is not None)
    return Many(answer, found, len(items) - len(found))


def one(answer: Answer, read: Callable[[Fields], Thing | None], *, name: str) -> One[Thing]:
    if not answer.is_ok:
        return One(answer)
    data = answer.data
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    item = read(data) if isinstance(data, dict) else None
    return One(_unexpected(answer, name)) if item is None else One(answer, item)


def _unexpected(answer: Answer, name: str) -> Answer:
    return replace(answer, outcome=Outcome.RETRY_LATER, reason=f"{answer.status}: the response has no {name}")


def text(fields: Fields, *names: str) -> str:
    """The first of ``names`` that holds text, or a number as text."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, str) and (whole := storable(value).strip()):
            return whole
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    return ""


def count(fields: Fields, name: str) -> int | None:
    """A whole number from zero to ``LARGEST``, also when it is written as 12.0 or as text."""
    value = fields.get(name)
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) and 0 <= value <= LARGEST else None


def flag(fields: Fields, name: str) -> bool:
    return fields.get(name) in (True, "true", "t")


def moment(fields: Fields, *names: str) -> datetime | None:
    """A time as RFC 3339; None when absent, without a zone, or before the year 2, which Go writes for "never"."""
    try:
        found = datetime.fromisoformat(text(fields, *names))
    except ValueError:
        return None
    return found if found.tzinfo is not None and found.year > 1 else None


def texts(fields: Fields, name: str) -> tuple[str, ...]:
    value = fields.get(name)
    return tuple(storable(part) for part in value if isinstance(part, str)) if isinstance(value, list) else ()


def storable(value: str) -> str:
    """``value`` as PostgreSQL, a URL and a page can hold it: without NUL, and with "?" for half a character."""
    return value.replace("\x00", "").encode(errors="replace").decode()


def mapping(fields: Fields, name: str) -> Fields:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}
