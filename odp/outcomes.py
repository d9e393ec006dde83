"""What a response of ODP means: one table from status codes to our five outcomes.

ODP documents 202 for writes, 400 with the bad items named, and 403. It documents nothing about 429, so the usual
responses of gateways are understood (docs/odp-wire.md).
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from odp import redact


class Outcome(StrEnum):
    DELIVERED = "delivered"
    RETRY_LATER = "retry_later"
    REJECTED = "refused"  # as stored and logged since the first version
    UNAUTHORISED = "unauthorised"
    UNKNOWN = "unknown"


_BY_STATUS: dict[int, Outcome] = {
    401: Outcome.UNAUTHORISED,
    403: Outcome.UNAUTHORISED,
    408: Outcome.RETRY_LATER,
    425: Outcome.RETRY_LATER,
    429: Outcome.RETRY_LATER,
}
# Status codes that ODP's hosts never answer to a write: the ODP host setting points at another server.
_NOT_ODP = frozenset({404, 405, 406, 407, 410, 421, 451})
TOO_LARGE = 413
# Characters kept of a message of ODP: a sentence or two for a person, not a page.
LONGEST_WORDS = 1_000
# Fields of a bad item's description whose number is not a position in the request.
_NO_POSITIONS = frozenset({"status", "code"})


def not_odp(status: int) -> bool:
    """Whether the response is not from ODP: a redirect, or a code that ODP never answers to a write."""
    return 300 <= status < 400 or status in _NOT_ODP


def outcome_of(status: int) -> Outcome:
    """The outcome of a status code. A 4xx that isn't listed is a rejection; everything else is retried."""
    if 200 <= status < 300:
        return Outcome.DELIVERED
    if status in _NOT_ODP or not 400 <= status < 500:
        return _BY_STATUS.get(status, Outcome.RETRY_LATER)
    return _BY_STATUS.get(status, Outcome.REJECTED)


@dataclass(frozen=True)
class Answer:
    """The result of one request. ``named`` maps positions of items in the request to ODP's messages about them.

    ``fixed_backoff`` is true for a failure that only a person can correct: the key is rejected, or the server is not
    ODP. ``seconds`` is the duration from the first byte sent, or from the beginning when none was sent.
    """

    outcome: Outcome
    reason: str = ""
    status: int | None = None
    named: dict[int, str] = field(default_factory=dict)
    retry_after: float | None = None
    too_large: bool = False
    fixed_backoff: bool = False
    # False when no byte of the request was sent, so that ODP can't have applied it.
    sent: bool = True
    seconds: float = 0.0
    text: str = ""
    json: Any = None


def named_items(body: Any) -> dict[int, str]:
    """The bad items that ODP names in ``detail.invalids``: messages by position in the request."""
    detail = body.get("detail") if isinstance(body, dict) else None
    invalids = detail.get("invalids") if isinstance(detail, dict) else None
    named: dict[int, str] = {}
    for invalid in invalids if isinstance(invalids, list) else []:
        position = _position(invalid)
        if position is not None:
            named[position] = _words(invalid)
    return named


def _position(invalid: Any) -> int | None:
    """The position of a bad item: under ``event`` for events, possibly under another name for other writes."""
    if not isinstance(invalid, dict):
        return None
    numbers = {
        name: value
        for name, value in invalid.items()
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0 and name not in _NO_POSITIONS
    }
    return numbers.get("event", next(iter(numbers.values()), None))


def _words(invalid: dict[str, Any]) -> str:
    for name in ("message", "reason"):
        value = invalid.get(name)
        if value:
            return readable("; ".join(map(str, value)) if isinstance(value, list) else str(value))
    return readable(str(invalid))


def error_words(body: Any, text: str) -> str:
    """The most specific message in an error body of any known shape, else the beginning of the body."""
    if isinstance(body, dict):
        detail = body.get("detail")
        invalids = detail.get("invalids") if isinstance(detail, dict) else None
        if isinstance(invalids, list) and invalids and isinstance(invalids[0], dict):
            return _words(invalids[0])
        for value in (
            detail.get("message") if isinstance(detail, dict) else detail,
            body.get("message"),
            body.get("title"),
        ):
            if isinstance(value, str) and value:
                return readable(value)
    # Compressed or binary bodies were decoded as text; their beginning tells a person nothing.
    return readable(text.strip()[:200]) if _is_text(text[:200]) else ""


def _is_text(text: str) -> bool:
    odd = sum(character == "\ufffd" or not (character.isprintable() or character.isspace()) for character in text)
    return odd * 20 <= len(text)


def readable(words: str) -> str:
    """A message of ODP as PostgreSQL can store it, with the customers that it may quote masked.

    Reasons are listed, downloaded and logged. The beginning of the response itself is kept with its Delivery.
    """
    return redact.words(words.replace("\x00", "")[:LONGEST_WORDS].encode(errors="replace").decode())
