"""The outcome of a response of Lytics' API: both error styles, and responses that don't come from Lytics.

Documented: ``/v2`` errors are ``{"errors": [{"message"}]}``, ``/api`` errors ``{"message"}``, and a 401 always has the
second style. A 429 has no helpful headers. A 200 can say "Not Found". The layout of other errors is unknown, so every
4xx without a message is a rejection too.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from outgoing.retry_after import retry_after_seconds


class Outcome(StrEnum):
    OK = "ok"
    NOT_FOUND = "not_found"
    # The same request will never succeed.
    REJECTED = "rejected"
    # The token is wrong, has expired, or lacks a right.
    UNAUTHORISED = "unauthorised"
    # The same request may succeed later: 429, 5xx, no response, or another server responded.
    RETRY_LATER = "retry_later"


@dataclass(frozen=True)
class Answer:
    """The result of one request.

    ``sent`` is False when no byte of the request was sent. A write without a response may have been applied, so read
    before repeating it. ``json`` may hold people and secrets and is left out of ``repr``.
    """

    outcome: Outcome
    reason: str = ""
    status: int | None = None
    # Seconds that Lytics asks to wait; Lytics documents that it sends no such header with a 429.
    retry_after: float | None = None
    sent: bool = True
    seconds: float = 0.0
    json: Any = field(default=None, repr=False)

    @property
    def is_ok(self) -> bool:
        return self.outcome is Outcome.OK

    @property
    def is_rate_limited(self) -> bool:
        return self.status == TOO_MANY

    @property
    def data(self) -> Any:
        """The content of the envelope ``{"data": ...}`` (documented), or the whole body without one (tolerated)."""
        return self.json["data"] if isinstance(self.json, dict) and "data" in self.json else self.json


TOO_MANY = 429
_BY_STATUS = {
    401: Outcome.UNAUTHORISED,
    403: Outcome.UNAUTHORISED,
    404: Outcome.NOT_FOUND,
    408: Outcome.RETRY_LATER,
    425: Outcome.RETRY_LATER,
    TOO_MANY: Outcome.RETRY_LATER,
}
# The most characters kept of an error message: enough for two sentences.
LONGEST_WORDS = 500
# Shorter values aren't masked, because masking them would remove parts of words.
_SHORTEST_HIDDEN = 3
HIDDEN = "•••"
_EMAIL = re.compile(r"[^\s'\"<>(){},;]+(?:@|%40)[^\s'\"<>(){},;]+", re.IGNORECASE)


def answer_to(
    status: int,
    body: Any,
    *,
    text: str,
    headers: Mapping[str, str],
    may_be_empty: bool,
    hidden: Iterable[str] = (),
    seconds: float = 0.0,
) -> Answer:
    """The answer to a request. ``body`` is the JSON of ``text``, or None; ``hidden`` is masked in the reason."""
    is_html = "html" in headers.get("Content-Type", "").lower() or text.lstrip()[:1] == "<"
    outcome, status, problem = _outcome(status, body, is_empty=not text.strip(), may_be_empty=may_be_empty)
    words = _error_words(body) or problem
    if outcome is Outcome.NOT_FOUND and not isinstance(body, dict):
        # Lytics answers 404 in JSON for a missing object. A 404 without JSON comes from another server.
        outcome, words = Outcome.RETRY_LATER, ""
    if not words:
        page = "the response is a web page, not from Lytics"
        words = page if is_html else readable(text[:200]) or "Lytics gave no reason"
    return Answer(
        outcome=outcome,
        reason="" if outcome is Outcome.OK else masked(f"{status}: {words}", hidden),
        status=status,
        retry_after=retry_after_seconds(headers.get("Retry-After")),
        seconds=seconds,
        json=body,
    )


def _outcome(status: int, body: Any, *, is_empty: bool, may_be_empty: bool) -> tuple[Outcome, int, str]:
    if 200 <= status < 300:
        inner = body.get("status") if isinstance(body, dict) else None
        if isinstance(inner, int) and 400 <= inner < 600:
            status = inner  # the API's status is used where the gateway's differs
        elif isinstance(body, dict) and isinstance(body.get("errors"), list) and body["errors"]:
            return Outcome.REJECTED, status, ""
        elif isinstance(body, dict) and _says_not_found(body):
            return Outcome.NOT_FOUND, status, "Not Found"
        elif isinstance(body, dict | list) or (is_empty and may_be_empty):
            return Outcome.OK, status, ""
        else:
            empty = "the response is empty" if is_empty else ""
            return Outcome.RETRY_LATER, status, empty
    if 400 <= status < 500:
        return _BY_STATUS.get(status, Outcome.REJECTED), status, ""
    redirect = "the response is a redirect. Check LYTICS_API_URL" if 300 <= status < 400 else ""
    return Outcome.RETRY_LATER, status, redirect


def _says_not_found(body: dict[str, Any]) -> bool:
    """Documented for a person who doesn't exist: status 200 with the message "Not Found"."""
    message = body.get("message")
    return isinstance(message, str) and message.strip().lower() == "not found"


def _error_words(body: Any) -> str:
    """The message of either error style, with the code that the ``/v2`` style has beside it."""
    if not isinstance(body, dict):
        return ""
    errors = body.get("errors")
    for error in errors if isinstance(errors, list) else [errors]:
        if isinstance(error, dict) and error.get("message"):
            code = f" ({error['code']})" if isinstance(error.get("code"), str) else ""
            return readable(f"{error['message']}{code}")
        if isinstance(error, str) and error.strip():
            return readable(error)
    message = body.get("message") or body.get("error")
    return readable(message) if isinstance(message, str) else ""


def readable(words: str) -> str:
    """Text as PostgreSQL can store it, on one line; empty when it isn't text."""
    words = " ".join(words.replace("\x00", "").encode(errors="replace").decode().split())[:LONGEST_WORDS]
    odd = sum(character == "\ufffd" or not character.isprintable() for character in words)
    return words if odd * 20 <= len(words) else ""


def masked(words: str, hidden: Iterable[str]) -> str:
    """``words`` without the values of ``hidden`` and without e-mail addresses: reasons are stored, shown and logged."""
    for value in sorted(set(hidden), key=len, reverse=True):
        if len(value) >= _SHORTEST_HIDDEN:
            words = words.replace(value, HIDDEN)
    return _EMAIL.sub(HIDDEN, words)
