"""The answer to a request that gunicorn can't parse: 503, because Lytics drops a batch for good on a 400.

gunicorn itself would answer 400, 403, 414, 417, 431, 500 or 501. The front page counts these requests and shows the
problem of the newest, because a person has to correct the sender.
"""

import json
import time
import uuid

import structlog
from django.conf import settings
from gunicorn.http import errors
from structlog.contextvars import bound_contextvars

from audiences.receiving import rejected_calls
from lytics_sync.request_id import HEADER

log = structlog.get_logger(__name__)

_FAULTS: dict[type[Exception], str] = {
    errors.InvalidHTTPVersion: "a blank in its URL, or an unknown HTTP version",
    errors.InvalidRequestMethod: "a method that is no word",
    errors.LimitRequestLine: "a URL longer than 4,094 bytes",
    errors.InvalidRequestLine: "a first line that is not one of HTTP",
    errors.LimitRequestHeaders: "too many headers, or one longer than 8,190 bytes",
    errors.ObsoleteFolding: "a header that continues in a second line",
    errors.InvalidHeaderName: "a header name with a character that may not be in it",
    errors.InvalidHeader: "a header with a character that may not be in it, or two that contradict each other",
    errors.UnsupportedTransferCoding: "a transfer coding other than chunked",
    errors.ExpectationFailed: "an Expect header other than 100-continue",
    errors.InvalidSchemeHeaders: "proxy headers that contradict each other",
    errors.InvalidChunkSize: "a chunk without its length",
    errors.ChunkMissingTerminator: "a chunk longer than it says",
    errors.ParseException: "a part that is not HTTP",
}
# Seconds between two log lines about the same fault: anybody can send such requests, and many.
_LOG_EVERY = 60.0
_logged_at: dict[str, float] = {}


def answer(error: Exception, source: str | None) -> bytes:
    """Count the request and return the whole response to it."""
    request_id = uuid.uuid4().hex
    fault = next((words for kind, words in _FAULTS.items() if isinstance(error, kind)), "")
    with bound_contextvars(request_id=request_id):
        _log(error, fault, source)
        rejected_calls.note(
            rejected_calls.UNREADABLE, source, what=fault or f"a fault of the server ({type(error).__name__})"
        )
    body = json.dumps({"detail": f"The request could not be read: {fault or 'the server failed'}."})
    headers = {
        "Connection": "close",
        "Retry-After": settings.RETRY_AFTER_SECONDS,
        HEADER: request_id,
        "Content-Type": "application/json",
        "Content-Length": len(body),
    }
    lines = ["HTTP/1.1 503 Service Unavailable", *(f"{name}: {value}" for name, value in headers.items()), "", body]
    return "\r\n".join(lines).encode()


def _log(error: Exception, fault: str, source: str | None) -> None:
    if not fault:
        log.error("a request failed in the server", source=source, exc_info=error)
        return
    moment = time.monotonic()
    if moment - _logged_at.get(fault, -_LOG_EVERY) >= _LOG_EVERY:
        _logged_at[fault] = moment
        log.warning("a request could not be read", fault=fault, source=source)
