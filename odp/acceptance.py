"""Whether a 2xx response means that ODP accepted the request.

A status code alone proves nothing: a proxy, a maintenance page or another service also answers 200. Accepted is a JSON
object of the documented shape that reports no failure. The responses to writes of memberships have ``title`` and
``status``, those to list subscriptions ``updates``.
"""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from odp.outcomes import Outcome, error_words, named_items, not_odp, outcome_of
from odp.paths import GRAPHQL, LIST_SUBSCRIPTIONS, MEMBERSHIP_WRITES

_TITLES = frozenset(status.phrase.lower() for status in HTTPStatus if 200 <= status < 300)
# Fields that report failure or success, at the top of a response body or in its ``detail``.
_FAILURES = ("invalids", "invalid", "errors", "error", "failures", "failed", "rejected")
_SUCCESSES = ("success", "ok", "accepted")
# Fields that may report a failure as a word. Read in responses to writes of memberships only: an audience or a field
# that is read back may have a state of its own.
_STATES = ("status", "state", "result", "outcome")
_NO = frozenset({"false", "no", "0"})
_FAILED = re.compile(
    r"(?:partial(?:ly)?\W*)?(?:fail|error|reject|refus|den(?:y|ied)|invalid|unsuccessful)", re.IGNORECASE
)
UNKNOWN_JSON = "JSON of an unknown shape"


class Objection(NamedTuple):
    """Why a 2xx response doesn't mean that ODP accepted the request."""

    outcome: Outcome
    reason: str
    fixed_backoff: bool


def objection(
    path: str, status: int, body: Any, text: str, *, is_html: bool, empty_is_accepted: bool = False
) -> Objection | None:
    """Check a 2xx response; None when ODP accepted the request.

    ``text`` is the response body, ``body`` the same as JSON or None. With ``empty_is_accepted``, a write of memberships
    is accepted without a response body; a read never is.
    """
    if is_html:
        return _not_from_odp("a web page")
    if not text.strip():
        return None if empty_is_accepted and path in MEMBERSHIP_WRITES else _not_from_odp("an empty response")
    if not isinstance(body, dict):
        return _not_from_odp("text" if body is None else UNKNOWN_JSON, error_words(None, text))
    if path == GRAPHQL:
        is_graphql = "data" in body or "errors" in body
        return None if is_graphql else _not_from_odp(UNKNOWN_JSON, error_words(body, text))
    parts, words = _parts(body), error_words(body, text)
    inner = max((number for part in parts if (number := _number(part.get("status"))) is not None), default=None)
    if inner is not None and inner >= 300:
        outcome = outcome_of(inner)
        slow = outcome is Outcome.UNAUTHORISED or (outcome is Outcome.RETRY_LATER and not_odp(inner))
        return Objection(outcome, f"{inner}: {words} (in a {status} response)", slow)
    if named_items(body) or any(isinstance(value, list) for value in _failures(parts)):
        return Objection(Outcome.REJECTED, f"{status}: ODP rejected part of the request: {words}", False)
    has_failed = path in MEMBERSHIP_WRITES and any(_is_failed(part.get(name)) for part in parts for name in _STATES)
    if has_failed or _failures(parts) or any(_is_no(part.get(name)) for part in parts for name in _SUCCESSES):
        return Objection(Outcome.RETRY_LATER, f"{status}: the response reports a failure: {words}", True)
    if path in MEMBERSHIP_WRITES and not _is_documented(path, body, inner):
        return _not_from_odp(UNKNOWN_JSON, words)
    return None


def _not_from_odp(kind: str, words: str = "") -> Objection:
    quoted = f": {words}" if words else ""
    return Objection(Outcome.RETRY_LATER, f"The ODP host sent {kind}, which is not a response of ODP{quoted}", True)


def _is_documented(path: str, body: Mapping[str, Any], inner: int | None) -> bool:
    if path == LIST_SUBSCRIPTIONS and isinstance(body.get("updates"), list):
        return bool(body["updates"])
    title = body.get("title")
    if title is None:
        return inner is not None and inner >= 200
    return isinstance(title, str) and title.lower() in _TITLES and (inner is None or inner >= 200)


def _parts(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The body, and its ``detail`` if that is an object: both may report a failure."""
    detail = body.get("detail")
    return [body, detail] if isinstance(detail, dict) else [body]


def _failures(parts: Iterable[Mapping[str, Any]]) -> list[Any]:
    return [part[name] for part in parts for name in _FAILURES if part.get(name)]


def _is_no(value: Any) -> bool:
    return value.strip().lower() in _NO or _is_failed(value) if isinstance(value, str) else value in (False, 0)


def _is_failed(value: Any) -> bool:
    return value is False or (isinstance(value, str) and bool(_FAILED.match(value.strip())))


def _number(value: Any) -> int | None:
    """A status as a whole number, also where it is written as a text or as 503.0."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\d{3}", value) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
