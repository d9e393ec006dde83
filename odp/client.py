"""HTTP client for ODP: one request in, one ``Answer`` out. It never retries, and never raises for what ODP sends."""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import requests
import urllib3

from odp import redact
from odp.acceptance import NOT_UNPACKED, objection
from odp.outcomes import (
    TOO_LARGE,
    Answer,
    Outcome,
    error_words,
    named_items,
    not_odp,
    outcome_of,
)
from odp.paths import ABOUT_CUSTOMERS, LIST_SUBSCRIPTIONS
from outgoing.deadline import SPARE_SECONDS, DeadlineAdapter, TooLateError, deadline
from outgoing.network_errors import words_for
from outgoing.retry_after import LONGEST_RETRY_AFTER, retry_after_seconds

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
# Bytes read of a response. ODP's responses are small; a larger one comes from another server.
ANSWER_BYTES = 1_000_000
# Characters of a response body that are kept with the Delivery.
EXCERPT = 2_000
USER_AGENT = "lytics-sync/0.1"
# A reason without a word of at least three letters, such as "{}", doesn't help a person.
_A_WORD = re.compile(r"[^\W\d_]{3,}")
OUT_OF_TIME = "ODP sent no complete response in time"
NO_CONNECTION = "No connection to ODP could be opened in time"

# The certificate authorities to trust: True for the usual ones, or the path of a file.
TRUSTED: bool | str = True

_thread = threading.local()


def _adapter() -> DeadlineAdapter:
    """One pool of kept-alive connections per thread.

    Not a ``requests.Session``: a session reads and decompresses the whole body of a redirect, keeps cookies, and
    obeys the environment's proxies and ``.netrc``.
    """
    adapter: DeadlineAdapter | None = getattr(_thread, "adapter", None)
    if adapter is None:
        adapter = _thread.adapter = DeadlineAdapter(pool_connections=16, pool_maxsize=1)
    return adapter


# The rate limiter: called right before a request's first byte, with the path and the moment of ``time.monotonic`` after
# which the request must not start. It returns when the request may start, or raises ``TooLateError``.
Permission = Callable[[str, float], None]


class Client:
    """One ODP account. ``host`` is its base URL without ``/v3``; ``api_key`` its private key.

    ``ends_at`` is the moment of ``time.monotonic`` at which all requests of this client end, ``permission`` the rate
    limiter, and ``longest_retry_after`` the cap of a Retry-After in seconds. With ``empty_is_accepted``, a 2xx with an
    empty body accepts memberships. ``headers`` are added to each request.
    """

    def __init__(
        self,
        *,
        host: str,
        api_key: str,
        ends_at: float = float("inf"),
        permission: Permission | None = None,
        longest_retry_after: float = LONGEST_RETRY_AFTER,
        empty_is_accepted: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.host = host
        self.ends_at = ends_at
        self.permission = permission
        self.longest_retry_after = longest_retry_after
        self.empty_is_accepted = empty_is_accepted
        self._api_key = api_key
        self._headers = {name: value for name, value in _headers(api_key).items() if value} | dict(headers or {})

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        seconds: float,
        start_before: float = float("inf"),
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Make one request. It ends at most ``seconds`` after its first byte, whatever the server does.

        ``start_before`` is the moment of ``time.monotonic`` after which no byte may be sent; ``TooLateError`` is raised
        when that moment passes before the rate limiter lets the request start. ``headers`` are added to this request.
        """
        started = time.monotonic()
        start_before = min(start_before, self.ends_at)
        seconds = min(seconds, self.ends_at - started)
        if seconds <= 0:
            return Answer(Outcome.RETRY_LATER, OUT_OF_TIME, sent=False)
        if started >= start_before:
            raise TooLateError
        # A connection that isn't open by the time the request must have started counts as unreachable.
        connect_seconds = min(CONNECT_SECONDS, seconds, start_before - started)
        sent = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        if headers:
            sent = {**sent, **headers}
        permission = self.permission and partial(self.permission, path, start_before)
        with deadline(seconds=seconds, start_before=start_before, ends_at=self.ends_at, permission=permission) as limit:
            try:
                with _adapter().send(
                    requests.Request(method, self.host + path, headers=sent, data=body).prepare(),
                    timeout=(connect_seconds, seconds + SPARE_SECONDS),
                    verify=TRUSTED,
                    stream=True,
                ) as response:
                    content = _content(response)
            except TooLateError:
                if not limit.passed:
                    raise
            except Exception as error:  # noqa: BLE001 — every response of a server becomes an Answer
                if limit.permission_error is not None:
                    raise limit.permission_error from limit.permission_error.__cause__
                if not limit.passed:
                    return _no_answer(error, began_at=limit.began_at, started=started)
        elapsed = _since(limit.began_at or started)
        if limit.passed:
            reason = OUT_OF_TIME if limit.began_at else NO_CONNECTION
            return Answer(Outcome.RETRY_LATER, reason, sent=limit.began_at is not None, seconds=elapsed)
        answer = self._answer(path, response, content, seconds=elapsed)
        return _without_customers(answer, body) if path in ABOUT_CUSTOMERS else answer

    def _answer(self, path: str, response: requests.Response, content: bytes | None, *, seconds: float) -> Answer:
        # JSON is UTF-8, whatever the header says, maybe with a byte order mark. PostgreSQL can't store a NUL.
        text = (content or b"").decode("utf-8-sig", errors="replace").replace("\x00", "")
        text = redact.without_key(text, self._api_key)
        is_html = "html" in response.headers.get("Content-Type", "").lower()
        body = _json(text)
        status, outcome = response.status_code, outcome_of(response.status_code)
        if status == 404 and path == LIST_SUBSCRIPTIONS and isinstance(body, dict):
            outcome = Outcome.REJECTED  # the one write that ODP itself answers with 404: the list is gone
        reason = "" if outcome is Outcome.DELIVERED else _reason(status, body, text, is_html=is_html)
        fixed_backoff = outcome is Outcome.UNAUTHORISED or (outcome is Outcome.RETRY_LATER and not_odp(status))
        if outcome is Outcome.DELIVERED and (
            found := NOT_UNPACKED
            if content is None
            else objection(path, status, body, text, is_html=is_html, empty_is_accepted=self.empty_is_accepted)
        ):
            outcome, reason, fixed_backoff = found
        return Answer(
            outcome=outcome,
            reason=reason,
            status=status,
            named=named_items(body) if outcome is Outcome.REJECTED else {},
            retry_after=retry_after_seconds(response.headers.get("Retry-After"), longest=self.longest_retry_after),
            too_large=status == TOO_LARGE,
            fixed_backoff=fixed_backoff,
            seconds=seconds,
            text=text[:EXCERPT],
            json=body,
        )


def _without_customers(answer: Answer, body: bytes | None) -> Answer:
    """Mask the values of the request: ODP may quote a customer without quotes around the identifier."""
    if not (answer.named or answer.reason):
        return answer
    values = redact.values_of(body)
    named = {position: redact.without(words, values) for position, words in answer.named.items()}
    return replace(answer, reason=redact.without(answer.reason, values), named=named)


def _content(response: requests.Response) -> bytes | None:
    """The beginning of the body; None when it can't be unpacked as its Content-Encoding says."""
    try:
        content: bytes = response.raw.read(ANSWER_BYTES, decode_content=True)
    except urllib3.exceptions.DecodeError:
        return None
    return content


def _headers(api_key: str) -> dict[str, str]:
    ours = {"x-api-key": api_key, "User-Agent": USER_AGENT, "Accept": "application/json"}
    return {**{name: str(value) for name, value in requests.utils.default_headers().items()}, **ours}


def headers_of_a_write(api_key: str, *, size: int) -> dict[str, str]:
    """The headers of a request with a body of ``size`` bytes, named and ordered as they are sent."""
    return {**_headers(api_key), "Content-Type": "application/json", "Content-Length": str(size)}


def _since(moment: float) -> float:
    return time.monotonic() - moment


def _no_answer(error: Exception, *, began_at: float | None, started: float) -> Answer:
    """The result when no response came. ODP may have applied the request; repeating absolute state is harmless."""
    if not isinstance(error, (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)):
        log.error("unexpected error in a request to ODP", exc_info=error)
    seconds = _since(began_at or started)
    return Answer(Outcome.RETRY_LATER, words_for(error), sent=began_at is not None, seconds=seconds)


def _reason(status: int, body: Any, text: str, *, is_html: bool) -> str:
    words = error_words(body, "" if is_html else text)
    if _A_WORD.search(words):
        return f"{status}: {words}"
    return f"{status}: {'the response is a web page, not from ODP' if is_html else 'ODP gave no reason'}"


def _json(text: str) -> Any:
    """The body as JSON, or None. A name that occurs twice in an object makes the body ambiguous: it is no JSON then."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return None


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(members)
    if len(made) < len(members):
        raise ValueError
    return made
