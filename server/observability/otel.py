"""Spans as OpenTelemetry's SDK has them, and the way to the collector. Imported only where they are told.

    infer digits            the request, below its caller's span; a link leads to its batch
    |- decode
    |- queue
    |- compute              a Triton that runs the model has its own spans below this one
    |  |- compute_input, compute_infer, compute_output
    `- encode
    batch digits            a trace of its own: the pass, once for all requests that are told of

Source: OpenTelemetry, "Trace SDK", "OpenTelemetry Protocol".
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from server import __version__
from server.errors import InvalidRequest, ServingError
from server.observability.trace_context import new_span_id
from server.observability.way import Stage, Way

if TYPE_CHECKING:
    from server.observability.spans import Watched
    from server.settings import OtlpSettings

_TIMEOUT_S = 5
_BATCHES = 4096
"""Whose spans were told, to tell each once."""
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class Teller:
    """Makes spans, and has them sent by a thread."""

    def __init__(self, settings: OtlpSettings, exporter: SpanExporter | None = None) -> None:
        """Raises InvalidRequest: the endpoint is no address."""
        self._processor = BatchSpanProcessor(exporter or _exporter(settings.endpoint))
        # What the environment says (OTEL_RESOURCE_ATTRIBUTES) is told as well.
        self._resource = Resource.create({"service.name": settings.service_name, "service.version": __version__})
        self._scope = InstrumentationScope("forwardpass", __version__)
        self._batches: OrderedDict[int, None] = OrderedDict()

    def close(self) -> None:
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def tell(self, watched: Watched, way: Way) -> None:
        # Wall time moves, so the way from one clock to the other is looked for each time.
        shift_ns = time.time_ns() - time.monotonic_ns()
        trace_id, state, caller = watched.own.trace_id, watched.own.state, watched.caller
        root = _context(trace_id, watched.own.span_id, state)
        above = None if caller is None else _context(trace_id, caller.span_id, state, remote=True)
        compute = _context(trace_id, watched.compute_id, state)

        links = self._batch(way, root, shift_ns)
        self._end(
            (f"{way.method} {way.model_name}", way.received_ns, way.ended_ns),
            shift_ns,
            root,
            above,
            _attributes(way),
            links,
            SpanKind.SERVER,
            Status() if way.error is None else Status(StatusCode.ERROR, _told(way.error)),
        )
        for stage in way.stages:
            own = compute if stage[0] == "compute" else _context(trace_id, new_span_id(), state)
            self._end(stage, shift_ns, own, root)
        for stage in way.compute:
            self._end(stage, shift_ns, _context(trace_id, new_span_id(), state), compute)

    def _batch(self, way: Way, root: SpanContext, shift_ns: int) -> Sequence[Link]:
        """The link to the request's batch, whose span is told with the first of its requests."""
        stage = way.stage("compute")
        if stage is None or not way.rows:
            return ()
        batch = _context(*_batch_ids(way, stage))
        if batch.span_id not in self._batches:
            self._batches[batch.span_id] = None
            if len(self._batches) > _BATCHES:
                self._batches.popitem(last=False)
            attributes = {**_model(way), "batch.rows": way.rows}
            named = (f"batch {way.model_name}", *stage[1:])
            self._end(named, shift_ns, batch, attributes=attributes, links=[Link(root)])
        return [Link(batch)]

    def _end(
        self,
        stage: Stage,
        shift_ns: int,
        own: SpanContext,
        parent: SpanContext | None = None,
        attributes: Mapping[str, str | int] | None = None,
        links: Sequence[Link] = (),
        kind: SpanKind = SpanKind.INTERNAL,
        status: Status | None = None,
    ) -> None:
        name, begin_ns, end_ns = stage
        self._processor.on_end(
            ReadableSpan(
                name,
                own,
                parent,
                self._resource,
                attributes or {},
                links=links,
                kind=kind,
                status=status or Status(),
                start_time=begin_ns + shift_ns,
                end_time=end_ns + shift_ns,
                instrumentation_scope=self._scope,
            )
        )


def _context(trace_id: int, span_id: int, state: str = "", *, remote: bool = False) -> SpanContext:
    return SpanContext(trace_id, span_id, remote, _SAMPLED, TraceState.from_header([state]) if state else None)


def _batch_ids(way: Way, compute: Stage) -> tuple[int, int]:
    """Of the pass, the same for all its requests wherever they are told of: it began when no other of its model did."""
    digest = blake2b(f"{way.model_name}/{way.model_version}/{compute[1]}".encode(), digest_size=24).digest()
    return int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:]) or 1


def _model(way: Way) -> dict[str, str | int]:
    return {"model.name": way.model_name, "model.version": way.model_version}


def _attributes(way: Way) -> dict[str, str | int]:
    told = {**_model(way), "code": way.code}
    if way.id:
        told["request.id"] = way.id
    if way.rows:
        told["batch.rows"] = way.rows
    if way.waited:
        told["queue.reason"] = way.waited
    return told


def _told(error: BaseException) -> str:
    """As a client is told it: more is for the log alone."""
    return error.public_message if isinstance(error, ServingError) else "internal error"


def _exporter(endpoint: str) -> Any:
    parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("", "http", "https", "grpc", "grpcs") or not parts.hostname or port is None or parts.path:
        raise InvalidRequest(
            "--otlp-endpoint", "must be HOST:PORT, or that behind grpc://, grpcs://, http://, https://"
        )
    return OTLPSpanExporter(parts.netloc, insecure=parts.scheme not in ("https", "grpcs"), timeout=_TIMEOUT_S)
