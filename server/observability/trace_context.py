"""The trace that a caller's request belongs to, as it says by `traceparent`.

Source: W3C Trace Context, "traceparent Header", "tracestate Header".
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from server.types import Metadata

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
FORWARDED = (TRACEPARENT, TRACESTATE)
"""What transports must hand on for `context_of` to find something."""

_version_00 = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})").fullmatch
_later = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?").fullmatch
_SAMPLED = 0x01


class TraceContext(NamedTuple):
    """A span of a trace. No id is 0."""

    trace_id: int
    span_id: int
    sampled: bool
    """Whoever began the trace wants its spans."""
    state: str = ""

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"


def context_of(metadata: Metadata) -> TraceContext | None:
    """The caller's span; None: it tells of none, or of one that is none, which the standard has us ignore."""
    values = dict(metadata)
    text = values.get(TRACEPARENT, "")
    match = _version_00(text) or (None if text.startswith("00-") else _later(text))
    if match is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in match.groups())
    if not trace_id or not span_id:
        return None
    return TraceContext(trace_id, span_id, bool(flags & _SAMPLED), values.get(TRACESTATE, ""))


def onward(metadata: Metadata, context: TraceContext) -> Metadata:
    """The metadata with `context` in the place of the caller's, for a server that is asked on its behalf."""
    others = [(name, value) for name, value in metadata if name != TRACEPARENT]
    return (*others, (TRACEPARENT, context.traceparent))


def new_trace_id() -> int:
    return random.getrandbits(128) or 1


def new_span_id() -> int:
    return random.getrandbits(64) or 1
