"""What Prometheus asks: GET /metrics, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from server.transport.http1.reply import Reply

if TYPE_CHECKING:
    from server.transport.http1.head import Head
    from server.transport.http1.protocol import Turn

_NOT_FOUND = Reply(404, b"not found: metrics are at /metrics\n", [(b"content-type", b"text/plain")])
_NOT_ALLOWED = Reply(405, b"", [(b"allow", b"GET, HEAD")])


Expose = Callable[[str], tuple[bytes, str]]
"""Takes the header Accept, gives the metrics and their content type."""


class MetricsApp:
    """Answers each scrape with what `expose` gives."""

    def __init__(self, expose: Expose) -> None:
        self._expose = expose

    def plan(self, head: Head) -> None:
        if head.path != b"/metrics":
            head.refusal = _NOT_FOUND
        elif head.method not in ("GET", "HEAD"):
            head.refusal = _NOT_ALLOWED

    def take(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            self.tell(turn, self._expose)

    def tell(self, turn: Turn, expose: Expose) -> None:
        assert turn.head is not None
        text, content_type = expose(turn.head.header(b"accept"))
        turn.reply(Reply(200, text, [(b"content-type", content_type.encode())]))

    def abandon(self, turn: Turn) -> None:
        """Nothing is ever under way."""
