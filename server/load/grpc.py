"""Unary gRPC over HTTP/2, for many calls at once on a few connections. Source: RFC 9113, gRPC's PROTOCOL-HTTP2.md."""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Sequence
from struct import Struct, iter_unpack, pack
from typing import Any
from urllib.parse import unquote

import grpc

from server.client.errors import ClientError, code_of_grpc
from server.load.payloads import Judged, Outcome, Payload, fault
from server.load.wire import RECEIVE_BYTES, Ended, Outgoing, address, connect
from server.transport.http2 import frames
from server.transport.http2.hpack import Decoder
from server.transport.http2.hpack_encode import encode

_PORT = 8001
_MOST_FIELDS_BYTES = 1 << 20
_WINDOW = frames.LARGEST_WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES
_HEAD = Struct(">IBI")
"""Length and type, flags, stream."""

_NAMES = {str(status.value[0]): status.name for status in grpc.StatusCode}


class _Lost(Exception):
    """The connection is of no use any more; the text says why."""


class _Stream:
    __slots__ = ("body", "fields", "message", "number", "payload", "sent", "window")

    def __init__(self, number: int, payload: Payload, message: bytes, window: int) -> None:
        self.number = number
        self.payload = payload
        self.message = message
        self.sent = 0
        """Bytes of the message."""
        self.window = window
        """How many more the server takes by this stream."""
        self.body = b""
        self.fields: dict[bytes, bytes] = {}


class _Connection:
    def __init__(self, to: socket.socket, epoll: select.epoll, ended: list[Ended]) -> None:
        """Raises OSError."""
        self.socket = to
        self.outgoing = Outgoing(to, epoll)
        self.streams: dict[int, _Stream] = {}
        self.leaving = False
        """The server takes no new calls by it."""
        self._ended = ended
        self._next_stream = 1
        self._window = frames.DEFAULT_WINDOW_BYTES
        self._stream_window = frames.DEFAULT_WINDOW_BYTES
        self._most_streams = 100
        self._waiting: deque[tuple[int, Payload, bytes, bytes]] = deque()
        self._blocked: dict[int, _Stream] = {}
        """Streams whose messages wait for a window."""
        self._received = 0
        """Bytes that the server's window has not been told of."""
        self._decoder = Decoder()
        self._known: dict[bytes, dict[bytes, bytes]] = {}
        self._known_at = 0
        self._block, self._ends = b"", False
        self._rest = b""
        ours = frames.settings(
            {
                frames.HEADER_TABLE_SIZE: 0,
                frames.ENABLE_PUSH: 0,
                frames.INITIAL_WINDOW_SIZE: frames.LARGEST_WINDOW_BYTES,
            }
        )
        self.outgoing.send(frames.PREFACE + ours + frames.window_update(0, _WINDOW))

    def send(self, number: int, payload: Payload, block: bytes, message: bytes) -> None:
        """Raises OSError."""
        if len(self.streams) < self._most_streams:
            self._begin(number, payload, block, message)
        else:
            self._waiting.append((number, payload, block, message))

    def _begin(self, number: int, payload: Payload, block: bytes, message: bytes) -> None:
        stream = self._next_stream
        self._next_stream += 2
        one = self.streams[stream] = _Stream(number, payload, message, self._stream_window)
        head = _HEAD.pack(len(block) << 8 | frames.HEADERS, frames.END_HEADERS, stream)
        self.outgoing.send(b"".join([head, block, *self._pieces(stream, one)]))

    def _pieces(self, stream: int, one: _Stream) -> list[bytes]:
        """Frames of what the windows allow of its message; the rest waits for them to open."""
        out: list[bytes] = []
        while left := len(one.message) - one.sent:
            size = min(left, frames.DEFAULT_FRAME_BYTES, self._window, one.window)
            if size <= 0:
                self._blocked[stream] = one
                return out
            self._window -= size
            one.window -= size
            flags = frames.END_STREAM if size == left else 0
            out += [_HEAD.pack(size << 8 | frames.DATA, flags, stream), one.message[one.sent : one.sent + size]]
            one.sent += size
        self._blocked.pop(stream, None)
        return out

    def _unblock(self) -> None:
        for stream, one in list(self._blocked.items()):
            if pieces := self._pieces(stream, one):
                self.outgoing.send(b"".join(pieces))

    def read(self) -> None:
        """Raises OSError, _Lost, ValueError for bytes that are no HTTP/2."""
        try:
            received = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return  # What there was to read was of one that had this number before.
        if not received:
            raise _Lost("the server closed the connection")
        data = self._rest + received if self._rest else received
        at, end = 0, len(data)
        while end - at >= 9:
            head, flags, stream = _HEAD.unpack_from(data, at)
            stop = at + 9 + (head >> 8)
            if stop > end:
                break
            self._frame(head & 0xFF, flags, stream, data[at + 9 : stop])
            at = stop
        self._rest = data[at:]
        while self._waiting and not self.leaving and len(self.streams) < self._most_streams:
            self._begin(*self._waiting.popleft())

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.DATA:
            self._data(flags, stream, payload)
        elif kind == frames.HEADERS:
            if flags & frames.PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            self._block = payload[5:] if flags & frames.WITH_PRIORITY else payload
            self._ends = bool(flags & frames.END_STREAM)
            self._fields(flags, stream)
        elif kind == frames.CONTINUATION:
            self._block += payload
            self._fields(flags, stream)
        else:
            self._control(kind, flags, stream, payload)

    def _data(self, flags: int, stream: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received > _WINDOW // 2:
            self.outgoing.send(frames.window_update(0, self._received))
            self._received = 0
        if flags & frames.PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if one := self.streams.get(stream):
            one.body = one.body + payload if one.body else payload
        if flags & frames.END_STREAM:
            self._end(stream)

    def _fields(self, flags: int, stream: int) -> None:
        if not flags & frames.END_HEADERS:
            return
        if self._known_at != self._decoder.insertions:
            self._known.clear()
        fields = self._known.get(self._block)
        if fields is None:
            fields = dict(self._decoder.decode(self._block, _MOST_FIELDS_BYTES))
            if self._decoder.insertions == self._known_at:
                self._known[self._block] = fields
            self._known_at = self._decoder.insertions
        if one := self.streams.get(stream):
            one.fields = fields
        if self._ends:
            self._end(stream)

    def _end(self, stream: int) -> None:
        one = self._gone(stream)
        if one:
            self._ended.append((one.number, _judged(one)))

    def _gone(self, stream: int) -> _Stream | None:
        self._blocked.pop(stream, None)
        return self.streams.pop(stream, None)

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.SETTINGS and not flags & frames.ACK:
            self._settings(dict(iter_unpack(">HI", payload)))
        elif kind == frames.PING and not flags & frames.ACK:
            self.outgoing.send(frames.ping(payload, frames.ACK))
        elif kind == frames.WINDOW_UPDATE:
            self._open(stream, int.from_bytes(payload, "big"))
        elif kind == frames.RST_STREAM:
            code = int.from_bytes(payload, "big")
            refused = code == frames.ErrorCode.REFUSED_STREAM
            self._fail([stream], "refused" if refused else "failed", f"the stream was reset, error {code}")
        elif kind == frames.GOAWAY:
            self.leaving = True
            last = int.from_bytes(payload[:4], "big")
            self._fail(
                [each for each in self.streams if each > last], "failed", "the server left before it took the call"
            )

    def _settings(self, theirs: dict[int, int]) -> None:
        self._most_streams = theirs.get(frames.MAX_CONCURRENT_STREAMS, self._most_streams)
        window = theirs.get(frames.INITIAL_WINDOW_SIZE, self._stream_window)
        for one in self.streams.values():
            one.window += window - self._stream_window
        self._stream_window = window
        self.outgoing.send(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._unblock()

    def _open(self, stream: int, size: int) -> None:
        if stream == 0:
            self._window += size
        elif one := self.streams.get(stream):
            one.window += size
        self._unblock()

    def _fail(self, streams: Sequence[int], outcome: Outcome, words: str) -> None:
        for stream in streams:
            if one := self._gone(stream):
                self._ended.append((one.number, (outcome, words)))

    def unsent(self) -> list[tuple[int, Payload]]:
        """What it has not sent, and will not."""
        left = [(number, payload) for number, payload, _, _ in self._waiting]
        self._waiting.clear()
        return left


def _judged(stream: _Stream) -> Judged:
    status = stream.fields.get(b"grpc-status", b"").decode("latin-1")
    if status == "0":
        message = stream.body[5:]
        return stream.payload.judge(message, lambda: stream.payload.call.request.reply.FromString(message))
    if not status:
        return "failed", f"no grpc-status, HTTP {stream.fields.get(b':status', b'?').decode('latin-1')}"
    name = _NAMES.get(status, "UNKNOWN")
    words = unquote(stream.fields.get(b"grpc-message", b"").decode("latin-1"))
    return fault(ClientError(code_of_grpc(name), words or name))


class GrpcWire:
    """`url`: ``grpc://HOST:PORT``. Calls go by `connections` connections in turns."""

    def __init__(self, url: str, connections: int = 1, metadata: Sequence[tuple[str, str]] = ()) -> None:
        """Raises ClientError for a URL of another form."""
        self._where = address(url, "grpc", _PORT)
        self._metadata = [(name.encode(), value.encode()) for name, value in metadata]
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._turns: list[_Connection | None] = [None] * connections
        self._turn = 0
        self._ended: list[Ended] = []
        self._encoded: dict[int, tuple[bytes, bytes]] = {}

    def fileno(self) -> int:
        return self._epoll.fileno()

    def send(self, number: int, payload: Payload) -> None:
        encoded = self._encoded.get(id(payload))
        if encoded is None:
            encoded = self._encoded[id(payload)] = self._encode(payload.call.request)
        self._turn = (self._turn + 1) % len(self._turns)
        connection = self._turns[self._turn]
        try:
            if connection is None or connection.leaving:
                connection = self._turns[self._turn] = self._connect()
            connection.send(number, payload, *encoded)
        except OSError as error:
            self._ended.append((number, ("failed", f"can't send: {error}")))
            if connection is not None:
                connection.streams = {k: s for k, s in connection.streams.items() if s.number != number}
                self._lost(connection, str(error))

    def _connect(self) -> _Connection:
        made = connect(self._where)
        self._epoll.register(made, select.EPOLLIN)
        try:
            connection = _Connection(made, self._epoll, self._ended)
        except OSError:
            made.close()
            raise
        self._connections[made.fileno()] = connection
        return connection

    def _encode(self, request: Any) -> tuple[bytes, bytes]:
        host, port = self._where
        block = encode(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", request.method.encode()),
                (b":authority", f"{host}:{port}".encode()),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                *self._metadata,
            ]
        )
        message = request.message.SerializeToString()
        return block, pack(">BI", 0, len(message)) + message

    def ready(self) -> Sequence[Ended]:
        for descriptor, events in self._epoll.poll(0):
            connection = self._connections.get(descriptor)
            if connection is None:
                continue  # Another one of this round has closed it.
            try:
                if events & select.EPOLLOUT:
                    connection.outgoing.flush()
                if events & ~select.EPOLLOUT:
                    connection.read()
            except (OSError, _Lost, ValueError) as error:
                self._lost(connection, str(error))
            if connection.leaving:
                self._leave(connection)
        ended = list(self._ended)
        self._ended.clear()
        return ended

    def _leave(self, connection: _Connection) -> None:
        for number, payload in connection.unsent():
            self.send(number, payload)
        if not connection.streams:
            self._lost(connection, "left")

    def _lost(self, connection: _Connection, why: str) -> None:
        """All of its calls have failed."""
        connection.leaving = True
        if self._connections.pop(connection.socket.fileno(), None) is None:
            return
        for stream in connection.streams.values():
            self._ended.append((stream.number, ("failed", f"connection lost: {why}")))
        connection.streams.clear()
        for number, _ in connection.unsent():
            self._ended.append((number, ("failed", f"connection lost: {why}")))
        connection.socket.close()

    def close(self) -> None:
        for connection in self._connections.values():
            connection.socket.close()
        self._connections.clear()
        self._epoll.close()
