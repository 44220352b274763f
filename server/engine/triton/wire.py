"""A connection of HTTP/2 to a Triton, as its client: unary gRPC calls go out, outcomes come in. No socket, no clock.

grpcio's asyncio client takes a hundred microseconds and several switches between threads for a call. What is needed
here is little: one message each way, no compression, and of a call that failed, whether it can have been executed.

Source: RFC 9113, gRPC "gRPC over HTTP2".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import NamedTuple
from urllib.parse import unquote

import server.transport.http2.frames as frames
from server.transport.http2.flow import Sender
from server.transport.http2.frames import ConnectionFault, ErrorCode, StreamFault, read_header
from server.transport.http2.hpack import Decoder, Field, HeaderListTooLarge, HpackError
from server.transport.http2.prefix import PREFIX_BYTES, is_plain, write_prefix

OK, UNKNOWN, RESOURCE_EXHAUSTED, INTERNAL = 0, 2, 8, 13
"""Of gRPC's statuses."""
_WINDOW = 1 << 26
"""Of the connection; a call's own is the largest message."""
_MOST_HEADER_BYTES = 64 * 1024
_UNLIMITED = 1 << 31


class Fate(Enum):
    """What became of a call that the server did not answer."""

    UNSENT = auto()
    """It did not leave as a whole."""
    DECLINED = auto()
    """The server says that it did not process it."""
    LOST = auto()
    """It may have been executed."""
    GIVEN_UP = auto()
    """Its caller waits no more."""


class Answered(NamedTuple):
    """By the server."""

    status: int
    details: str
    message: bytes = b""


class Failed(NamedTuple):
    fate: Fate
    why: str


Result = Answered | Failed


class Stream:
    """A call under way, as `Sender` knows streams."""

    blocked_ns = 0
    send_offset = 0
    pending: deque[memoryview] | None = None
    pending_bytes = 0

    def __init__(self, done: Callable[[Result], None]) -> None:
        self.id = 0
        """0: it waits for a place among the streams that the server takes."""
        self.done = done
        self.sent = False
        """As a whole."""
        self.begun = False
        """Its answer has begun."""
        self.data: list[bytes] = []
        self.size = 0


class Wire:
    """What is to be sent is in `out`. A call's `done` is called once, by what comes: not before `ask` has returned."""

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._sender: Sender[Stream] = Sender()
        self._decoder = Decoder()
        self.streams: dict[int, Stream] = {}
        self._waiting: deque[tuple[Stream, bytes, bytes]] = deque()
        self._most_streams = _UNLIMITED
        self._next_id = 1
        self._partial = b""
        self._block: tuple[int, int, list[bytes]] | None = None
        self._used = 0
        """Of the connection's receive window."""
        self.over = ""
        """Why it takes no more calls; empty: it does."""
        window = min(max_message_bytes + PREFIX_BYTES, frames.LARGEST_WINDOW_BYTES)
        values = {frames.ENABLE_PUSH: 0, frames.INITIAL_WINDOW_SIZE: window}
        more = frames.window_update(0, _WINDOW - frames.DEFAULT_WINDOW_BYTES)
        self.out += [frames.PREFACE, frames.settings(values), more]

    @property
    def out(self) -> list[bytes]:
        return self._sender.out

    @out.setter
    def out(self, out: list[bytes]) -> None:
        self._sender.out = out

    @property
    def idle(self) -> bool:
        return not self.streams and not self._waiting

    # --- calls ------------------------------------------------------------------------------------

    def ask(self, block: bytes, message: bytes, done: Callable[[Result], None]) -> Stream:
        """Begin a call; `block` are its header fields. Ask only one that is not `over`."""
        stream = Stream(done)
        data = write_prefix(0, len(message)) + message
        if len(self.streams) < self._most_streams:
            self._send(stream, block, data)
        else:
            self._waiting.append((stream, block, data))
        return stream

    def _send(self, stream: Stream, block: bytes, data: bytes) -> None:
        stream.id = self._next_id
        self._next_id += 2
        if self._next_id > frames.LARGEST_STREAM_ID:
            self.over = "its numbers of streams are used up"
        self.streams[stream.id] = stream
        out = self._sender.out
        out.append(frames.headers(stream.id, block, end_stream=False, max_frame_bytes=self._sender.max_frame_bytes))
        self._sender.data(stream, data)
        if stream.pending is None:
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        stream.sent = True
        self._sender.out.append(frames.frame(frames.DATA, frames.END_STREAM, stream.id))

    def give_up(self, stream: Stream) -> None:
        """Nobody waits for that call any more; `done` is not called."""
        if stream.id:
            if stream.id in self.streams:
                self._reset(stream, ErrorCode.CANCEL)
                self._close(stream)
        else:
            self._waiting = deque(each for each in self._waiting if each[0] is not stream)

    def lose(self, why: str) -> None:
        """The connection is gone, and with it what was under way."""
        self.over = self.over or why
        streams, waiting = list(self.streams.values()), list(self._waiting)
        self.streams.clear()
        self._waiting.clear()
        for stream in streams:
            stream.done(Failed(Fate.LOST if stream.sent else Fate.UNSENT, why))
        for stream, _, _ in waiting:
            stream.done(Failed(Fate.UNSENT, why))

    def ping(self) -> None:
        """Have the server say something."""
        self._sender.out.append(frames.ping(b"alive..?"))

    def _reset(self, stream: Stream, code: ErrorCode) -> None:
        self._sender.out.append(frames.rst_stream(stream.id, code))

    def _close(self, stream: Stream) -> None:
        del self.streams[stream.id]
        self._sender.forget(stream)
        while self._waiting and len(self.streams) < self._most_streams and not self.over:
            self._send(*self._waiting.popleft())

    def _conclude(self, stream: Stream, result: Result) -> None:
        self._close(stream)
        stream.done(result)

    # --- what comes -------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Raises ConnectionFault: the server broke the protocol; the connection is to be closed, and `lose` called."""
        if self._partial:
            data = self._partial + data
        offset, end = 0, len(data)
        while end - offset >= frames.FRAME_HEADER_BYTES:
            high, low, kind, flags, stream_id = read_header(data, offset)
            length = high << 8 | low
            start = offset + frames.FRAME_HEADER_BYTES
            if length > frames.DEFAULT_FRAME_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            if start + length > end:
                break
            offset = start + length
            self._take(kind, flags, stream_id & 0x7FFFFFFF, data[start:offset])
        self._partial = data[offset:]

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block[0]):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame inside of a header block")
        handler = _HANDLERS.get(kind)
        if handler is not None:  # RFC 9113 section 5.5: others are ignored.
            handler(self, flags, stream_id, payload)

    def _on_ping(self, flags: int, _stream_id: int, payload: bytes) -> None:
        if not flags & frames.ACK:
            self._sender.out.append(frames.ping(payload, frames.ACK))

    def _on_push(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "it pushes, which it was asked not to")

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._used += len(payload)
        if self._used > _WINDOW // 2:
            self._sender.out.append(frames.window_update(0, self._used))
            self._used = 0
        stream = self._known(stream_id)
        if stream is None:
            return
        data = _unpadded(payload) if flags & frames.PADDED else payload
        stream.data.append(data)
        stream.size += len(data)
        if stream.size > self._max_message_bytes + PREFIX_BYTES:
            self._reset(stream, ErrorCode.CANCEL)
            details = f"the answer is larger than {self._max_message_bytes} bytes"
            self._conclude(stream, Answered(RESOURCE_EXHAUSTED, details))
        elif flags & frames.END_STREAM:
            self._conclude(stream, Answered(UNKNOWN, "the answer ends without a status"))

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = _unpadded(payload) if flags & frames.PADDED else payload
        if flags & frames.WITH_PRIORITY:
            block = block[5:]
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, flags, block)
        else:
            self._block = stream_id, flags, [block]

    def _on_continuation(self, flags: int, _stream_id: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without a header block")
        stream_id, first_flags, parts = self._block
        parts.append(payload)
        if sum(map(len, parts)) > _MOST_HEADER_BYTES:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block without end")
        if flags & frames.END_HEADERS:
            self._block = None
            self._on_block(stream_id, first_flags, b"".join(parts))

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        try:
            # Also of a stream that is gone: the table is the connection's.
            fields = self._decoder.decode(block, _MOST_HEADER_BYTES)
        except (HpackError, HeaderListTooLarge) as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from error
        stream = self._known(stream_id)
        if stream is None:
            return
        if flags & frames.END_STREAM:
            if not stream.sent:
                # It need not hear the rest (RFC 9113 section 8.1).
                self._reset(stream, ErrorCode.NO_ERROR)
            self._conclude(stream, _answer(dict(fields), b"".join(stream.data), begun=stream.begun))
        elif not stream.begun:
            status = _value(fields, b":status")
            if status[:1] == b"1":
                return
            stream.begun = True
            if status != b"200":
                self._reset(stream, ErrorCode.CANCEL)
                self._conclude(stream, Answered(UNKNOWN, f"HTTP status {status.decode('latin-1')}"))

    def _on_reset(self, _flags: int, stream_id: int, payload: bytes) -> None:
        code = _number(payload, 4)
        stream = self._known(stream_id)
        if stream is None:
            return
        if code == ErrorCode.REFUSED_STREAM:
            self._conclude(stream, Failed(Fate.DECLINED, "it refused the stream"))
        else:
            why = f"it reset the stream with the error code {code}"
            self._conclude(stream, Failed(Fate.LOST, why))

    def _on_settings(self, flags: int, _stream_id: int, payload: bytes) -> None:
        if flags & frames.ACK:
            return
        for at in range(0, len(payload) - 5, 6):
            number, value = _number(payload[at : at + 2], 2), _number(payload[at + 2 : at + 6], 4)
            if number == frames.MAX_CONCURRENT_STREAMS:
                self._most_streams = value
            elif number == frames.INITIAL_WINDOW_SIZE:
                if value > frames.LARGEST_WINDOW_BYTES:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE over 2^31 - 1")
                self._sender.change_initial([value], self.streams.values())
            elif number == frames.MAX_FRAME_SIZE:
                self._sender.max_frame_bytes = value
        self._sender.out.append(frames.SETTINGS_ACK)
        self._pump()
        while self._waiting and len(self.streams) < self._most_streams and not self.over:
            self._send(*self._waiting.popleft())

    def _on_goaway(self, _flags: int, _stream_id: int, payload: bytes) -> None:
        """It takes no more streams, and none above its last one was processed. The others go on."""
        last_id = _number(payload[:4], 4) & 0x7FFFFFFF
        self.over = self.over or f"it sent GOAWAY {payload[8:72].decode('utf-8', 'replace')}".rstrip()
        for stream in [stream for stream in self.streams.values() if stream.id > last_id]:
            self._conclude(stream, Failed(Fate.DECLINED, self.over))
        waiting, self._waiting = self._waiting, deque()
        for stream, _, _ in waiting:
            stream.done(Failed(Fate.UNSENT, self.over))

    def _on_window(self, _flags: int, stream_id: int, payload: bytes) -> None:
        increment = _number(payload, 4) & 0x7FFFFFFF
        if stream_id:
            stream = self.streams.get(stream_id)
            if stream is not None:
                self._widen(stream, increment)
        else:
            self._sender.widen(increment)
        self._pump()

    def _widen(self, stream: Stream, increment: int) -> None:
        try:
            self._sender.widen_stream(stream, increment)
        except StreamFault as fault:
            self._reset(stream, fault.code)
            self._conclude(stream, Failed(Fate.LOST, fault.problem))

    def _pump(self) -> None:
        if self._sender.blocked:
            for stream in self._sender.pump():
                self._end(stream)

    def _known(self, stream_id: int) -> Stream | None:
        """None: it is gone. Raises ConnectionFault: it never was."""
        if not stream_id or stream_id >= self._next_id or not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a frame of stream {stream_id}, which nobody opened")
        return self.streams.get(stream_id)


_HANDLERS: Mapping[int, Callable[[Wire, int, int, bytes], None]] = {
    frames.DATA: Wire._on_data,
    frames.HEADERS: Wire._on_headers,
    frames.RST_STREAM: Wire._on_reset,
    frames.SETTINGS: Wire._on_settings,
    frames.PUSH_PROMISE: Wire._on_push,
    frames.PING: Wire._on_ping,
    frames.GOAWAY: Wire._on_goaway,
    frames.WINDOW_UPDATE: Wire._on_window,
    frames.CONTINUATION: Wire._on_continuation,
}


def _answer(trailers: dict[bytes, bytes], data: bytes, *, begun: bool) -> Answered:
    """What the last block of a call says; it may be the only one, which has the HTTP status too."""
    status = trailers.get(b"grpc-status", b"")
    if not status.isdigit():
        http = b"" if begun else trailers.get(b":status", b"")
        return Answered(UNKNOWN, f"no grpc-status, HTTP status {http.decode('latin-1') or '200'}")
    details = unquote(trailers.get(b"grpc-message", b"").decode("latin-1"))
    if int(status) != OK:
        return Answered(int(status), details)
    if not is_plain(data):
        return Answered(INTERNAL, "the answer is not one plain message")
    return Answered(OK, details, data[PREFIX_BYTES:])


def _value(fields: list[Field], name: bytes) -> bytes:
    return next((value for each, value in fields if each == name), b"")


def _number(data: bytes, size: int) -> int:
    if len(data) != size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"{len(data)} bytes in place of {size}")
    return int.from_bytes(data)


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
