"""HTTP to ODP: one request in, one ``Answer`` out. Knows no models, never retries, never raises for what ODP does."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import requests
import urllib3

from odp.deadline import DeadlineAdapter, TooLateError, deadline
from odp.outcomes import TOO_LARGE, Answer, Outcome, error_words, named_items, not_odp, outcome_of, retry_after_seconds

CONNECT_SECONDS = 3.0
# Answers of ODP are small; anything longer is somebody else's page.
ANSWER_BYTES = 1_000_000
EXCERPT = 2_000
LIST_SUBSCRIPTIONS = "/v3/lists/subscriptions"
USER_AGENT = "lytics-sync/0.1"

_thread = threading.local()


def _session() -> requests.Session:
    """One session, and so one pool of kept-alive connections, per thread: a session is not safe to share."""
    session: requests.Session | None = getattr(_thread, "session", None)
    if session is None:
        session = _thread.session = requests.Session()
        session.trust_env = False  # a proxy or .netrc of the environment is not ours to obey
        for scheme in ("http://", "https://"):
            session.mount(scheme, DeadlineAdapter(pool_connections=16, pool_maxsize=1))
    return session


class Client:
    """One ODP account. ``host`` is its base URL without ``/v3``; ``api_key`` its private key.

    ``ends_at`` (``time.monotonic``) is one end for all its calls together.
    """

    def __init__(self, *, host: str, api_key: str, ends_at: float = float("inf")) -> None:
        self.host = host
        self.ends_at = ends_at
        self._headers = {"x-api-key": api_key, "User-Agent": USER_AGENT, "Accept": "application/json"}

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        seconds: float,
        start_before: float = float("inf"),
        permission: Callable[[], None] | None = None,
    ) -> Answer:
        """Make one request, over ``seconds`` after its first byte whatever the server does.

        ``start_before`` and ``permission`` are those of ``odp.deadline``; raises ``TooLateError`` when the moment
        has passed, and then nothing was sent.
        """
        started = time.monotonic()
        seconds = min(seconds, self.ends_at - started)
        if seconds <= 0:
            return _no_answer(TimeoutError(), passed=True, seconds=0)
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        with deadline(seconds=seconds, start_before=start_before, permission=permission) as limit:
            try:
                with _session().request(
                    method,
                    self.host + path,
                    data=body,
                    headers=headers,
                    timeout=(min(CONNECT_SECONDS, seconds), seconds),
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    content = response.raw.read(ANSWER_BYTES, decode_content=True)
            except TooLateError:
                raise
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                return _no_answer(error, passed=limit.passed, seconds=_since(limit.began_at or started))
        taken = _since(limit.began_at or started)
        if limit.passed:
            return _no_answer(TimeoutError(), passed=True, seconds=taken)
        return _answer(path, response, content, seconds=taken)


def _since(moment: float) -> float:
    return time.monotonic() - moment


def _no_answer(error: Exception, *, passed: bool, seconds: float) -> Answer:
    """ODP may or may not have applied the request; sending it again is harmless, because it is absolute state."""
    if passed:
        return Answer(Outcome.RETRY_LATER, "ODP gave no whole answer in time", seconds=seconds)
    return Answer(Outcome.RETRY_LATER, f"ODP could not be reached: {_root(error)}", seconds=seconds)


def _root(error: BaseException) -> str:
    """The innermost cause, in a few words: urllib3 wraps it in several layers and a memory address."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {error}"[:200]


def _answer(path: str, response: requests.Response, content: bytes, *, seconds: float) -> Answer:
    text = content.decode(response.encoding or "utf-8", errors="replace")
    is_html = "html" in response.headers.get("Content-Type", "").lower()
    body = _json(text)
    status, outcome = response.status_code, outcome_of(response.status_code)
    if status == 404 and path == LIST_SUBSCRIPTIONS and isinstance(body, dict):
        outcome = Outcome.REFUSED  # here alone ODP itself says 404 to a write: the list is gone
    if outcome is Outcome.DELIVERED and is_html:
        # ODP answers in JSON. A page with 200 is a proxy or a wrong host, and nobody has taken the change.
        return Answer(
            Outcome.RETRY_LATER, "A web page came back where ODP should be", status, slow_probe=True, seconds=seconds
        )
    reason = "" if outcome is Outcome.DELIVERED else f"{status}: {error_words(body, '' if is_html else text)}"
    return Answer(
        outcome=outcome,
        reason=reason,
        status=status,
        named=named_items(body) if outcome is Outcome.REFUSED else {},
        retry_after=retry_after_seconds(response.headers.get("Retry-After")),
        too_large=status == TOO_LARGE,
        slow_probe=outcome is Outcome.UNAUTHORISED or (outcome is Outcome.RETRY_LATER and not_odp(status)),
        seconds=seconds,
        text=text[:EXCERPT],
        json=body,
    )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
