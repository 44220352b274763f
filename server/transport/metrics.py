"""The listener of Prometheus: GET /metrics, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

from server.transport.asgi import AsgiApp, Receive, Scope, Send

_CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


def metrics_app(expose: Callable[[], bytes]) -> AsgiApp:
    """An app that answers each scrape with what `expose` gives, in Prometheus' text format."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found = scope["path"] == "/metrics"
        body = expose() if found else b"not found: metrics are at /metrics\n"
        headers = [
            (b"content-type", _CONTENT_TYPE if found else b"text/plain"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200 if found else 404, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app
