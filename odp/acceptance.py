"""Whether a 2xx is an acceptance: only what ODP documents is one, a JSON object that doesn't say it failed.

Writes of memberships are answered with ``title`` and ``status``, list subscriptions with ``updates``. A proxy, a
maintenance page or another service also says 200, and has taken nothing.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from odp.outcomes import Outcome, error_words, named_items, not_odp, outcome_of
from odp.paths import GRAPHQL, LIST_SUBSCRIPTIONS, MEMBERSHIP_WRITES

_TITLES = frozenset(status.phrase.lower() for status in HTTPStatus if 200 <= status < 300)
# Where a body says what was not taken, at its top or in ``detail``; and where it says that something was.
_FAILURES = ("invalids", "invalid", "errors", "error", "failures", "failed", "rejected")
_SUCCESSES = ("success", "ok", "accepted")


class Objection(NamedTuple):
    """Why a 2xx is no acceptance."""

    outcome: Outcome
    reason: str
    slow_probe: bool


def objection(
    path: str, status: int, body: Any, text: str, *, is_html: bool, empty_is_accepted: bool = False
) -> Objection | None:
    """What speaks against taking this 2xx for an acceptance; None when nothing does.

    ``empty_is_accepted`` takes one without a body for an acceptance of memberships. Reads always need a body.
    """
    if is_html:
        return _foreign("A web page")
    if not text.strip():
        return None if empty_is_accepted and path in MEMBERSHIP_WRITES else _foreign("An empty answer")
    if not isinstance(body, dict):
        return _foreign("Text" if body is None else "JSON of another kind", error_words(None, text))
    if path == GRAPHQL:
        return None if "data" in body or "errors" in body else _foreign("JSON of another kind", error_words(body, text))
    inner, words = _number(body.get("status")), error_words(body, text)
    if inner is not None and inner >= 300:
        outcome = outcome_of(inner)
        slow = outcome is Outcome.UNAUTHORISED or (outcome is Outcome.RETRY_LATER and not_odp(inner))
        return Objection(outcome, f"{inner}: {words} (behind a {status})", slow)
    if named_items(body) or any(isinstance(found, list) for found in _failures(body)):
        return Objection(Outcome.REFUSED, f"{status}: ODP did not take all of it: {words}", False)
    if _failures(body) or any(body.get(name, True) in (False, 0) for name in _SUCCESSES):
        return Objection(Outcome.RETRY_LATER, f"{status}: the answer says that it failed: {words}", True)
    if path in MEMBERSHIP_WRITES and not _is_documented(path, body, inner):
        return _foreign("JSON of another kind", words)
    return None


def _foreign(what: str, words: str = "") -> Objection:
    told = f": {words}" if words else ""
    return Objection(Outcome.RETRY_LATER, f"{what} came back where ODP should be{told}", True)


def _is_documented(path: str, body: Mapping[str, Any], inner: int | None) -> bool:
    if path == LIST_SUBSCRIPTIONS and isinstance(body.get("updates"), list):
        return bool(body["updates"])
    title = body.get("title")
    if title is None:
        return inner is not None and inner >= 200
    return isinstance(title, str) and title.lower() in _TITLES and (inner is None or inner >= 200)


def _failures(body: Mapping[str, Any]) -> list[Any]:
    detail = body.get("detail")
    parts = [body, detail] if isinstance(detail, dict) else [body]
    return [part[name] for part in parts for name in _FAILURES if part.get(name)]


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
