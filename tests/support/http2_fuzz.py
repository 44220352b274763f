"""One conversation out of arbitrary bytes: whatever a client sends, the server neither raises nor loses its books."""

from __future__ import annotations

from collections import Counter

from server.settings import GrpcSettings
from server.transport.http2 import frames
from server.transport.http2.calls import Calls, Service
from server.transport.http2.connection import Connection
from server.transport.methods import METHODS
from tests.support.fake_dataplane import FakeDataPlane
from tests.support.http2_client import INFER, LIVE, call_fields, data, headers, message, parse

# Methods with tasks would need a loop; what they add is behind the core.
_METHODS = {m.name.encode(): m for m in METHODS if not m.streams and (m.infers or not m.waits)}
_LIMITS = GrpcSettings(stream_window_bytes=65_535, max_received_bytes=200_000, max_message_bytes=100_000)
_MAX_OUT_BYTES = 4 * 1024 * 1024

SEEDS = [
    headers(1) + data(1, message(b"x"), frames.END_STREAM),
    headers(1, call_fields(LIVE)) + data(1, message(), frames.END_STREAM) + frames.ping(bytes(8)),
    headers(1, call_fields(INFER, (b"grpc-timeout", b"1S"), (b"content-length", b"7")))
    + data(1, message(b"xx")[:3])
    + data(1, message(b"xx")[3:], frames.END_STREAM),
    headers(1, flags=0, block=b"\x83") + frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, b"\x86\x44\x01/"),
    frames.settings({frames.INITIAL_WINDOW_SIZE: 1}) + frames.window_update(0, 5) + frames.window_update(1, 5),
    headers(3) + frames.rst_stream(3, 8) + frames.goaway(0, 0) + frames.frame(frames.PRIORITY, 0, 1, bytes(5)),
]


def converse(received: bytes, chunks: list[int]) -> None:
    """Feed the bytes in pieces of these sizes; raises AssertionError if the server's books do not agree."""
    connection = Connection(_LIMITS, _METHODS, Counter(), 10**9)
    dataplane = FakeDataPlane()
    calls = Calls(Service(dataplane, _LIMITS, Counter()), connection, lambda: None)
    sent = 0
    rest, index = frames.PREFACE + frames.settings({}) + frames.SETTINGS_ACK + received, 0
    now_ns = 10**9
    while rest:
        size = max(1, chunks[index % len(chunks)]) if chunks else len(rest)
        calls.handle(connection.receive(rest[:size], now_ns))
        calls.handle(connection.tick(now_ns))
        rest, index, now_ns = rest[size:], index + 1, now_ns + 10**6
        out = b"".join(connection.sender.out)
        connection.sender.out.clear()
        parse(out)
        sent += len(out)
    assert sent < _MAX_OUT_BYTES
    assert len(connection.streams) <= _LIMITS.max_concurrent_streams
    assert calls.held_bytes <= _LIMITS.max_received_bytes + frames.DEFAULT_FRAME_BYTES
    calls.close()
    assert calls.held_bytes == 0
    assert all(request.settled for request in dataplane.requests)
