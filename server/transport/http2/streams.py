"""The streams of one connection: opened, moved from state to state, answered, closed. What comes is `connection.py`'s.

Source: RFC 9113 sections 5, 8.1.
"""

from __future__ import annotations

from collections import Counter, deque
from enum import IntEnum, auto
from typing import Any

from server.settings import GrpcSettings
from server.transport.http2 import answers, frames
from server.transport.http2.answers import whole
from server.transport.http2.flow import Sender
from server.transport.http2.frames import ConnectionFault, ErrorCode, StreamFault
from server.transport.http2.head import Opening
from server.transport.http2.limits import Allowance, Resets
from server.transport.http2.prefix import write_prefix
from server.transport.http2.states import State, Step, after
from server.transport.http2.stream import Stream

_REMEMBERED_RESETS = 1024
_REMEMBERED_GAPS = 16
DRAIN_PING = b"draining"
_OPEN, _HALF_CLOSED_REMOTE = State.OPEN, State.HALF_CLOSED_REMOTE
_FRAME_BYTES = frames.DEFAULT_FRAME_BYTES


class Kind(IntEnum):
    """What an event says of its stream, and what comes with it."""

    CALL = auto()
    """It was opened, by a head that is `hot`, and ended; its whole DATA."""
    OPENED = auto()
    """It was opened, more will follow; nothing."""
    DATA = auto()
    """A list of its bytes: all that came with one read. They count against the stream's window until
    `Connection.consumed` gives them back."""
    ENDED = auto()
    """The client has said all; nothing."""
    RESET = auto()
    """It is gone, by a frame of the client or a fault of it; nothing."""
    SENT = auto()
    """What it had to wait with is sent; nothing."""
    LATE = auto()
    """The client has not said all by `Stream.due_ns`; nothing."""


Event = tuple[Kind, Stream, Any]


class Streams:
    """`refused` counts streams that were not served, by cause."""

    __slots__ = (  # An instance's dictionary shares its keys up to 30 attributes; all together these are more.
        "_accepted_until",
        "_events",
        "_gaps",
        "_last_id",
        "_max_streams",
        "_not_opened",
        "_reset_ids",
        "_resets",
        "drain_until_ns",
        "drained_ns",
        "fault",
        "idle_since_ns",
        "leaves",
        "now_ns",
        "refused",
        "sender",
        "settings",
        "streams",
    )

    def __init__(self, settings: GrpcSettings, refused: Counter[str], now_ns: int) -> None:
        self.settings = settings
        self.refused = refused
        self.sender: Sender[Stream] = Sender()
        self.streams: dict[int, Stream] = {}
        self.fault: ConnectionFault | None = None
        """Why the connection has to end, once it has: what `sender.out` holds is to be sent first."""
        self.now_ns = self.idle_since_ns = now_ns
        self.drained_ns = 0
        """When `drain` was called; 0: it was not."""
        self.drain_until_ns = 0
        self.leaves = ""
        """Why it was asked to; empty: for the server's own sake."""
        self._events: list[Event] = []
        self._last_id = 0
        self._accepted_until = frames.LARGEST_STREAM_ID
        self._reset_ids: dict[int, None] = {}
        self._gaps: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED_GAPS)
        self._max_streams = settings.max_concurrent_streams
        self._resets = Resets(settings.max_resets_per_s, settings.max_concurrent_streams)
        self._not_opened = 0
        """Numbers of streams up to the last that were left out, or whose streams were refused."""

    def _spend(self, allowance: Allowance, cause: str) -> None:
        if not allowance.take(self.now_ns):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, cause.replace("_", " "), cause)

    def _spend_reset(self) -> None:
        """A stream ends by RST_STREAM at the client's wish, or for its fault."""
        if not self._resets.take(self.now_ns, ((self._last_id + 1) >> 1) - self._not_opened):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "rapid reset", "rapid_reset")

    # --- states -----------------------------------------------------------------------------------

    def _state(self, stream_id: int) -> State:
        """The state of a stream that is not in `streams` (sections 5.1, 5.1.1)."""
        if (
            not stream_id & 1
            or stream_id > self._last_id
            or any(first <= stream_id <= last for first, last in self._gaps)
        ):
            return State.IDLE
        return State.RESET if stream_id in self._reset_ids else State.CLOSED

    def _step(self, stream_id: int, step: Step) -> Stream | None:
        """The stream on which a frame came, its state moved on; None if the frame is to be ignored.

        Raises:
            ConnectionFault, StreamFault: the frame may not come in this state.
        """
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{step.name} on stream 0")
        stream = self.streams.get(stream_id)
        state = after(self._state(stream_id) if stream is None else stream.state, step)
        if stream is not None and state is not None:
            stream.state = state
        return stream

    def _take_id(self, stream_id: int) -> None:
        if stream_id > self._last_id + 2:
            self._gaps.append((self._last_id + 1, stream_id - 1))
            self._not_opened += (stream_id - self._last_id - 2) >> 1
        self._last_id = stream_id

    def _open(self, stream_id: int, opening: Opening) -> Stream | None:
        """A new stream; None if it is refused (section 5.1.2), or came after the last that we promised to take."""
        if stream_id != self._last_id + 2:
            self._take_id(stream_id)
        else:
            self._last_id = stream_id
        streams = self.streams
        if len(streams) >= self._max_streams or stream_id > self._accepted_until:
            self._refuse(stream_id)
            return None
        stream = Stream()
        stream.id = stream_id
        stream.head, stream.timeout_ns = opening
        stream.state = _OPEN
        stream.send_offset = 0
        streams[stream_id] = stream
        return stream

    def _refuse(self, stream_id: int) -> None:
        self._remember_reset(stream_id)
        self._not_opened += 1
        if stream_id <= self._accepted_until:
            self.refused["too_many_streams"] += 1
            self.sender.out.append(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))

    def _announce(self, stream: Stream) -> None:
        """Tell that the stream was opened, if that was put off until its data is here."""
        if stream.silent:
            stream.silent = False
            self._events.append((Kind.OPENED, stream, b""))

    def consumed(self, stream: Stream, size: int) -> None:
        """`size` bytes of the stream's DATA are taken up; the client hears of it when they are many (section 6.9)."""
        stream.consumed_bytes += size
        if stream.consumed_bytes * 2 >= self.settings.stream_window_bytes and stream.state is State.OPEN:
            self.sender.out.append(frames.window_update(stream.id, stream.consumed_bytes))
            stream.unread_bytes -= stream.consumed_bytes
            stream.consumed_bytes = 0

    # --- sending ----------------------------------------------------------------------------------

    def answer(self, stream: Stream, message: bytes) -> None:
        """All of a call that went well and has one message: in one go where it fits, which it mostly does.

        Does nothing if the stream is gone.
        """
        size = len(message) + 5
        sender = self.sender
        if (
            size <= sender.window
            and size <= sender.initial_window + stream.send_offset
            and size <= _FRAME_BYTES
            and stream.state is _HALF_CLOSED_REMOTE
        ):
            sender.window -= size
            sender.out.append(whole(stream.id, message))
            del self.streams[stream.id]
            if not self.streams:
                self.idle_since_ns = self.now_ns
        elif stream.state is _OPEN or stream.state is _HALF_CLOSED_REMOTE:
            self._answer_in_parts(stream, message)

    def _answer_in_parts(self, stream: Stream, message: bytes) -> None:
        self.send_headers(stream, answers.RESPONSE)
        self.send_data(stream, write_prefix(0, len(message)) + message)
        self.send_trailers(stream, answers.OK_TRAILERS)

    def send_headers(self, stream: Stream, block: bytes) -> None:
        self.sender.out.append(frames.headers(stream.id, block, end_stream=False))

    def send_data(self, stream: Stream, data: bytes) -> None:
        """Data that does not fit the client's windows waits; the event SENT says when it is gone."""
        self.sender.data(stream, data)

    def send_trailers(self, stream: Stream, block: bytes) -> None:
        """The last of a stream, sent behind its data; an empty block: the data was the last."""
        if stream.pending is not None:
            stream.trailers = block
            return
        if block:
            self.sender.out.append(frames.headers(stream.id, block, end_stream=True))
        else:
            self.sender.out.append(frames.frame(frames.DATA, frames.END_STREAM, stream.id))
        ended = stream.state is State.HALF_CLOSED_REMOTE
        stream.state = after(stream.state, Step.SEND_END) or State.CLOSED
        self._close(stream)
        if not ended:
            # The client need not go on with a request that is answered (section 8.1).
            self._reset(stream.id, ErrorCode.NO_ERROR)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """End a stream without an answer."""
        self._close(stream)
        self._reset(stream.id, code)

    def _reset(self, stream_id: int, code: ErrorCode) -> None:
        self._remember_reset(stream_id)
        self.sender.out.append(frames.rst_stream(stream_id, code))

    def _remember_reset(self, stream_id: int) -> None:
        if len(self._reset_ids) >= _REMEMBERED_RESETS:
            del self._reset_ids[next(iter(self._reset_ids))]
        self._reset_ids[stream_id] = None

    def _close(self, stream: Stream) -> None:
        del self.streams[stream.id]
        stream.state = State.CLOSED
        self.sender.forget(stream)
        if not self.streams:
            self.idle_since_ns = self.now_ns

    def _pump(self) -> None:
        if not self.sender.blocked:
            return
        for stream in self.sender.pump():
            if stream.trailers is not None:
                self.send_trailers(stream, stream.trailers)
            else:
                self._events.append((Kind.SENT, stream, b""))

    def _stream_fault(self, stream_id: int, fault: StreamFault) -> None:
        """Section 5.4.2. Faults that the client makes us reset for count as if it had reset itself."""
        if stream_id > self._last_id:
            raise ConnectionFault(fault.code, fault.problem)
        self._spend_reset()
        self.refused["malformed"] += 1
        stream = self.streams.get(stream_id)
        if stream is None:
            self._reset(stream_id, fault.code)
            return
        self.reset(stream, fault.code)
        self._events.append((Kind.RESET, stream, b""))

    def fail(self, fault: ConnectionFault) -> None:
        """Section 5.4.1: GOAWAY, and nothing is read any more."""
        # One that was not raised: the frames of a traceback would hold this connection, which holds the fault.
        self.fault = ConnectionFault(fault.code, fault.problem, fault.cause)
        self.sender.out.append(frames.goaway(self._last_id, fault.code, fault.problem.encode()))

    # --- leaving ----------------------------------------------------------------------------------

    def drain(self, now_ns: int, grace_s: float, cause: str = "") -> None:
        """Ask the client to open no more streams, and take those that it opens until it has heard (section 6.8).

        `cause` is counted if it leaves. Asked again, only the grace is another.
        """
        self.drain_until_ns = now_ns + int(grace_s * 1e9)
        if self.drained_ns:
            return
        self.drained_ns = now_ns
        self.leaves = cause
        self.sender.out.append(frames.goaway(frames.LARGEST_STREAM_ID, ErrorCode.NO_ERROR))
        self.sender.out.append(frames.ping(DRAIN_PING))

    def finish_drain(self) -> None:
        """The client has heard: from here on no stream is taken."""
        if self.drained_ns and self._accepted_until == frames.LARGEST_STREAM_ID:
            self._accepted_until = self._last_id
            self.sender.out.append(frames.goaway(self._last_id, ErrorCode.NO_ERROR))

    @property
    def done(self) -> bool:
        """It was asked to leave, has heard, and has no calls: the socket can be closed."""
        return self._accepted_until != frames.LARGEST_STREAM_ID and not self.streams
