"""The bytes of gRPC calls on a connection of HTTP/2 made by hand, and the little that is read of the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from server.transport.http2 import frames
from server.transport.http2.hpack import Decoder
from server.transport.http2.hpack_encode import encode

INFER = b"/inference.GRPCInferenceService/ModelInfer"
STREAM = b"/inference.GRPCInferenceService/ModelStreamInfer"
_LIST_BYTES = 65_536

Field = tuple[bytes, bytes]


def greeting(settings: dict[int, int]) -> bytes:
    """What a client sends first; the server's settings, which came with the connection, are acknowledged unread."""
    return frames.PREFACE + frames.settings(settings) + frames.SETTINGS_ACK


GREETING = greeting({})


def head(stream: int, *more: Field, path: bytes = INFER) -> bytes:
    """The headers of a call."""
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"soak")]
    fields += [(b"te", b"trailers"), (b"content-type", b"application/grpc"), *more]
    return frames.headers(stream, encode(fields), end_stream=False)


def message(stream: int, data: bytes, flags: int = 0) -> bytes:
    """A message in DATA frames, each within the first window and the frames that every server takes."""
    whole = b"\0" + len(data).to_bytes(4, "big") + data
    size = frames.DEFAULT_FRAME_BYTES
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    last = len(parts) - 1
    return b"".join(
        frames.frame(frames.DATA, flags if index == last else 0, stream, part) for index, part in enumerate(parts)
    )


def call(stream: int, data: bytes, *more: Field) -> bytes:
    """A whole unary call."""
    return head(stream, *more) + message(stream, data, frames.END_STREAM)


async def frame_of(reader: asyncio.StreamReader, *kinds: int) -> tuple[int, int, bytes]:
    """Kind, flags and payload of the next frame of one of these kinds. Raises asyncio.IncompleteReadError."""
    while True:
        high, low, kind, flags, _ = frames.read_header(await reader.readexactly(frames.FRAME_HEADER_BYTES))
        payload = await reader.readexactly(high << 8 | low)
        if kind in kinds:
            return kind, flags, payload


async def status_of(reader: asyncio.StreamReader) -> str | None:
    """The grpc-status of the call that is answered next; None where it was reset.

    Raises:
        asyncio.IncompleteReadError: the connection ended before.
    """
    decoder = Decoder()
    while True:
        kind, flags, payload = await frame_of(reader, frames.HEADERS, frames.RST_STREAM)
        if kind == frames.RST_STREAM:
            return None
        found = dict(decoder.decode(payload, _LIST_BYTES))
        if flags & frames.END_STREAM:
            return found.get(b"grpc-status", b"").decode()


def has_goaway(received: bytes) -> bool:
    return frames.GOAWAY in _kinds(received)


def _kinds(received: bytes) -> Iterator[int]:
    at = 0
    while at + frames.FRAME_HEADER_BYTES <= len(received):
        high, low, kind, _, _ = frames.read_header(received, at)
        yield kind
        at += frames.FRAME_HEADER_BYTES + (high << 8 | low)
