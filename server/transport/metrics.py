"""What Prometheus asks: GET /metrics, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from server.transport.http1.reply import Reply

if TYPE_CHECKING:
    from server.transport.http1.head import Head
    from server.transport.http1.protocol import Turn

_CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_NOT_FOUND = Reply(404, b"not found: metrics are at /metrics\n", [(b"content-type", b"text/plain")])
_NOT_ALLOWED = Reply(405, b"", [(b"allow", b"GET, HEAD")])


class MetricsApp:
    """Answers each scrape with what `expose` gives, in Prometheus' text format."""

    def __init__(self, expose: Callable[[], bytes]) -> None:
        self._expose = expose

    def plan(self, head: Head) -> None:
        if head.path != b"/metrics":
            head.refusal = _NOT_FOUND
        elif head.method not in ("GET", "HEAD"):
            head.refusal = _NOT_ALLOWED

    def take(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            turn.reply(self.reply(self._expose()))

    def reply(self, text: bytes) -> Reply:
        return Reply(200, text, [(b"content-type", _CONTENT_TYPE)])

    def abandon(self, turn: Turn) -> None:
        """Nothing is ever under way."""
