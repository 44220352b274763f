"""A client of HTTP/2 without a socket: it feeds bytes to a server's `Connection` and reads what that would send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from struct import pack, unpack
from typing import Any, NamedTuple

from server.settings import GrpcSettings
from server.transport.http2 import frames
from server.transport.http2.connection import Connection
from server.transport.http2.frames import ErrorCode
from server.transport.http2.hpack import Decoder
from server.transport.http2.hpack_encode import encode
from server.transport.http2.streams import Event, Kind
from server.transport.methods import METHODS

INFER = b"/inference.GRPCInferenceService/ModelInfer"
LIVE = b"/inference.GRPCInferenceService/ServerLive"
STREAM = b"/inference.GRPCInferenceService/ModelStreamInfer"

Field = tuple[bytes, bytes]
END_STREAM, END_HEADERS = frames.END_STREAM, frames.END_HEADERS


class Frame(NamedTuple):
    kind: int
    flags: int
    stream_id: int
    payload: bytes

    @property
    def code(self) -> ErrorCode:
        """Of RST_STREAM or GOAWAY."""
        start = 4 if self.kind == frames.GOAWAY else 0
        return ErrorCode(int.from_bytes(self.payload[start : start + 4]))


def parse(data: bytes) -> list[Frame]:
    found = []
    while data:
        high, low, kind, flags, stream_id = frames.read_header(data)
        end = 9 + (high << 8 | low)
        found.append(Frame(kind, flags, stream_id, data[9:end]))
        data = data[end:]
    return found


def call_fields(path: bytes = INFER, *more: Field, without: Iterable[bytes] = ()) -> list[Field]:
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"test"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    return [*(field for field in fields if field[0] not in set(without)), *more]


def message(data: bytes = b"", flag: int = 0) -> bytes:
    return pack(">BI", flag, len(data)) + data


def headers(
    stream_id: int = 1, fields: list[Field] | None = None, flags: int = END_HEADERS, block: bytes | None = None
) -> bytes:
    return frames.frame(frames.HEADERS, flags, stream_id, encode(fields or call_fields()) if block is None else block)


def data(stream_id: int = 1, payload: bytes = b"", flags: int = 0) -> bytes:
    return frames.frame(frames.DATA, flags, stream_id, payload)


class Peer:
    """`greeted` has exchanged SETTINGS, and what the server sent for it is read."""

    def __init__(self, settings: GrpcSettings | None = None, *, greeted: bool = True, **limits: Any) -> None:
        self.refused: Counter[str] = Counter()
        methods = {method.name.encode(): method for method in METHODS}
        self.now_ns = 10**9
        self.connection = Connection(settings or GrpcSettings(**limits), methods, self.refused, self.now_ns)
        self.events: list[Event] = []
        self.decoder = Decoder()
        if greeted:
            self.send(frames.PREFACE, frames.settings({}), frames.SETTINGS_ACK)

    def send(self, *parts: bytes) -> list[Frame]:
        """What the server answers to these bytes; `events` are what came of them."""
        self.events = self.connection.receive(b"".join(parts), self.now_ns)
        return self.sent()

    def sent(self) -> list[Frame]:
        out = self.connection.sender.out
        found = parse(b"".join(out))
        out.clear()
        return found

    def wait(self, seconds: float) -> list[Frame]:
        self.now_ns += int(seconds * 1e9)
        self.events = self.connection.tick(self.now_ns)
        return self.sent()

    @property
    def kinds(self) -> list[Kind]:
        return [kind for kind, _, _ in self.events]

    def fields(self, frame: Frame) -> dict[bytes, bytes]:
        return dict(self.decoder.decode(frame.payload, 2**20))


def goaway_code(sent: list[Frame]) -> ErrorCode | None:
    """The error of the connection, if the server told one."""
    return next((frame.code for frame in sent if frame.kind == frames.GOAWAY), None)


def reset_code(sent: list[Frame], stream_id: int = 1) -> ErrorCode | None:
    return next((f.code for f in sent if f.kind == frames.RST_STREAM and f.stream_id == stream_id), None)


def settings_of(frame: Frame) -> dict[int, int]:
    return dict(unpack(">HI", frame.payload[i : i + 6]) for i in range(0, len(frame.payload), 6))
