"""Names of headers, in lower case, whose values differ from call to call: who traces a call, and which call it is."""

from __future__ import annotations

VARYING = frozenset(
    (
        *(b"x-request-id", b"x-correlation-id", b"traceparent", b"tracestate", b"baggage", b"grpc-trace-bin", b"b3"),
        *(b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid", b"x-amzn-trace-id", b"x-cloud-trace-context"),
        *(b"x-datadog-trace-id", b"x-datadog-parent-id", b"uber-trace-id", b"sentry-trace"),
    )
)
