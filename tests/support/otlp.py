"""An OpenTelemetry collector that keeps the spans it is sent: OTLP over gRPC, and over HTTP as a Triton sends it."""

from __future__ import annotations

import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc


@dataclass
class Span:
    """As it was sent; ids are in hexadecimal."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    begin_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    """Trace and span."""
    status: int
    status_text: str


@dataclass
class Collector:
    grpc: str = ""
    """HOST:PORT"""
    http: str = ""
    """The URL to post to."""
    spans: list[Span] = field(default_factory=list)
    _more: threading.Condition = field(default_factory=threading.Condition)

    def take(self, request: Any) -> None:
        with self._more:
            for resource in request.resource_spans:
                service = _plain(resource.resource.attributes).get("service.name", "")
                for scope in resource.scope_spans:
                    self.spans += [_span(str(service), span) for span in scope.spans]
            self._more.notify_all()

    def until(self, enough: Callable[[list[Span]], bool], seconds: float = 30) -> list[Span]:
        """What is there once there is `enough`."""
        end = time.monotonic() + seconds
        with self._more:
            while not enough(self.spans):
                assert self._more.wait(end - time.monotonic()), [span.name for span in self.spans]
            return list(self.spans)


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def _span(service: str, span: Any) -> Span:
    return Span(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.kind,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _plain(span.attributes),
        [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        span.status.code,
        span.status.message,
    )


def _with_base64(document: Any) -> Any:
    """Ids are in hexadecimal in OTLP's JSON, and in base64 in protobuf's."""
    if isinstance(document, list):
        return [_with_base64(each) for each in document]
    if not isinstance(document, dict):
        return document
    ids = ("traceId", "trace_id", "spanId", "span_id", "parentSpanId", "parent_span_id")
    return {
        key: b64encode(bytes.fromhex(value)).decode() if key in ids else _with_base64(value)
        for key, value in document.items()
    }


@contextmanager
def collector() -> Iterator[Collector]:
    """On free ports of the loopback."""
    found = Collector()

    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, _context: Any) -> Any:
            found.take(request)
            return pb.ExportTraceServiceResponse()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers["content-type"].startswith("application/json"):
                found.take(ParseDict(_with_base64(json.loads(body)), pb.ExportTraceServiceRequest()))
            else:
                found.take(pb.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nobody wants to read it."""

    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)  # type: ignore[no-untyped-call]
    found.grpc = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.http = f"http://127.0.0.1:{http.server_port}/v1/traces"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server.start()
    try:
        yield found
    finally:
        server.stop(None)
        http.shutdown()
        http.server_close()
