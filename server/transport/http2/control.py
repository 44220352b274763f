"""The frames that carry nothing of a call: what they change of the connection and its streams.

Source: RFC 9113, of which each method names its section.
"""

from __future__ import annotations

from collections import Counter
from struct import iter_unpack

from server.settings import GrpcSettings
from server.transport.http2 import frames
from server.transport.http2.frames import ConnectionFault, ErrorCode, StreamFault, check_priority
from server.transport.http2.limits import Allowance
from server.transport.http2.states import Step
from server.transport.http2.streams import DRAIN_PING, Kind, Streams

_ALIVE_PING = b"alive..?"


class ControlFrames(Streams):
    """All but DATA, HEADERS and CONTINUATION. A handler takes a frame's flags, its stream's number and its payload."""

    __slots__ = (
        "_empty_frames",
        "_pings",
        "_settings_frames",
        "acknowledged",
        "greeted",
        "pinged_ns",
    )

    def __init__(self, settings: GrpcSettings, refused: Counter[str], now_ns: int) -> None:
        super().__init__(settings, refused, now_ns)
        self.greeted = False
        """The client's preface and first SETTINGS are here."""
        self.acknowledged = False
        """The client has taken up our SETTINGS."""
        self.pinged_ns = 0
        """When we sent the PING that is not answered yet; 0: there is none."""
        self._pings = Allowance(settings.max_pings_per_s)
        self._settings_frames = Allowance(settings.max_settings_per_s)
        self._empty_frames = Allowance(settings.max_empty_frames_per_s)

    def _on_priority(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.3: checked and ignored."""
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._spend(self._empty_frames, "empty_frame_flood")
        if len(payload) != 5:
            raise StreamFault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY has 5 bytes")
        check_priority(stream_id, payload)

    def _on_rst_stream(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.4."""
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM has 4 bytes")
        stream = self._step(stream_id, Step.RECV_RST)
        self._spend_reset()
        if stream is not None:
            self._close(stream)
            self._events.append((Kind.RESET, stream, b""))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.5."""
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS with ACK is empty")
            self.acknowledged = True
            return
        if len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS is a multiple of 6 bytes")
        if self.greeted:
            self._spend(self._settings_frames, "settings_flood")
        self.greeted = True
        windows: list[int] = []
        for number, value in iter_unpack(">HI", payload):
            self._on_setting(number, value)
            if number == frames.INITIAL_WINDOW_SIZE:
                windows.append(value)
        if windows:
            # Together: it is a look at every stream, and a frame has room for thousands.
            self.sender.change_initial(windows, self.streams.values())
        self.sender.out.append(frames.SETTINGS_ACK)
        self._pump()

    def _on_setting(self, number: int, value: int) -> None:
        """Section 6.5.2. The rest does not matter to a server that never pushes nor uses the client's table."""
        if number == frames.ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH is 0 or 1")
        if number == frames.INITIAL_WINDOW_SIZE and value > frames.LARGEST_WINDOW_BYTES:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE is over 2^31 - 1")
        if number == frames.MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME_BYTES <= value <= frames.LARGEST_FRAME_BYTES:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE is out of its range")
            self.sender.max_frame_bytes = value

    def _on_push_promise(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        """Section 8.4."""
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client can't push")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.7."""
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING has 8 bytes")
        if not flags & frames.ACK:
            self._spend(self._pings, "ping_flood")
            self.sender.out.append(frames.ping(payload, frames.ACK))
        elif payload == DRAIN_PING:
            self.finish_drain()
        self.pinged_ns = 0

    def ping(self) -> None:
        """Ask for a sign of the client."""
        self.pinged_ns = self.now_ns
        self.sender.out.append(frames.ping(_ALIVE_PING))

    def _on_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.8: the client opens no more streams; those that are open go on."""
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY has at least 8 bytes")

    def _on_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.9."""
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE has 4 bytes")
        increment = int.from_bytes(payload) & 0x7FFFFFFF
        if not stream_id:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.sender.widen(increment)
        else:
            stream = self._step(stream_id, Step.RECV_WINDOW)
            if stream is None:
                return
            if not increment:
                raise StreamFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.sender.widen_stream(stream, increment)
        self._pump()
