"""One connection of HTTP/2, as a server sees it: bytes in, events out, bytes to send. No socket and no clock in it.

`receive` is given what a socket read and when; `tick` is told the time now and then. Both return events, and leave
what is to be sent in `sender.out`. A connection that has to end says so by `fault`.

Frames are read by their place in the received bytes, without an object for each; and the two that most calls consist
of, HEADERS and one DATA that ends the stream, make one event.

Source: RFC 9113, of which each method names its section.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from typing import TYPE_CHECKING

from server.settings import GrpcSettings
from server.transport.http2 import frames, times
from server.transport.http2.control import ControlFrames
from server.transport.http2.fields import check_trailers
from server.transport.http2.frames import ConnectionFault, ErrorCode, StreamFault, check_priority, without_padding
from server.transport.http2.head import Opening
from server.transport.http2.heads import ForwardingHeads, Heads
from server.transport.http2.hpack import Decoder, HeaderListTooLarge, HpackError
from server.transport.http2.states import State, Step
from server.transport.http2.stream import Block, Stream
from server.transport.http2.streams import Event, Kind
from server.transport.methods import Method

if TYPE_CHECKING:
    from server.security.gate import Gate

_END_STREAM, _END_HEADERS = frames.END_STREAM, frames.END_HEADERS
_read_frame = Struct(">HBHI").unpack_from
"""The header of a frame, with its type and flags as one number: of DATA that is its flags alone."""
_WHOLE_HEADERS = frames.HEADERS << 8 | _END_HEADERS
_OPEN, _HALF_CLOSED_REMOTE = State.OPEN, State.HALF_CLOSED_REMOTE
_CALL, _OPENED, _DATA = Kind.CALL, Kind.OPENED, Kind.DATA
_FRAME_BYTES = frames.DEFAULT_FRAME_BYTES
_HEADER_BYTES = frames.FRAME_HEADER_BYTES
_LARGEST_STREAM_ID = frames.LARGEST_STREAM_ID
_UPDATE_BYTES = 1024 * 1024
"""The client gets its connection window back whenever it has used so much of it, or a half."""


class Connection(ControlFrames):
    """`refused` counts streams that were not served, by cause."""

    __slots__ = (
        "_block",
        "_full_window",
        "_heads",
        "_known_heads",
        "_low_window",
        "_partial",
        "_parts",
        "_preface_left",
        "_request_timeout_ns",
        "_stream_window",
        "_window",
        "heard_ns",
        "opened_ns",
    )

    def __init__(
        self,
        settings: GrpcSettings,
        methods: Mapping[bytes, Method],
        refused: Counter[str],
        now_ns: int,
        forwards: Sequence[str] = (),
        gate: Gate | None = None,
    ) -> None:
        """`forwards`: names of the metadata that goes along with requests. `gate`: who may ask."""
        super().__init__(settings, refused, now_ns)
        self._heads = (
            ForwardingHeads(Decoder(), methods, settings.max_header_list_bytes, forwards, gate)
            if forwards
            else Heads(Decoder(), methods, settings.max_header_list_bytes, gate)
        )
        self._known_heads = self._heads.known
        self.opened_ns = self.heard_ns = now_ns
        self._preface_left = frames.PREFACE
        self._partial = b""
        self._window = self._full_window = settings.connection_window_bytes
        self._low_window = max(self._full_window - _UPDATE_BYTES, self._full_window // 2)
        self._stream_window = settings.stream_window_bytes
        self._request_timeout_ns = int(settings.request_timeout_s * 1e9)
        self._parts: dict[Stream, list[bytes]] = {}
        """DATA of this read, by stream: what the event of each has."""
        self._block: Block | None = None
        self._greet()

    def _greet(self) -> None:
        """The server's preface: SETTINGS, and the rest of the connection's window, which no setting gives (3.4)."""
        values = {
            frames.MAX_CONCURRENT_STREAMS: self.settings.max_concurrent_streams,
            frames.INITIAL_WINDOW_SIZE: self.settings.stream_window_bytes,
            frames.MAX_HEADER_LIST_SIZE: self.settings.max_header_list_bytes,
        }
        self.sender.out.append(frames.settings(values))
        more = self._full_window - frames.DEFAULT_WINDOW_BYTES
        if more:
            self.sender.out.append(frames.window_update(0, more))

    # --- receiving --------------------------------------------------------------------------------

    def receive(self, data: bytes, now_ns: int) -> list[Event]:
        """What `data`, read at `now_ns`, makes happen. After a `fault` nothing does."""
        events = self._events = []
        if self._parts:
            self._parts = {}
        if self.fault is not None:
            return events
        self.now_ns = self.heard_ns = self.sender.now_ns = now_ns
        try:
            if self._preface_left:
                data = self._read_preface(data)
            start = self._read_cut_frame(data) if self._partial else 0
            if not self._partial:
                self._partial = data[self._read_frames(data, start) :]
        except ConnectionFault as fault:
            self.fail(fault)
        return events

    def _read_preface(self, data: bytes) -> bytes:
        """Section 3.4; what follows the preface."""
        wanted = self._preface_left
        if data[: len(wanted)] != wanted[: len(data)]:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2", "bad_preface")
        self._preface_left = wanted[len(data) :]
        return data[len(wanted) :]

    def _read_cut_frame(self, data: bytes) -> int:
        """Reads the frame that an earlier read has begun, if all of it is here, and returns where the next one begins.
        Of `data`, in which there may be much more, nothing else is copied."""
        partial, taken = self._partial, 0
        if len(partial) < _HEADER_BYTES:
            taken = _HEADER_BYTES - len(partial)
            partial += data[:taken]
        missing = _HEADER_BYTES + int.from_bytes(partial[:3]) - len(partial)
        whole = partial + data[taken : taken + missing]
        self._partial = whole[self._read_frames(whole, 0) :]
        return taken + missing

    def _read_frames(self, data: bytes, offset: int) -> int:
        """Reads all whole frames from there on and returns where the rest begins (section 4.1)."""
        end, streams, known_heads = len(data), self.streams, self._known_heads
        while end - offset >= _HEADER_BYTES:
            high, low, what, stream_id = _read_frame(data, offset)
            length = high << 8 | low
            start = offset + _HEADER_BYTES
            offset = start + length
            if offset > end:
                if length > _FRAME_BYTES:
                    raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
                return start - _HEADER_BYTES
            payload = data[start:offset]
            if self._block is None and length <= _FRAME_BYTES:
                # The two frames that most calls consist of, in their plain form.
                if what == _WHOLE_HEADERS:
                    if self._last_id < stream_id <= _LARGEST_STREAM_ID and stream_id & 1 and self.greeted:
                        opening = known_heads.get(payload) or self._read_head(stream_id, payload)
                        if opening is not None:
                            self._begin(stream_id, opening)
                        continue
                elif what <= _END_STREAM and stream_id in streams:
                    self._take_data(streams[stream_id], payload, what)
                    continue
            self._dispatch(what >> 8, what & 0xFF, stream_id & 0x7FFFFFFF, payload)
        return offset

    def _begin(self, stream_id: int, opening: Opening) -> None:
        """A stream is opened by a head that is read. Of a hot one nobody hears before its data is here."""
        stream = self._open(stream_id, opening)
        if stream is None:
            return
        if stream.head.hot:
            stream.silent = True
            stream.due_ns = self.now_ns + self._request_timeout_ns
        else:
            self._events.append((_OPENED, stream, b""))

    def _take_data(self, stream: Stream, data: bytes, flags: int) -> None:
        """DATA without padding: all of a stream that nobody has heard of, which makes one event, or a part."""
        length = len(data)
        if not length or stream.state is not _OPEN:
            self._dispatch(frames.DATA, flags, stream.id, data)
            return
        self._window -= length
        if self._window < self._low_window:
            self._replenish()
        try:
            if flags and stream.silent:
                if 0 <= stream.head.content_length != length:
                    raise _content_length(stream.head.content_length, length)
                stream.state = _HALF_CLOSED_REMOTE
                self._events.append((_CALL, stream, data))
                return
            self._add(stream, data, length)
            if flags:
                self._end(stream)
        except StreamFault as fault:
            self._stream_fault(stream.id, fault)

    def _dispatch(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Any frame, by its type. Unknown types are ignored (section 5.5)."""
        if len(payload) > frames.DEFAULT_FRAME_BYTES:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {len(payload)} bytes")
        if not self.greeted and (kind != frames.SETTINGS or flags & frames.ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS", "bad_preface")
        if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block.stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame inside of a header block")
        handler = _HANDLERS.get(kind)
        if handler is None:
            self._spend(self._empty_frames, "empty_frame_flood")
            return
        try:
            handler(self, flags, stream_id, payload)
        except StreamFault as fault:
            self._stream_fault(stream_id, fault)

    # --- DATA, sections 6.1, 8.1.1 ----------------------------------------------------------------

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        # All of the payload counts, padding too, even where the stream is gone (section 6.9.1).
        self._window -= len(payload)
        if self._window < self._low_window:
            self._replenish()
        data = without_padding(payload) if flags & frames.PADDED else payload
        if not data and not flags & _END_STREAM:
            self._spend(self._empty_frames, "empty_frame_flood")
        stream = self._step(stream_id, Step.RECV_DATA)
        if stream is None:
            return
        self._add(stream, data, len(payload))
        if flags & _END_STREAM:
            self._end(stream)

    def _add(self, stream: Stream, data: bytes, length: int) -> None:
        """DATA of an open stream; `length`: with its padding. One event tells of all that comes with a read."""
        stream.unread_bytes += length
        if stream.unread_bytes > self._stream_window:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
        if stream.silent:
            self._announce(stream)
        received = stream.received_bytes = stream.received_bytes + len(data)
        if 0 <= stream.head.content_length < received:
            raise _content_length(stream.head.content_length, received)
        if len(data) < length:
            self.consumed(stream, length - len(data))
        parts = self._parts.get(stream)
        if parts is not None:
            parts.append(data)
        elif data:
            parts = self._parts[stream] = [data]
            self._events.append((_DATA, stream, parts))

    def _replenish(self) -> None:
        """Give the client its connection window back: what holds one call's bytes up must not hold up the others."""
        if self._window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        self.sender.out.append(frames.window_update(0, self._full_window - self._window))
        self._window = self._full_window

    def _end(self, stream: Stream) -> None:
        """END_STREAM came."""
        expected = stream.head.content_length
        if 0 <= expected != stream.received_bytes:
            raise _content_length(expected, stream.received_bytes)
        self._step(stream.id, Step.RECV_END)
        self._announce(stream)
        self._events.append((Kind.ENDED, stream, b""))

    # --- HEADERS and CONTINUATION, sections 4.3, 6.2, 6.10 ----------------------------------------

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        block = without_padding(payload) if flags & frames.PADDED else payload
        if flags & frames.WITH_PRIORITY:
            if len(block) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without the priority that its flag says")
            check_priority(stream_id, block)
            block = block[5:]
        if flags & _END_HEADERS:
            self._on_block(stream_id, block, bool(flags & _END_STREAM))
        else:
            self._block = Block(stream_id, bool(flags & _END_STREAM), block)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without a header block")
        block.add(payload, self.settings)
        if flags & _END_HEADERS:
            self._block = None
            self._on_block(stream_id, block.whole(), block.end_stream)

    def _on_block(self, stream_id: int, block: bytes, end_stream: bool) -> None:
        """A whole header block: that of a request, or trailers."""
        if stream_id <= self._last_id:
            self._on_trailers(stream_id, block, end_stream)
        elif stream_id & 1:
            self._on_request(stream_id, block, end_stream)
        else:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client's streams have odd numbers")

    def _on_request(self, stream_id: int, block: bytes, end_stream: bool) -> None:
        opening = self._known_heads.get(block) or self._read_head(stream_id, block)
        if opening is None:
            return
        self._begin(stream_id, opening)
        if end_stream:
            stream = self.streams.get(stream_id)
            if stream is not None:
                self._end(stream)

    def _read_head(self, stream_id: int, block: bytes) -> Opening | None:
        """What a block that is not known opens the stream with; None: the request is malformed, and so refused."""
        try:
            return self._heads.read(block)
        except StreamFault as fault:
            self._take_id(stream_id)
            self._stream_fault(stream_id, fault)
            return None
        except HpackError as error:
            raise _compression_fault(error) from error

    def _on_trailers(self, stream_id: int, block: bytes, end_stream: bool) -> None:
        """Section 8.1: they end the stream. What they say is of no use to a gRPC server."""
        try:
            fields = self._heads.fields(block)
        except HeaderListTooLarge as error:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, str(error)) from error
        except HpackError as error:
            raise _compression_fault(error) from error
        if self._state(stream_id) is State.IDLE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream's number is lower than the last one's (5.1.1)")
        stream = self._step(stream_id, Step.RECV_HEADERS)
        if stream is None:
            return
        if not end_stream:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "trailers that do not end the stream")
        check_trailers(fields)
        self._end(stream)

    # --- time and leaving -------------------------------------------------------------------------

    def tick(self, now_ns: int) -> list[Event]:
        """What the passing of time makes happen; to be called a few times a second."""
        events = self._events = []
        if self.fault is not None:
            return events
        self.now_ns = self.sender.now_ns = now_ns
        try:
            self._check_times(self.settings, now_ns)
        except ConnectionFault as fault:
            self.fail(fault)
        return events

    def _check_times(self, limits: GrpcSettings, now_ns: int) -> None:
        if times.check_client(self, limits, now_ns):
            self.ping()
        times.check_stay(self, limits, now_ns)
        for stream in times.slow_readers(self, limits, now_ns):
            self.refused["slow_reader"] += 1
            self.reset(stream, ErrorCode.CANCEL)
            self._events.append((Kind.RESET, stream, b""))
        for stream in times.slow_writers(self, now_ns):
            self._announce(stream)
            self._events.append((Kind.LATE, stream, b""))


_HANDLERS: Mapping[int, Callable[[Connection, int, int, bytes], None]] = {
    frames.DATA: Connection._on_data,
    frames.HEADERS: Connection._on_headers,
    frames.PRIORITY: Connection._on_priority,
    frames.RST_STREAM: Connection._on_rst_stream,
    frames.SETTINGS: Connection._on_settings,
    frames.PUSH_PROMISE: Connection._on_push_promise,
    frames.PING: Connection._on_ping,
    frames.GOAWAY: Connection._on_goaway,
    frames.WINDOW_UPDATE: Connection._on_window_update,
    frames.CONTINUATION: Connection._on_continuation,
}
"""By the type of the frame. Not bound to a connection, which would then hold itself."""


def _compression_fault(error: HpackError) -> ConnectionFault:
    return ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error), "compression_error")


def _content_length(expected: int, size: int) -> StreamFault:
    return StreamFault(ErrorCode.PROTOCOL_ERROR, f"content-length is {expected}, DATA {size} bytes")
