"""An OpenTelemetry collector on loopback, which decodes the spans that it is sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Seen:
    """A span, with its ids in hexadecimal. Links are the ids of the spans that it links to."""

    def __init__(self, span: Any) -> None:
        self.name: str = span.name
        self.trace: str = span.trace_id.hex()
        self.id: str = span.span_id.hex()
        self.parent: str = span.parent_span_id.hex()
        self.links = {(link.trace_id.hex(), link.span_id.hex()) for link in span.links}
        self.attributes = {one.key: one.value.string_value or one.value.int_value for one in span.attributes}
        self.failed: bool = span.status.code == 2
        self.words: str = span.status.message
        self.start: int = span.start_time_unix_nano
        self.end: int = span.end_time_unix_nano


class Collector:
    """``answers`` is cleared to make it accept requests and answer none of them."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.services: set[str] = set()
        self.bytes = b""
        self.has_asked, self.answers = Event(), Event()
        self.answers.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                collector.has_asked.set()
                collector.answers.wait()
                if self.path == "/v1/traces":
                    collector.take(content)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, content: bytes) -> None:
        self.bytes += content
        for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
            self.services |= {
                one.value.string_value for one in resource.resource.attributes if one.key == "service.name"
            }
            self.spans += [Seen(span) for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Seen]:
        return [span for span in self.spans if span.name == name]


@contextmanager
def running() -> Iterator[Collector]:
    collector = Collector()
    thread = Thread(target=collector.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield collector
    finally:
        collector.answers.set()
        collector.server.shutdown()
        thread.join()
        collector.server.server_close()
