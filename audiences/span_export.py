"""Spans for a collector: the one module that imports OpenTelemetry. Importing it fails without the optional packages.

The SDK reads the environment variables whose names begin with OTEL_. Spans wait in a bounded queue for a thread of the
SDK; when the queue is full, they are dropped. So a collector that is slow or unreachable delays nothing.
"""

import threading
from collections.abc import Iterable, Mapping

from django.conf import settings
from opentelemetry import trace
from opentelemetry.context import Context as Surroundings
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from audiences.tracing import Context

Kind = SpanKind
Attributes = Mapping[str, str | int | bool]

_DEFAULT_NAME = "lytics-sync"


class _Ids(RandomIdGenerator):
    """Gives the next span of this thread the ids that were chosen for it."""

    def __init__(self) -> None:
        self._thread = threading.local()

    def choose(self, context: Context) -> None:
        self._thread.chosen = context

    def generate_trace_id(self) -> int:
        chosen: Context = self._thread.chosen
        return chosen.trace_id

    def generate_span_id(self) -> int:
        chosen: Context = self._thread.chosen
        return chosen.span_id

    def is_trace_id_random(self) -> bool:
        return False


def _context(one: Context) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if one.sampled else TraceFlags.DEFAULT)
    return SpanContext(one.trace_id, one.span_id, is_remote=True, trace_flags=flags)


def _below(parent: Context | None) -> Surroundings:
    nothing = Surroundings()
    return nothing if parent is None else trace.set_span_in_context(NonRecordingSpan(_context(parent)), nothing)


class SpanExport:
    """Creates spans that have ended already, and sends them to the collector in the background."""

    def __init__(self) -> None:
        self._ids, self._random = _Ids(), RandomIdGenerator()
        resource = Resource.create({SERVICE_VERSION: settings.VERSION})
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: _DEFAULT_NAME}))
        # Shutting down at exit would wait for the collector without our limit.
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("lytics_sync", settings.VERSION)

    def new(self, trace_id: int | None = None) -> Context:
        """The ids of a span that is recorded later, in the given trace or in a new one."""
        return Context(trace_id or self._random.generate_trace_id(), self._random.generate_span_id())

    def is_sampled(self, context: Context) -> bool:
        """Whether the trace that begins with this span is recorded. All processes decide in the same way."""
        result = self._provider.sampler.should_sample(Surroundings(), context.trace_id, "")
        return result.decision is Decision.RECORD_AND_SAMPLE

    def of_caller(self, headers: Mapping[str, str]) -> Context | None:
        """The span of the caller, if its headers name one."""
        carrier = {"traceparent": headers.get("traceparent", "")}
        found = trace.get_current_span(TraceContextTextMapPropagator().extract(carrier, Surroundings()))
        context = found.get_span_context()
        return Context(context.trace_id, context.span_id, context.trace_flags.sampled) if context.is_valid else None

    def record(
        self,
        name: str,
        context: Context,
        *,
        start: int,
        end: int,
        attributes: Attributes,
        parent: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Iterable[Context] = (),
        error: str | None = None,
    ) -> Context:
        """Queue a span that has ended, with its times in nanoseconds. Returns its context, sampled or not."""
        self._ids.choose(context)
        span = self._tracer.start_span(
            name,
            context=_below(parent),
            kind=kind,
            attributes=attributes,
            links=[Link(_context(one)) for one in links],
            start_time=start,
        )
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(end)
        return context._replace(sampled=span.get_span_context().trace_flags.sampled)

    def stop(self, seconds: float) -> None:
        """Export what waits. The SDK itself may wait for the collector for longer, so it does so in a thread."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(seconds)
