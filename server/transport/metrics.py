"""What Prometheus asks: GET /metrics, and nothing else."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.transport.http1.reply import Reply

if TYPE_CHECKING:
    from server.transport.http1.head import Head
    from server.transport.http1.protocol import Turn

log = logging.getLogger(__name__)

_NOT_FOUND = Reply(404, b"not found: metrics are at /metrics\n", [(b"content-type", b"text/plain")])
_NO_TOKEN = Reply(
    401, b"show the token of --metrics-token-file: authorization: Bearer\n", [(b"www-authenticate", b"Bearer")]
)
_NOT_ALLOWED = Reply(405, b"", [(b"allow", b"GET, HEAD")])


Expose = Callable[[str], tuple[bytes, str]]
"""Takes the header Accept, gives the metrics and their content type."""


class MetricsApp:
    """Answers each scrape with what `expose` gives."""

    def __init__(self, expose: Expose, token_file: str = "") -> None:
        """`token_file`: of the token that scrapers must show; empty: none."""
        self._expose = expose
        self._token_file = Path(token_file) if token_file else None

    def plan(self, head: Head) -> None:
        if head.path != b"/metrics":
            head.refusal = _NOT_FOUND
        elif head.method not in ("GET", "HEAD"):
            head.refusal = _NOT_ALLOWED
        elif self._token_file is not None:
            head.once = True  # The file may change.
            if not _shows(head, self._token_file):
                head.refusal = _NO_TOKEN

    def take(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            self.tell(turn, self._expose)

    def tell(self, turn: Turn, expose: Expose) -> None:
        assert turn.head is not None
        text, content_type = expose(turn.head.header(b"accept"))
        turn.reply(Reply(200, text, [(b"content-type", content_type.encode())]))

    def abandon(self, turn: Turn) -> None:
        """Nothing is ever under way."""


def _shows(head: Head, file: Path) -> bool:
    """Whether a scraper shows the token of the file; nobody does where it can't be read, or is empty."""
    try:
        token = file.read_bytes().strip()
    except OSError as error:
        log.error("metrics.token_file: %s: %s", file, error.strerror or error)
        return False
    scheme, _, shown = head.header(b"authorization").partition(" ")
    equal = hmac.compare_digest(shown.strip().encode("latin-1"), token)
    return bool(token) and scheme.lower() == "bearer" and equal
