"""HTTP to ODP: one request in, one ``Answer`` out. Knows no models, never retries, never raises for what ODP does."""

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import requests
import urllib3

from odp.deadline import SPARE_SECONDS, DeadlineAdapter, TooLateError, deadline
from odp.outcomes import (
    TOO_LARGE,
    Answer,
    Outcome,
    error_words,
    named_items,
    not_odp,
    outcome_of,
    readable,
    retry_after_seconds,
)

CONNECT_SECONDS = 3.0
# Answers of ODP are small; anything longer is somebody else's page.
ANSWER_BYTES = 1_000_000
EXCERPT = 2_000
LIST_SUBSCRIPTIONS = "/v3/lists/subscriptions"
# The parts of an account for which ODP documents a limit of requests per second that we could reach.
_LIMITED = ("profiles", "lists")
USER_AGENT = "lytics-sync/0.1"
OUT_OF_TIME = "ODP gave no whole answer in time"
NO_CONNECTION = "No connection to ODP came up in time"

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


# Asked in the moment before a call's first byte, with its path and the moment after which it may not start.
Permission = Callable[[str, float], None]


def limit_of(path: str) -> str:
    """Which of ODP's documented rate limits a call counts against; empty for none."""
    part = path.removeprefix("/v3/").partition("/")[0]
    return part if part in _LIMITED else ""


class Client:
    """One ODP account. ``host`` is its base URL without ``/v3``; ``api_key`` its private key.

    ``ends_at`` (``time.monotonic``) is one end for all its calls together. ``permission`` returns when a call may go.
    """

    def __init__(
        self, *, host: str, api_key: str, ends_at: float = float("inf"), permission: Permission | None = None
    ) -> None:
        self.host = host
        self.ends_at = ends_at
        self.permission = permission
        self._headers = _headers(api_key)

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        seconds: float,
        start_before: float = float("inf"),
    ) -> Answer:
        """Make one request, over ``seconds`` after its first byte whatever the server does.

        ``start_before`` is the moment of ``time.monotonic`` after which not a byte may be sent; raises
        ``TooLateError`` when it passed before our turn came.
        """
        started = time.monotonic()
        start_before = min(start_before, self.ends_at)
        seconds = min(seconds, self.ends_at - started)
        if seconds <= 0:
            return Answer(Outcome.RETRY_LATER, OUT_OF_TIME)
        if started >= start_before:
            raise TooLateError
        # What doesn't come up while the request may still start is a server that can't be reached.
        connect_seconds = min(CONNECT_SECONDS, seconds, start_before - started)
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        ask = self.permission and partial(self.permission, path, start_before)
        with deadline(seconds=seconds, start_before=start_before, ends_at=self.ends_at, permission=ask) as limit:
            try:
                with _session().send(
                    requests.Request(method, self.host + path, headers=headers, data=body).prepare(),
                    timeout=(connect_seconds, seconds + SPARE_SECONDS),
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    content = response.raw.read(ANSWER_BYTES, decode_content=True)
            except TooLateError:
                if not limit.passed:
                    raise
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                if not limit.passed:
                    return _no_answer(error, seconds=_since(limit.began_at or started))
        taken = _since(limit.began_at or started)
        if limit.passed:
            return Answer(Outcome.RETRY_LATER, OUT_OF_TIME if limit.began_at else NO_CONNECTION, seconds=taken)
        return _answer(path, response, content, seconds=taken)


def _headers(api_key: str) -> dict[str, str]:
    own = {"x-api-key": api_key, "User-Agent": USER_AGENT, "Accept": "application/json"}
    return {**{name: str(value) for name, value in requests.utils.default_headers().items()}, **own}


def headers_of_a_write(api_key: str, *, size: int) -> dict[str, str]:
    """What stands above a body of that size when it goes out, in the names and the order of the wire."""
    return {**_headers(api_key), "Content-Type": "application/json", "Content-Length": str(size)}


def _since(moment: float) -> float:
    return time.monotonic() - moment


def _no_answer(error: Exception, *, seconds: float) -> Answer:
    """ODP may or may not have applied the request; sending it again is harmless, because it is absolute state."""
    return Answer(Outcome.RETRY_LATER, f"ODP could not be reached: {_root(error)}", seconds=seconds)


def _root(error: BaseException) -> str:
    """The innermost cause, in a few words: urllib3 wraps it in several layers and a memory address."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return readable(f"{type(error).__name__}: {error}"[:200])


def _answer(path: str, response: requests.Response, content: bytes, *, seconds: float) -> Answer:
    # JSON is UTF-8, whatever the header says; and a NUL can't be stored.
    text = content.decode(errors="replace").replace("\x00", "")
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
    except (ValueError, RecursionError):
        return None
