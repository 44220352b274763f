"""One stream: its state, and what both directions still have to do."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from server.transport.http2.frames import ConnectionFault, ErrorCode
from server.transport.http2.states import State

if TYPE_CHECKING:
    from server.settings import GrpcSettings
    from server.transport.http2.head import Head


class Stream:
    """Whoever opens one says what has no default. The others have theirs on the class: a call that is answered at once
    asks for hardly any of them."""

    id: int
    head: Head
    state: State
    timeout_ns: int
    """How long the client waits for the answer, by grpc-timeout; 0: it did not say."""
    send_offset: int
    """What this stream's send window is more than the client's SETTINGS_INITIAL_WINDOW_SIZE."""
    silent = False
    """Nobody has heard of it yet."""
    call: object = None
    """Whatever the owner of the connection keeps of the call that is under way."""
    received_bytes = 0
    """Of all DATA, without padding: held against content-length."""
    unread_bytes = 0
    """Of the stream's receive window that the client has used, as far as it knows."""
    consumed_bytes = 0
    """Of `unread_bytes`, what will be given back with the next WINDOW_UPDATE."""
    pending: deque[memoryview] | None = None
    """DATA that waits for a window, as views: what is left of a large message is not copied for each frame."""
    pending_bytes = 0
    trailers: bytes | None = None
    blocked_ns = 0
    """Since when nothing of `pending` could be sent."""
    due_ns = 0
    """By when the client must have said all; 0: it may take its time."""


class Block:
    """A header block of which more is to come."""

    __slots__ = ("_parts", "_size", "end_stream", "stream_id")

    def __init__(self, stream_id: int, end_stream: bool, start: bytes) -> None:
        self.stream_id = stream_id
        self.end_stream = end_stream
        self._parts = [start]
        self._size = len(start)

    def add(self, payload: bytes, limits: GrpcSettings) -> None:
        """The payload of one CONTINUATION. Raises ConnectionFault: there is no end to them."""
        self._parts.append(payload)
        self._size += len(payload)
        # What comes compressed is seldom larger than the list; and a list over the limit can't be skipped (4.3).
        if len(self._parts) - 1 > limits.max_continuations or self._size > limits.max_header_list_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "continuation flood", "continuation_flood")

    def whole(self) -> bytes:
        return b"".join(self._parts)
