"""The spans of a webhook call: the call itself, and the storing of its events, which is the parent of deliveries.

A caller that sends ``traceparent`` gets the span of the call in its own trace. Storing then begins a trace of its own,
because its trace id is derived from the Receipt, and the two spans link to each other.
"""

import time
from collections.abc import Mapping
from typing import NamedTuple

from audiences import tracing
from audiences.receiving.call_values import Received

ROUTE = "/webhooks/lytics/{public_id}"


class Storing(NamedTuple):
    """The stored call, and the times (``time.monotonic``) at which storing began and ended."""

    received: Received
    began: float
    ended: float


def record(
    *, method: str, headers: Mapping[str, str], public_id: str, status: int, began: float, storing: Storing | None
) -> None:
    """Record the spans of an answered call. ``began`` is a time of ``time.monotonic``."""
    from audiences.span_export import Kind

    export, nanoseconds = tracing.export(), tracing.clock()
    caller = export.of_caller(headers)
    receipt = storing and storing.received.receipt
    stored = tracing.of_receipt(public_id, receipt) if receipt else None
    of_install: dict[str, str | int] = {"lytics_sync.install": public_id}
    about_call = of_install if not receipt else {**of_install, "lytics_sync.receipt": receipt}
    trace_of_call = caller or stored
    call = export.record(
        f"{method} {ROUTE}",
        export.new(trace_of_call and trace_of_call.trace_id),
        start=nanoseconds(began),
        end=nanoseconds(time.monotonic()),
        parent=caller,
        kind=Kind.SERVER,
        links=[stored] if caller and stored else [],
        attributes={
            **about_call,
            "http.request.method": method,
            "http.route": ROUTE,
            "http.response.status_code": status,
        },
        error=str(status) if status >= 500 else None,
    )
    if storing and stored and (caller or call.sampled):
        export.record(
            "store call",
            stored,
            start=nanoseconds(storing.began),
            end=nanoseconds(storing.ended),
            parent=None if caller else call,
            links=[call] if caller else [],
            attributes={
                **about_call,
                "lytics_sync.events": storing.received.queued,
                "lytics_sync.parked": storing.received.parked,
            },
        )
