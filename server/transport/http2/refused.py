"""A request that is not gRPC's, and has a body: it is read, up to a limit, before it is answered.

An answer amid the body, with the reset that follows it, is allowed; but curl, for one, reports that as a failed
transfer and does not show the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.transport.http2.calls import Calls
    from server.transport.http2.stream import Stream

_PATIENCE_BYTES = 1024 * 1024


class RefusedCall:
    __slots__ = ("_block", "_calls", "_stream")

    def __init__(self, calls: Calls, stream: Stream, block: bytes) -> None:
        """`block` is the answer's, its only one."""
        self._calls = calls
        self._stream = stream
        self._block = block
        stream.due_ns = calls.connection.now_ns + int(calls.service.settings.request_timeout_s * 1e9)

    def data(self, data: bytes) -> None:
        self._calls.connection.consumed(self._stream, len(data))
        if self._stream.received_bytes > _PATIENCE_BYTES:
            self.ended()

    def ended(self) -> None:
        self._calls.connection.send_trailers(self._stream, self._block)

    late = ended

    def sent(self) -> None:
        """There is nothing that could have had to wait."""

    def cancel(self) -> None:
        """There is nothing to stop."""
