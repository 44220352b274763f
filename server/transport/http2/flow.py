"""Flow control: how much may be sent, and what waits until it may. Source: RFC 9113 sections 5.2, 6.9.

A stream's window is the client's SETTINGS_INITIAL_WINDOW_SIZE and the stream's own offset: so a change of the
setting, which changes the windows of all streams and may make them negative, is one assignment.

A client decides how many streams wait, and a frame that widens a window has 13 bytes: so what one costs does not depend
on how many wait. Who waits for its own window is not looked at until that is widened.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from server.transport.http2.frames import (
    DATA,
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW_BYTES,
    LARGEST_WINDOW_BYTES,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    frame,
)


class Sending(Protocol):
    """What is asked of a stream, of a server's or a client's."""

    id: int
    send_offset: int
    """What its send window is more than the peer's SETTINGS_INITIAL_WINDOW_SIZE."""
    pending: deque[memoryview] | None
    pending_bytes: int
    blocked_ns: int


S = TypeVar("S", bound=Sending)


class Sender(Generic[S]):
    """Everything that goes to the client of one connection. `out` is what can go now."""

    __slots__ = ("_turns", "blocked", "initial_window", "max_frame_bytes", "now_ns", "out", "pending_bytes", "window")

    def __init__(self) -> None:
        self.out: list[bytes] = []
        self.window = DEFAULT_WINDOW_BYTES
        """Of the connection. A stream's is `initial_window` + its `send_offset`."""
        self.initial_window = DEFAULT_WINDOW_BYTES
        self.max_frame_bytes = DEFAULT_FRAME_BYTES
        self.blocked: dict[S, None] = {}
        """Streams with `pending`."""
        self._turns: OrderedDict[S, None] = OrderedDict()
        """Those of them whose own windows are open, as far as is known; in the order in which they take turns."""
        self.pending_bytes = 0
        self.now_ns = 0

    def data(self, stream: S, data: bytes) -> None:
        """Send `data`, or what of it the windows allow, and the rest when they do."""
        size = len(data)
        if (
            stream.pending is None
            and size <= self.window
            and size <= self.initial_window + stream.send_offset
            and size <= self.max_frame_bytes
        ):
            self.spend(stream, size)
            self.out.append(frame(DATA, 0, stream.id, data))
            return
        if stream.pending is None:
            stream.pending = deque()
            stream.blocked_ns = self.now_ns
            self.blocked[stream] = self._turns[stream] = None
        stream.pending.append(memoryview(data))
        stream.pending_bytes += size
        self.pending_bytes += size
        self.pump()

    def spend(self, stream: S, size: int) -> None:
        self.window -= size
        stream.send_offset -= size

    def pump(self) -> list[S]:
        """Send what the windows allow, the streams taking turns frame by frame; those that have now sent all."""
        finished: list[S] = []
        turns = self._turns
        while turns and self.window > 0:
            stream, _ = turns.popitem(last=False)
            if not self._send_frame(stream):
                continue
            if stream.pending:
                turns[stream] = None
            else:
                del self.blocked[stream]
                stream.pending = None
                finished.append(stream)
        return finished

    def _send_frame(self, stream: S) -> bool:
        """One frame of what is pending. False if the stream's window is used up."""
        assert stream.pending
        room = min(self.window, self.initial_window + stream.send_offset, self.max_frame_bytes)
        if room <= 0:
            return False
        data = stream.pending[0]
        if len(data) <= room:
            stream.pending.popleft()
        else:
            stream.pending[0] = data[room:]
            data = data[:room]
        stream.pending_bytes -= len(data)
        self.pending_bytes -= len(data)
        stream.blocked_ns = self.now_ns
        self.spend(stream, len(data))
        self.out.append(frame(DATA, 0, stream.id, data))
        return True

    def forget(self, stream: S) -> None:
        """The stream is closed: what it still had to send is dropped."""
        if stream.pending is not None:
            del self.blocked[stream]
            self._turns.pop(stream, None)
            self.pending_bytes -= stream.pending_bytes
            stream.pending = None

    def widen(self, increment: int) -> None:
        """WINDOW_UPDATE of the connection. Raises ConnectionFault."""
        self.window += increment
        if self.window > LARGEST_WINDOW_BYTES:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is over 2^31 - 1")

    def widen_stream(self, stream: S, increment: int) -> None:
        """WINDOW_UPDATE of a stream. Raises StreamFault."""
        stream.send_offset += increment
        if self.initial_window + stream.send_offset > LARGEST_WINDOW_BYTES:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "the stream's window is over 2^31 - 1")
        if stream.pending is not None:
            self._turns[stream] = None

    def change_initial(self, sizes: Sequence[int], streams: Iterable[S]) -> None:
        """All that one frame says of SETTINGS_INITIAL_WINDOW_SIZE: the last holds, and the largest held before it.

        Raises ConnectionFault if a window becomes too large (section 6.9.2).
        """
        self.initial_window = sizes[-1]
        self._turns.update(self.blocked)
        largest = max(sizes)
        if any(largest + stream.send_offset > LARGEST_WINDOW_BYTES for stream in streams):
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE: a window over")
