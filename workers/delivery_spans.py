"""The spans of a delivery: one in the trace of each call whose events it settles, and one for each request to ODP.

The requests are in the trace of the first call. The delivery's span in that trace links to the other calls, and its
spans in their traces link to it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple
from urllib.parse import urlsplit

from audiences import tracing
from audiences.delivery import reading
from audiences.delivery.leases import Lease
from audiences.span_export import Kind, SpanExport
from audiences.tracing import Context
from odp.outcomes import Answer, Outcome

# The error of a span after an exception, whose own message may quote a customer.
UNEXPECTED = "Not delivered; the log of the worker says more."
# The most calls whose traces get a span of one delivery.
MOST_CALLS = 64


class _Request(NamedTuple):
    context: Context
    host: str
    path: str
    delivery_id: int
    answer: Answer
    began: float
    ended: float


class DeliverySpans:
    """Collects the requests of one delivery, and records its spans at the end."""

    def __init__(self, lease: Lease, receipts: Sequence[int], export: SpanExport) -> None:
        self._lease, self._export = lease, export
        self._began = time.monotonic()
        stored = (tracing.of_receipt(lease.install.public_id, receipt) for receipt in receipts)
        self._calls = list(islice(filter(export.is_sampled, stored), MOST_CALLS))
        self._all_calls = len(receipts)
        self._deliveries = [export.new(call.trace_id) for call in self._calls]
        self._requests: list[_Request] = []

    def start_request(self) -> Context | None:
        """The span of the next request, or None when no trace is recorded."""
        return self._export.new(self._deliveries[0].trace_id) if self._deliveries else None

    def end_request(self, context: Context, host: str, path: str, delivery_id: int, answer: Answer) -> None:
        """Add a request. Its span begins with the first byte, so it doesn't include waiting for the rate limit."""
        ended = time.monotonic()
        self._requests.append(_Request(context, host, path, delivery_id, answer, ended - answer.seconds, ended))

    def record(self, error: str | None) -> None:
        """Record all spans. ``error`` is None unless the delivery raised; then the last request's outcome counts."""
        nanoseconds = tracing.clock()
        for request in self._requests:
            self._record_request(request, nanoseconds)
        if error is None and self._requests and self._requests[-1].answer.outcome is not Outcome.DELIVERED:
            error = self._requests[-1].answer.outcome.value
        end = nanoseconds(time.monotonic())
        for place, (call, delivery) in enumerate(zip(self._calls, self._deliveries, strict=True)):
            self._export.record(
                "deliver",
                delivery,
                start=nanoseconds(self._began),
                end=end,
                parent=call,
                kind=Kind.CONSUMER,
                links=self._deliveries[:1] if place else self._calls[1:],
                attributes={
                    "lytics_sync.install": self._lease.install.public_id,
                    "lytics_sync.audiences": len(self._lease.spans),
                    "lytics_sync.events": sum(span.last - span.first + 1 for span in self._lease.spans),
                    "lytics_sync.calls": self._all_calls,
                    "lytics_sync.requests": len(self._requests),
                },
                error=error,
            )

    def _record_request(self, request: _Request, nanoseconds: Callable[[float], int]) -> None:
        answer = request.answer
        attributes: dict[str, str | int] = {
            "http.request.method": "POST",
            "server.address": urlsplit(request.host).hostname or "",
            "url.path": request.path,
            "lytics_sync.install": self._lease.install.public_id,
            "lytics_sync.delivery": request.delivery_id,
            "lytics_sync.outcome": answer.outcome.value,
        }
        if answer.status is not None:
            attributes["http.response.status_code"] = answer.status
        self._export.record(
            f"POST {request.path}",
            request.context,
            start=nanoseconds(request.began),
            end=nanoseconds(request.ended),
            parent=self._deliveries[0],
            kind=Kind.CLIENT,
            attributes=attributes,
            # A reason from ODP may quote customers, so it is left out. Without a response, the reason is our own text.
            error=None if answer.outcome is Outcome.DELIVERED else "" if answer.status else answer.reason,
        )


@contextmanager
def recording(lease: Lease) -> Iterator[DeliverySpans | None]:
    """Record the delivery of a lease, whether it succeeds or raises."""
    spans = None
    receipts = reading.receipts(lease)
    with tracing.harmless():
        spans = DeliverySpans(lease, receipts, tracing.export())
    error = None
    try:
        yield spans
    except BaseException:
        error = UNEXPECTED
        raise
    finally:
        if spans is not None:
            with tracing.harmless():
                spans.record(error)
