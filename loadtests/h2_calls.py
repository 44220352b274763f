"""Unary gRPC calls as the bytes of their HTTP/2 frames, prepared before anything is sent.

What clients repeat and what they change decides how much of a server's work can be saved, so there are variants:

    same      every call has the same headers and the same message: one block of indexed fields, again and again
    literals  `grpc-timeout` and `traceparent` differ on each call, as Huffman-coded literals that are not indexed
    inserted  the same two, inserted in the dynamic table each time, so that it is always on the move
    ids       the headers stay, the request's `id` differs on each call

Source: RFC 9113 (frames), RFC 7541 (HPACK), gRPC's PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from hpack import Encoder
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from tritonclient.grpc import service_pb2 as pb

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

TABLE_BYTES = 4096
"""The dynamic table that HPACK begins with; a server may allow less."""

Header = tuple[str, str]
_huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


@dataclass(frozen=True)
class Calls:
    frames: Sequence[bytes]
    """Of each call HEADERS and DATA; the streams are 1, 3, 5, ..."""
    message_bytes: int
    """The largest message with its prefix: what it takes from the windows."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def prepare(
    variant: str, message: bytes, path: str, authority: str, count: int, table_bytes: int = TABLE_BYTES
) -> Calls:
    """`count` calls of a variant, for a connection whose server allows a dynamic table of `table_bytes`.

    Raises:
        KeyError: there is no such variant.
    """
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "forwardpass-replay"),
    ]
    encoder = Encoder()
    encoder.header_table_size = min(TABLE_BYTES, table_bytes)
    blocks = BLOCKS[variant](encoder, headers, count)
    messages = _with_ids(message, count) if variant == "ids" else [message] * count
    frames = []
    for index, block in enumerate(blocks):
        stream = 2 * index + 1
        data = b"\0" + len(messages[index]).to_bytes(4, "big") + messages[index]
        frames.append(frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, data))
    return Calls(frames, max(map(len, messages)) + 5)


def _same(encoder: Encoder, headers: Sequence[Header], count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield encoder.encode(headers)


def _literals(encoder: Encoder, headers: Sequence[Header], count: int) -> Iterator[bytes]:
    for differing in _differing(count):
        yield encoder.encode(headers) + b"".join(map(literal, differing))


def _inserted(encoder: Encoder, headers: Sequence[Header], count: int) -> Iterator[bytes]:
    for differing in _differing(count):
        yield encoder.encode([*headers, *differing])


BLOCKS: dict[str, Callable[[Encoder, Sequence[Header], int], Iterator[bytes]]] = {
    "same": _same,
    "literals": _literals,
    "inserted": _inserted,
    "ids": _same,
}


def literal(header: Header) -> bytes:
    """A literal field without indexing, name and value Huffman-coded (RFC 7541, 6.2.2)."""
    return b"\0" + b"".join(map(_huffman_string, header))


def _huffman_string(text: str) -> bytes:
    coded: bytes = _huffman.encode(text.encode())
    assert len(coded) < 0x7F, "a longer string needs an integer of several bytes"
    return bytes([0x80 | len(coded)]) + coded


def _differing(count: int) -> Iterator[list[Header]]:
    """Timeouts of 20 s and some microseconds, and W3C trace contexts: seeded, none twice."""
    rng = Random(0)
    for index in range(count):
        trace = f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-01"
        yield [("grpc-timeout", f"{20_000_000 + index}u"), ("traceparent", trace)]


def _with_ids(message: bytes, count: int) -> list[bytes]:
    request = pb.ModelInferRequest.FromString(message)
    messages = []
    for index in range(count):
        request.id = f"{index:08d}"
        messages.append(request.SerializeToString())
    return messages
