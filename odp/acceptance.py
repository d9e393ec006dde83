"""Whether a 2xx response means that ODP accepted the request.

A status code alone proves nothing: a proxy, a maintenance page or another service also answers 200. Accepted is a JSON
object of the documented shape that reports no failure. The responses to writes of memberships have ``title`` and
``status``, those to list subscriptions ``updates``.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from odp.outcomes import Outcome, error_words, named_items, not_odp, outcome_of, readable
from odp.paths import GRAPHQL, LIST_SUBSCRIPTIONS, MEMBERSHIP_WRITES

_TITLES = frozenset(status.phrase.lower() for status in HTTPStatus if 200 <= status < 300 and status != 206)
# Fields that report failure or success, at the top of a response body or in its ``detail``.
_FAILURES = ("invalids", "invalid", "errors", "error", "failures", "failed", "rejected")
_SUCCESSES = ("success", "ok", "accepted")
# The same in responses to writes of memberships, at any depth: compared without case, and without other characters than
# letters, as in ``failed_count``.
_FAILURE = re.compile(
    r"(?:has|any|partial|validation|(?:num|number|total|count)(?:of)?)?(?:items|records|events|profiles)?"
    r"(?:errors?(?:code|message|reason)?|fail(?:ed|ures?)|invalids?|reject(?:ed|ions?)|(?:un|not)processed|unsuccessful"
    r"|not(?:accepted|found)|missing|unknown|dropped|ignored|skipped|exceptions?|faults?|violations?|partial(?:success)?)"
    r"(?:items|records|events|profiles|fields|identifiers)?(?:count|total)?"
)
_SUCCESS = re.compile(r"(?:is|was)?(?:success(?:ful)?|succeeded|ok|accepted|acknowledged|valid)(?:count)?")
_NO_LETTERS = re.compile(r"[^a-z]+")
# Fields other than ``status`` itself whose number may be a status, written like the above.
_CODES = frozenset({"status", "code", "statuscode", "httpcode", "httpstatus", "httpstatuscode"})
# Fields that may report a failure as a word. Read in responses to writes of memberships only: an audience or a field
# that is read back may have a state of its own.
_STATES = ("status", "state", "result", "outcome", "message", "detail")
_NO = frozenset({"false", "no", "0"})
# A text in a field for failures that reports none.
_NO_FAILURE = _NO | {"", "none", "null"}
_FAILED = re.compile(
    r"partial|fail|error|err\b|reject|refus|den(?:y|ied)|invalid|un(?:success|avail|processed)|not\W|nok\b|ko\b|abort"
    r"|cancel|throttl|tim(?:e|ed)\W?out|maintenance|exception|busy|overload",
    re.IGNORECASE,
)
_STATUS = re.compile(r"(?:HTTP\S*\s+)?(\d{3})(?!\S)", re.IGNORECASE)
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
    is_write = path in MEMBERSHIP_WRITES
    parts = list(_objects(body)) if is_write else _top(body)
    worst = max(parts, key=_status)
    inner = _status(worst)
    words = error_words(worst if inner >= 300 else body, text)
    if inner >= 300:
        outcome = outcome_of(inner)
        slow = outcome is Outcome.UNAUTHORISED or (outcome is Outcome.RETRY_LATER and not_odp(inner))
        return Objection(outcome, f"{inner}: {words} (in a {status} response)", slow)
    failures = _failures(parts, is_failure=_is_failure_of_write if is_write else _is_failure_of_read)
    if failures and words.lower() in _TITLES:
        named = (f"{name} {value}" if isinstance(value, int) else name for name, value in failures)
        words = readable(", ".join(named))
    if named_items(body) or any(isinstance(value, list) for _, value in failures):
        return Objection(Outcome.REJECTED, f"{status}: ODP rejected part of the request: {words}", False)
    is_success = _is_success_of_write if is_write else _SUCCESSES.__contains__
    has_failed = any(_is_no(value) for part in parts for name, value in part.items() if is_success(name))
    if is_write and any(_is_failed(part.get(name)) for part in parts for name in _STATES):
        has_failed = True
    if has_failed or failures:
        return Objection(Outcome.RETRY_LATER, f"{status}: the response reports a failure: {words}", True)
    if is_write and not _is_documented(path, body, max(map(_status, _top(body)))):
        return _not_from_odp(UNKNOWN_JSON, words)
    return None


def _not_from_odp(kind: str, words: str = "") -> Objection:
    quoted = f": {words}" if words else ""
    return Objection(Outcome.RETRY_LATER, f"The ODP host sent {kind}, which is not a response of ODP{quoted}", True)


# The objection to a body whose Content-Encoding is wrong, also where an empty one is accepted.
NOT_UNPACKED = _not_from_odp("a body that can't be unpacked")


def _is_documented(path: str, body: Mapping[str, Any], inner: int) -> bool:
    title, updates = body.get("title"), body.get("updates") if path == LIST_SUBSCRIPTIONS else None
    if updates == []:
        return False
    if title is None:
        return inner >= 200 or isinstance(updates, list)
    return isinstance(title, str) and title.lower() in _TITLES and not 0 <= inner < 200


def _top(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The body, and its ``detail`` if that is an object: both may report a failure."""
    detail = body.get("detail")
    return [body, detail] if isinstance(detail, dict) else [body]


def _objects(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The body and every object inside it, such as the result of each item."""
    left: list[Any] = [body]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield value
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)


def _status(part: Mapping[str, Any]) -> int:
    """The status that it has as a number, or -1. An error in another field for a status counts more."""
    codes = (_number(value) for name, value in part.items() if _letters(name) in _CODES)
    number = _number(part.get("status"))
    return max([-1 if number is None else max(number, 0), *(code for code in codes if code and 300 <= code < 600)])


def _letters(name: str) -> str:
    return _NO_LETTERS.sub("", name.lower())


def _failures(parts: Iterable[Mapping[str, Any]], *, is_failure: Callable[[str, Any], bool]) -> list[tuple[str, Any]]:
    """The fields that report a failure, and their values. A name may occur in several parts."""
    return [
        (name, value)
        for part in parts
        for name, value in part.items()
        if value and is_failure(name, value) and not (isinstance(value, str) and value.strip().lower() in _NO_FAILURE)
    ]


def _is_failure_of_read(name: str, value: Any) -> bool:
    return name in _FAILURES


def _is_failure_of_write(name: str, value: Any) -> bool:
    return _FAILURE.fullmatch(_letters(name)) is not None or (name == "detail" and isinstance(value, list))


def _is_success_of_write(name: str) -> bool:
    return _SUCCESS.fullmatch(_letters(name)) is not None


def _is_no(value: Any) -> bool:
    return value.strip().lower() in _NO or _is_failed(value) if isinstance(value, str) else value in (False, 0)


def _is_failed(value: Any) -> bool:
    return value is False or (isinstance(value, str) and bool(_FAILED.match(value.strip())))


def _number(value: Any) -> int | None:
    """A status as a whole number, also where it is written as 503.0 or as a text such as "503 Service Unavailable"."""
    if isinstance(value, str):
        found = _STATUS.match(value.strip())
        return int(found[1]) if found else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
