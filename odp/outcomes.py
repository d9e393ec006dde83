"""What an answer of ODP means for us: one table, from its status codes to our five outcomes.

ODP documents 202 for writes, 400 with the bad items named, and 403; for 429 it documents nothing, so any of
the usual answers of gateways is understood (docs/odp-wire.md).
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from odp import redact


class Outcome(StrEnum):
    DELIVERED = "delivered"
    RETRY_LATER = "retry_later"
    REFUSED = "refused"
    UNAUTHORISED = "unauthorised"
    UNKNOWN = "unknown"


_BY_STATUS: dict[int, Outcome] = {
    401: Outcome.UNAUTHORISED,
    403: Outcome.UNAUTHORISED,
    408: Outcome.RETRY_LATER,
    425: Outcome.RETRY_LATER,
    429: Outcome.RETRY_LATER,
}
# Nothing that ODP's own hosts answer to a write: the host setting points at something else.
_NOT_ODP = frozenset({404, 405, 406, 407, 410, 421, 451})
TOO_LARGE = 413
# A Retry-After beyond this is taken as this, unless a client is told otherwise: a slip of a gateway must not stop an
# install for a week.
LONGEST_RETRY_AFTER = 3600.0
# Of what ODP says, in characters: a sentence or two for a person, not a page.
LONGEST_WORDS = 1_000
# Numbers in the description of a bad item that are no positions in the request.
_NO_POSITIONS = frozenset({"status", "code"})


def not_odp(status: int) -> bool:
    """Whether this is no answer of ODP's own: a redirect, or a code that its writes never give."""
    return 300 <= status < 400 or status in _NOT_ODP


def outcome_of(status: int) -> Outcome:
    """The outcome for one status code; 4xx that stand in no table are refusals, everything else is worth a retry."""
    if 200 <= status < 300:
        return Outcome.DELIVERED
    if status in _NOT_ODP or not 400 <= status < 500:
        return _BY_STATUS.get(status, Outcome.RETRY_LATER)
    return _BY_STATUS.get(status, Outcome.REFUSED)


@dataclass(frozen=True)
class Answer:
    """What came back for one request. ``named`` maps positions in the request to ODP's words about them.

    ``slow_probe`` says that trying again soon is pointless: the key is refused, or this is not ODP.
    ``seconds`` is the whole call.
    """

    outcome: Outcome
    reason: str = ""
    status: int | None = None
    named: dict[int, str] = field(default_factory=dict)
    retry_after: float | None = None
    too_large: bool = False
    slow_probe: bool = False
    # False when not a byte of the request went out, so that ODP can't have applied it.
    sent: bool = True
    seconds: float = 0.0
    text: str = ""
    json: Any = None


def retry_after_seconds(
    header: str | None, *, longest: float = LONGEST_RETRY_AFTER, now: datetime | None = None
) -> float | None:
    """``Retry-After`` as seconds from now, in either of its two forms; None when absent or unreadable."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            moment = parsedate_to_datetime(header)
            # ``-0000`` and asctime give no zone; HTTP's dates are in UTC.
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            seconds = (moment - (now or datetime.now(UTC))).total_seconds()
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return min(max(seconds, 0.0), longest) if seconds == seconds else None


def named_items(body: Any) -> dict[int, str]:
    """The items that ODP's error names, by position: ``detail.invalids``, each with an index and a message."""
    detail = body.get("detail") if isinstance(body, dict) else None
    invalids = detail.get("invalids") if isinstance(detail, dict) else None
    named: dict[int, str] = {}
    for invalid in invalids if isinstance(invalids, list) else []:
        position = _position(invalid)
        if position is not None:
            named[position] = _words(invalid)
    return named


def _position(invalid: Any) -> int | None:
    """Events are named under ``event``; that the other calls use another word for it is not ruled out."""
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
    """The most telling sentence in an error body of any of the shapes seen, else its beginning."""
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
    # Packed or binary bodies were decoded as if they were text; their beginning says nothing to a person.
    return readable(text.strip()[:200]) if _is_text(text[:200]) else ""


def _is_text(text: str) -> bool:
    odd = sum(character == "\ufffd" or not (character.isprintable() or character.isspace()) for character in text)
    return odd * 20 <= len(text)


def readable(words: str) -> str:
    """What the other side said, as PostgreSQL can store it and without the customers that it may quote.

    Reasons are listed, downloaded and logged. The whole answer is kept with its Delivery.
    """
    return redact.words(words.replace("\x00", "")[:LONGEST_WORDS].encode(errors="replace").decode())
