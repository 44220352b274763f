"""A call that is refused by its header or the begin of its message: it is told so when its body was read, and dropped.

An answer amid the body, with the reset that follows it, is allowed; but curl reports that as a failed transfer, and
grpcio as an internal error if it comes while a message is being written.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.transport.http2.calls import Calls
    from server.transport.http2.stream import Stream

_PATIENCE_BYTES = 1024 * 1024
_PATIENCE_NS = 100_000_000
"""Short, for a client with a stream may wait for our word before it goes on."""


class RefusedCall:
    __slots__ = ("_block", "_calls", "_most_bytes", "_stream", "_text")

    def __init__(self, calls: Calls, stream: Stream, block: bytes, text: bytes = b"", *, whole: bool = False) -> None:
        """`block` is the answer's, its only one, `text` what is behind it. `whole`: its body is one message, read as
        long as its client waits."""
        self._calls = calls
        self._stream = stream
        self._block = block
        self._text = text
        self._most_bytes = inf if whole else _PATIENCE_BYTES
        stream.due_ns = calls.connection.now_ns + (stream.timeout_ns if whole else _PATIENCE_NS)

    def data(self, parts: list[bytes]) -> None:
        self._calls.connection.consumed(self._stream, sum(map(len, parts)))
        if self._stream.received_bytes > self._most_bytes:
            self.ended()

    def ended(self) -> None:
        self._calls.turn_away(self._stream, self._block, self._text)

    late = ended

    def sent(self) -> None:
        """There is nothing that could have had to wait."""

    def cancel(self) -> None:
        """There is nothing to stop."""
