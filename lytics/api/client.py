"""HTTP client for Lytics' API: each request gives one ``Answer``. It never retries, and never raises for a response."""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import requests
import urllib3

from lytics.api.outcomes import Answer, Outcome, answer_to
from outgoing.deadline import SPARE_SECONDS, DeadlineAdapter, TooLateError, deadline
from outgoing.network_errors import words_for

log = logging.getLogger(__name__)

# Documented. The vendor's pages name no separate hosts for regions.
DEFAULT_URL = "https://api.lytics.io"
DEFAULT_SECONDS = 30.0
CONNECT_SECONDS = 5.0
# The most bytes read of a response. A page of 100 members has 20 KB with two fields, and up to 100 MB with all.
ANSWER_BYTES = 16_000_000
USER_AGENT = "lytics-sync/0.1"
OUT_OF_TIME = "Lytics sent no complete response in time"
NO_CONNECTION = "No connection to Lytics could be opened in time"
TOO_LARGE = f"the response is larger than {ANSWER_BYTES // 1_000_000} MB. Ask for fewer fields"
UNUSABLE = "The Lytics API token is empty, or has characters that a token can't have"

# The trusted certificate authorities: True for the default ones, or the path of a file.
TRUSTED: bool | str = True
# The rate limiter of the caller: called right before a request's first byte, it returns when the request may start.
Permission = Callable[[], None]
Query = Mapping[str, str]

_thread = threading.local()


class Digits(float):
    """A number with a fraction or an exponent that keeps its digits, because it may be an identifier."""

    text: str

    def __new__(cls, text: str) -> "Digits":
        number = super().__new__(cls, text)
        number.text = text
        return number


class Client:
    """One Lytics account, by its API token.

    The token is sent in the ``Authorization`` header without ``Bearer`` (documented), and never in a URL: Lytics also
    accepts it there, and URLs are logged. ``account_id`` chooses among the accounts of a token (documented, optional).
    """

    def __init__(
        self,
        *,
        token: str,
        url: str = DEFAULT_URL,
        account_id: str = "",
        seconds: float = DEFAULT_SECONDS,
        ends_at: float = float("inf"),
        permission: Permission | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.account_id = account_id
        self.seconds = seconds
        self.ends_at = ends_at
        self.permission = permission
        self._token = token.strip()

    def get(self, *path: str, query: Query | None = None, hidden: Sequence[str] = ()) -> Answer:
        return self._call("GET", path, query=query or {}, hidden=hidden)

    def post(self, *path: str, query: Query | None = None, content: Any = None, hidden: Sequence[str] = ()) -> Answer:
        return self._call("POST", path, query=query or {}, content=content, hidden=hidden)

    def put(self, *path: str, content: Any) -> Answer:
        return self._call("PUT", path, query={}, content=content)

    def _call(
        self, method: str, path: Sequence[str], *, query: Query, content: Any = None, hidden: Sequence[str] = ()
    ) -> Answer:
        if not (self._token and self._token.isascii() and self._token.isprintable()):
            return Answer(Outcome.UNAUTHORISED, UNUSABLE, sent=False)
        if (target := _target(path)) is None:
            return Answer(Outcome.REJECTED, "An empty or unreadable id can't be asked for", sent=False)
        query = {**query, **({"account_id": self.account_id} if self.account_id else {})}
        url = f"{self.url}/{target}" + (f"?{urlencode(query)}" if query else "")
        body = None if content is None else json.dumps(content).encode()
        hidden = (self._token, *hidden, *(quote(value, safe="") for value in hidden))
        return self._send(method, url, body, may_be_empty=method != "GET", hidden=hidden)

    def _send(self, method: str, url: str, body: bytes | None, *, may_be_empty: bool, hidden: Sequence[str]) -> Answer:
        started = time.monotonic()
        seconds = min(self.seconds, self.ends_at - started)
        if seconds <= 0:
            return Answer(Outcome.RETRY_LATER, OUT_OF_TIME, sent=False)
        with deadline(seconds=seconds, ends_at=self.ends_at, permission=self.permission) as limit:
            try:
                with _adapter().send(
                    requests.Request(method, url, headers=self._headers(body), data=body).prepare(),
                    timeout=(min(CONNECT_SECONDS, seconds), seconds + SPARE_SECONDS),
                    verify=TRUSTED,
                    stream=True,
                ) as response:
                    content = _content(response)
            except Exception as error:  # noqa: BLE001 — every response of a server becomes an Answer
                if limit.permission_error is not None:
                    raise limit.permission_error from limit.permission_error.__cause__
                if not limit.passed and not isinstance(error, TooLateError):
                    return _no_answer(error, was_sent=limit.began_at is not None, seconds=time.monotonic() - started)
                content = b""
        elapsed = time.monotonic() - (limit.began_at or started)
        if limit.passed or limit.began_at is None:
            reason = NO_CONNECTION if limit.began_at is None else OUT_OF_TIME
            return Answer(Outcome.RETRY_LATER, reason, sent=limit.began_at is not None, seconds=elapsed)
        if len(content) > ANSWER_BYTES:
            return Answer(
                Outcome.REJECTED, f"{response.status_code}: {TOO_LARGE}", response.status_code, seconds=elapsed
            )
        text = content.decode("utf-8-sig", errors="replace")
        return answer_to(
            response.status_code,
            _json(text),
            text=text,
            headers=response.headers,
            may_be_empty=may_be_empty,
            hidden=hidden,
            seconds=elapsed,
        )

    def _headers(self, body: bytes | None) -> dict[str, str]:
        ours = {"Authorization": self._token, "User-Agent": USER_AGENT, "Accept": "application/json"}
        ours |= {"Accept-Encoding": "gzip, deflate", "Connection": "keep-alive"}
        return ours if body is None else {**ours, "Content-Type": "application/json"}


def _adapter() -> DeadlineAdapter:
    """One pool of kept-alive connections per thread. ``odp.client`` says why it isn't a ``requests.Session``."""
    adapter: DeadlineAdapter | None = getattr(_thread, "adapter", None)
    if adapter is None:
        adapter = _thread.adapter = DeadlineAdapter(pool_connections=4, pool_maxsize=1)
    return adapter


def _target(path: Sequence[str]) -> str | None:
    """The path of a URL; None when a part isn't valid in a path. An empty id would request the whole list instead."""
    if not all(part.strip() and part.strip(".") for part in path):
        return None
    try:
        return "/".join(quote(part, safe="") for part in path)
    except UnicodeEncodeError:  # half an emoji
        return None


def _content(response: requests.Response) -> bytes:
    """The body, cut one byte above ``ANSWER_BYTES``; empty when its Content-Encoding is wrong."""
    try:
        content: bytes = response.raw.read(ANSWER_BYTES + 1, decode_content=True)
    except urllib3.exceptions.DecodeError:
        return b""
    return content


def _no_answer(error: Exception, *, was_sent: bool, seconds: float) -> Answer:
    if not isinstance(error, (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)):
        # Only its name: the text of an unknown exception can quote the URL, which names a person.
        log.error("unexpected %s in a request to Lytics", type(error).__name__)
    reason = words_for(error, server="Lytics", address="LYTICS_API_URL")
    return Answer(Outcome.RETRY_LATER, reason, sent=was_sent, seconds=seconds)


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_float=Digits)
    except (ValueError, RecursionError):
        return None
