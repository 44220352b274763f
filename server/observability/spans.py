"""Which requests' spans are told to an OpenTelemetry collector: those that the ratio or their callers choose, and all
that are slow or fail.

Whether a request was slow is known at its end, so every one is watched and few are told of. A span is made whole, when
it is over: none is ever open.
"""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from server.errors import InvalidRequest
from server.observability.trace_context import TraceContext, context_of, new_span_id, new_trace_id
from server.observability.way import Way
from server.types import Metadata

if TYPE_CHECKING:
    from server.settings import OtlpSettings

_LAST_S = 5.0
"""For what is left to be sent when the server ends."""


class Watched(NamedTuple):
    """A request that is under way."""

    caller: TraceContext | None
    own: TraceContext
    """Its span."""
    compute_id: int
    """The span of its pass, which another server's spans may be below."""

    @property
    def onward(self) -> TraceContext:
        """What a server is told that is asked on its behalf."""
        return self.own._replace(span_id=self.compute_id)


def _begun(*, sampled: bool) -> Watched:
    return Watched(None, TraceContext(new_trace_id(), new_span_id(), sampled), new_span_id())


_UNTOLD = Watched(None, TraceContext(0, 0, sampled=False), 0)
"""Most requests, as long as they are neither slow nor fail."""


class Spans:
    """Of one process. All methods run on the event loop, but for `close`."""

    def __init__(self, settings: OtlpSettings, exporter: Any = None) -> None:
        """`exporter`: instead of that to the endpoint.

        Raises:
            InvalidRequest: the package that exports is not installed, or the endpoint is no address.
        """
        try:
            from server.observability.otel import Teller
        except ImportError as error:
            problem = "needs packages that are not installed: install forwardpass[tracing]"
            raise InvalidRequest("--otlp-endpoint", problem) from error
        self._ratio = settings.ratio
        self._slow_ns = int(settings.slow_ms * 1e6)
        self._teller = Teller(settings, exporter)

    def begin(self, metadata: Metadata, *, passes_on: bool = False) -> Watched:
        """Of a request that has just come, whose caller's `metadata` may have its span. `passes_on`: another server is
        told of it."""
        caller = context_of(metadata) if metadata else None
        if caller is not None:
            return Watched(caller, caller._replace(span_id=new_span_id()), new_span_id())
        sampled = random.random() < self._ratio
        return _begun(sampled=sampled) if sampled or passes_on else _UNTOLD

    def wanted(self, watched: Watched, duration_ns: int, *, failed: bool) -> bool:
        """Whether the spans of a request that is over are told."""
        return watched.own.sampled or failed or 0 < self._slow_ns <= duration_ns

    def tell(self, watched: Watched, way: Way) -> None:
        """Of a request that is `wanted`: handed to the exporter's thread. Where that is behind, they are lost."""
        self._teller.tell(watched, way)

    @staticmethod
    def named(watched: Watched) -> Watched:
        """With ids: one that nobody has chosen gets them when it turns out to be told."""
        return _begun(sampled=False) if watched is _UNTOLD else watched

    def close(self) -> None:
        """Send what is left, for some seconds at most; it blocks."""
        # A daemon: a collector that does not answer keeps no process from ending.
        last = threading.Thread(target=self._teller.close, name="spans", daemon=True)
        last.start()
        last.join(_LAST_S)
