"""The webhook that Lytics calls.

It answers 200 when all of a call is committed, 401 without a valid token (429 after too many of those), 405 to other
methods, and otherwise 503 with ``Retry-After``. Never 400, 404 or 413: Lytics drops the whole batch for good on those.
"""

import random
import time
from collections.abc import Iterable
from typing import Any, cast

import msgspec
import structlog
from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.db import DatabaseError, InterfaceError, InternalError, NotSupportedError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.request import UnreadablePostError
from django.http.response import HttpResponseBase
from django.views import defaults
from rest_framework.exceptions import AuthenticationFailed, MethodNotAllowed, Throttled
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from audiences import address, sessions, tallies, tracing
from audiences.models import Install
from audiences.receiving import (
    body,
    call_spans,
    checked_calls,
    ingest,
    invalid_tokens,
    reasons_to_wait,
    rejected_calls,
    tokens,
)
from audiences.receiving.authentication import Caller, TokenAuthentication
from audiences.receiving.call_values import Received
from audiences.receiving.group_commit import GroupLockedError

log = structlog.get_logger(__name__)


def come_back_later(detail: str, *, soon: bool = False) -> Response:
    """A 503 with Retry-After: Lytics waits, counts no error and sends the same call again.

    ``soon`` is for causes that end within seconds; the wait is then short and random, so that twenty callers don't
    return together.
    """
    seconds = random.randint(1, max(1, settings.RETRY_SOON_SECONDS)) if soon else settings.RETRY_AFTER_SECONDS  # noqa: S311
    return Response({"detail": detail}, status=503, headers={"Retry-After": str(seconds)})


_DISK_FULL = "53100"


def _is_temporary(error: Exception) -> bool:
    """A restart or failover of PostgreSQL, a deadlock, a lock timeout, no free connection, a call that broke off.

    A full disk and an error of this service last until a person acts.
    """
    if isinstance(error, (UnreadablePostError, InterfaceError)):
        return True
    if isinstance(error, (OperationalError, InternalError, NotSupportedError)):
        return getattr(error.__cause__, "sqlstate", None) != _DISK_FULL
    cause = error.__cause__
    return isinstance(cause, Exception) and not isinstance(error, DatabaseError) and _is_temporary(cause)


# When this process last rejected calls of an install with 503, per install and reason.
_rejected_at: dict[tuple[int, str], float] = {}
# After this many seconds without a 503 the outage has ended; the next 503 begins another, which is logged again.
OUTAGE_ENDS_SECONDS = 300.0


def answer_outage(install: Install, detail: str, *, soon: bool = False) -> Response:
    """An outage: many calls of an install get 503. Its beginning is logged once, not each response."""
    key, at = (install.pk, detail), time.monotonic()
    if at - _rejected_at.get(key, -OUTAGE_ENDS_SECONDS) >= OUTAGE_ENDS_SECONDS:
        log.warning("calls are answered 503", install=install.name, reason=detail)
    _rejected_at[key] = at
    return come_back_later(detail, soon=soon)


LOCKED = "Another transaction locks an audience of this call."


def _receive(caller: Caller, content: bytes, *, source: str | None, encoding: str) -> Received | None:
    """Store the call; None when the install was switched off. A remembered caller is looked up if need be."""
    received: Received | None = None
    is_locked = False
    if caller.is_remembered:
        try:
            received = ingest.receive_unchecked(
                caller.install, content, token_id=caller.token.pk, source=source, encoding=encoding
            )
        except GroupLockedError:
            is_locked = True
        if received is None and not caller.look_up().enabled:
            return None
    if received is None:
        received = ingest.receive(caller.install, content, source=source, encoding=encoding, alone=is_locked)
        # Only plain calls can be stored for a remembered caller; those with flaws would be read twice.
        if received.parked or caller.install.forget_missing_identifiers:
            caller.forget()
        else:
            caller.remember()
    return received


def _stored(received: Received) -> HttpResponse:
    """The 200. DRF's Response would take 5 % of the CPU of a call, and there is nothing to negotiate here."""
    content = {
        "received": received.received,
        "queued": received.queued,
        "parked": received.parked,
        "skipped": received.skipped,
        "parked_reasons": received.parked_reasons,
    }
    headers = {"X-Receipt": str(received.receipt)}
    return HttpResponse(msgspec.json.encode(content), content_type="application/json", headers=headers)


def _unread(request: Request, install: Install, error: Exception) -> Response:
    source = address.of(request)
    if isinstance(error, body.TooLargeError):
        rejected_calls.note_not_stored(install.public_id, source, cause=rejected_calls.TOO_LARGE)
        log.error("call over the body limit", install=install.name, limit=settings.WEBHOOK_BODY_LIMIT)
        return come_back_later(f"The body is larger than {settings.WEBHOOK_BODY_LIMIT} bytes.")
    if isinstance(error, body.TooSlowError):
        rejected_calls.note_not_stored(install.public_id, source, cause=rejected_calls.TOO_SLOW)
        log.warning("call too slow", install=install.name, seconds=settings.WEBHOOK_READ_SECONDS)
        too_slow = f"The body took longer than {settings.WEBHOOK_READ_SECONDS:g} seconds to come."
        return come_back_later(too_slow, soon=True)
    log.warning("call could not be read", install=install.name, reason=str(error))
    rejected_calls.note(rejected_calls.UNREADABLE, source, what="a body with invalid chunks")
    return come_back_later("The body could not be read.")


class JSONOnly(BaseContentNegotiation):
    """Respond in JSON, whatever the caller accepts: with a 406 the call could be lost."""

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        renderer = next(iter(renderers))
        return renderer, renderer.media_type


class _AnsweringView(APIView):
    """A view that responds to each request, also to one whose body can't be read."""

    content_negotiation_class = JSONOnly
    # The label of the metrics, once the caller is known.
    install_label = tallies.UNKNOWN
    # The stored call, for its trace.
    storing: call_spans.Storing | None = None

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        began = time.monotonic()
        response = super().dispatch(request, *args, **kwargs)
        tallies.WEBHOOK_REQUESTS.add(self.install_label, str(response.status_code))
        tallies.WEBHOOK_SECONDS.observe(time.monotonic() - began, self.install_label)
        # Calls without a valid token have no span: a flood of them must stay cheap.
        if tracing.is_on() and self.install_label != tallies.UNKNOWN:
            with tracing.harmless():
                call_spans.record(
                    method=request.method or "",
                    headers=request.headers,
                    public_id=self.install_label,
                    status=response.status_code,
                    began=began,
                    storing=self.storing,
                )
        return response

    def finalize_response(self, request: Request, response: HttpResponseBase, *args: Any, **kwargs: Any) -> Response:
        if response.status_code == 429:
            # The body isn't read, and no line is logged: a flood of such calls must stay cheap.
            response._has_been_logged = True  # type: ignore[attr-defined] # Django's own flag
        elif response.status_code != 200:
            body.discard(request)
        return super().finalize_response(request, cast(Response, response), *args, **kwargs)


class WebhookView(_AnsweringView):
    """``POST /webhooks/lytics/<install public id>``. PUT and PATCH do the same, because a Lytics job can use them."""

    authentication_classes = [TokenAuthentication]
    http_method_names = ["post", "put", "patch"]

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        # Before the token is checked: a job left on GET must show as 405 and must never look received.
        if (request.method or "").lower() not in self.http_method_names:
            what = f"{request.method} {request.path_info[:100]}"
            rejected_calls.note(rejected_calls.WRONG_METHOD, address.of(request), what=what)
            raise MethodNotAllowed(request.method or "")
        super().initial(request, *args, **kwargs)

    def post(self, request: Request, public_id: str) -> HttpResponse:
        caller = cast(Caller, request.auth)
        self.install_label = caller.install.public_id
        if reason := reasons_to_wait.of(caller.install):
            return answer_outage(caller.look_up(), reason)
        try:
            content, encoding = body.read(request)
        except (body.TooLargeError, body.TooSlowError, body.MalformedError) as error:
            caller.look_up()
            return _unread(request, caller.install, error)
        if checked := checked_calls.answer(content, query=request.META.get("QUERY_STRING", "")):
            caller.look_up()
            return Response(checked)
        tallies.WEBHOOK_BYTES.add(self.install_label, amount=len(content))
        source = address.of(request)
        # A caller whose body always takes longer than the limit would retry for ever.
        began = time.monotonic()
        try:
            with sessions.allow_more(len(content) / 1_000_000):
                received = sessions.store(lambda: _receive(caller, content, source=source, encoding=encoding))
        except OperationalError as error:
            if sessions.state_of(error) != sessions.LOCK_TIMEOUT:
                raise
            rejected_calls.note_not_stored(caller.install.public_id, source, cause=rejected_calls.LOCKED)
            return answer_outage(caller.install, LOCKED, soon=True)
        if received is None:
            return answer_outage(caller.install, reasons_to_wait.SWITCHED_OFF)
        self.storing = call_spans.Storing(received, began, time.monotonic())
        tokens.note_use(caller.token, source=source)
        log.info("call stored", install=caller.install.name, receipt=received.receipt, events=received.queued)
        return _stored(received)

    put = post
    patch = post

    def handle_exception(self, exc: Exception) -> Response:
        """Answer 503 for any other exception, so that Lytics sends the batch again instead of dropping it."""
        if isinstance(exc, (AuthenticationFailed, MethodNotAllowed, Throttled)):
            return super().handle_exception(exc)
        if isinstance(exc, UnreadablePostError):
            log.info("a call broke off in the middle of its body", reason=str(exc))
        else:
            log.exception("call not stored", error=type(exc).__name__)
        is_temporary = _is_temporary(exc)
        if not is_temporary and self.install_label != tallies.UNKNOWN:
            source = address.of(self.request)
            rejected_calls.note_not_stored(self.install_label, source, cause=rejected_calls.FAILED)
        return come_back_later("The call could not be stored.", soon=is_temporary)


class UnknownWebhookView(_AnsweringView):
    """Writing requests to any other URL: 401, as for an unknown install, because Lytics never retries after 404."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        raise invalid_tokens.refusal(request, None, words="There is no webhook at this URL.")

    def get_authenticate_header(self, request: Request) -> str:
        return "Bearer"


def is_for_lytics(request: HttpRequest) -> bool:
    """Whether the caller may be Lytics: outside the admin, each writing request and each path with "webhook" in it.

    A job whose URL is off by a letter must not be answered 404, nor be led to a login page that answers 200.
    """
    path = request.path_info
    if path.startswith("/admin/"):
        return False
    return request.method not in ("GET", "HEAD", "OPTIONS") or "webhook" in path.lower()


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    """Answer 503 where Django would answer 400, such as for an unknown Host: Lytics never retries a 400."""
    if not is_for_lytics(request):
        return defaults.bad_request(request, exception)
    words = "The request could not be read."
    if isinstance(exception, DisallowedHost):
        words = "This service is not set up for this host name."
    rejected_calls.note(rejected_calls.UNREADABLE, address.of(request), what=_reason_of(request, exception))
    response = JsonResponse({"detail": words}, status=503, headers={"Retry-After": str(settings.RETRY_AFTER_SECONDS)})
    response.headers["Content-Length"] = str(len(response.content))  # else the web server would send it in chunks
    return response


def _reason_of(request: HttpRequest, exception: Exception) -> str:
    if not isinstance(exception, DisallowedHost):
        return "a request that is refused before it is read, such as one with a bad header or cookie"
    host = request.META.get("HTTP_HOST") or request.META.get("SERVER_NAME", "")
    return f"the host name {host[:100]!a}, which ALLOWED_HOSTS lacks"
