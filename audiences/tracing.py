"""Traces of calls, from Lytics to ODP's answer, for an OpenTelemetry collector (docs/tracing.md). Off by default.

The ids of a call's trace are derived from its Receipt. So a worker finds the trace of an event, although nothing is
stored for it. OpenTelemetry is an optional package: ``span_export`` imports it, and is loaded when tracing is on.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import structlog
from django.conf import settings

if TYPE_CHECKING:
    from audiences.span_export import SpanExport

log = structlog.get_logger(__name__)

# The most seconds that an ending process waits for the export of its last spans.
STOP_SECONDS = 2.0


class Context(NamedTuple):
    """The ids of a span, by which other spans refer to it."""

    trace_id: int
    span_id: int
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """The header of the W3C's Trace Context."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"


def of_receipt(public_id: str, receipt: int) -> Context:
    """The span that stores a call, by the public id of the install and the id of the call's Receipt."""
    digest = blake2b(f"{public_id}/{receipt}".encode(), digest_size=24).digest()
    return Context(int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:], "big"))


def clock() -> Callable[[float], int]:
    """A function that gives a moment of ``time.monotonic`` as nanoseconds since the epoch.

    Spans that are recorded together share one: between two looks at the clocks a thread can lose the processor, and a
    span would begin before its parent.
    """
    start_ns = time.time_ns() - time.monotonic_ns()
    return lambda moment: start_ns + round(moment * 1e9)


_lock = threading.Lock()
_export: "SpanExport | None" = None
_has_failed = False


def is_on() -> bool:
    return settings.OTEL_TRACES_EXPORTER == "otlp" and not _has_failed


def export() -> "SpanExport":
    """The export of this process. It is created at the first use, because a forked process needs its own."""
    global _export
    with _lock:
        if _export is None:
            from audiences import span_export

            _export = span_export.SpanExport()
    return _export


@contextmanager
def harmless() -> Iterator[None]:
    """Keep errors of tracing from calls and deliveries. The first error is logged, and ends tracing in this process."""
    global _has_failed
    try:
        yield
    except Exception:
        log.exception("tracing failed, and is off until this process starts again")
        _has_failed = True


def stop() -> None:
    """Send the last spans, for ``STOP_SECONDS`` at most."""
    if _export is not None:
        _export.stop(STOP_SECONDS)
