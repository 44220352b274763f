"""gRPC's messages in the DATA of a stream: a flag, a length, the bytes; and their compression.

Source: gRPC "gRPC over HTTP2", Length-Prefixed-Message; "Compression".
"""

from __future__ import annotations

import gzip
import zlib

from server.errors import InvalidRequest, PayloadTooLarge
from server.transport import inflate
from server.transport.http2.prefix import PREFIX_BYTES, read_prefix

IDENTITY = b"identity"
MESSAGE = "message"
"""What errors call one."""

_SMALL_BYTES = 1024
"""Of a part, in the mean, for which it is worth a copy not to be kept by itself."""

ENCODINGS = frozenset((IDENTITY, *(name.encode() for name in inflate.WINDOW_BITS)))


class MessageReader:
    """Takes the DATA of one stream, gives its messages. `buffered_bytes` are those of a message not yet whole."""

    __slots__ = ("_compressed", "_max_bytes", "_parts", "_wanted", "buffered_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self.buffered_bytes = 0
        self._wanted = PREFIX_BYTES
        self._compressed: bool | None = None
        """None while the prefix is read."""

    def feed(self, parts: list[bytes]) -> list[tuple[bool, bytes]]:
        """The messages that are whole now, with these parts of DATA, each with whether it is compressed.

        Raises:
            PayloadTooLarge: a message says that it is over the limit.
            InvalidRequest: the flag in front of a message is neither 0 nor 1.
        """
        size = sum(map(len, parts))
        # What comes with one read may be in frames of a byte: as a list it would weigh many times as much.
        self._parts += parts if size >= len(parts) * _SMALL_BYTES else [b"".join(parts)]
        self.buffered_bytes += size
        if self.buffered_bytes < self._wanted:
            return []
        return self._take(b"".join(self._parts))

    def _take(self, data: bytes) -> list[tuple[bool, bytes]]:
        messages: list[tuple[bool, bytes]] = []
        start = 0
        while len(data) - start >= self._wanted:
            end = start + self._wanted
            if self._compressed is None:
                self._read_prefix(data, start)
            else:
                messages.append((self._compressed, data[start:end]))
                self._compressed, self._wanted = None, PREFIX_BYTES
            start = end
        rest = data[start:]
        self._parts = [rest] if rest else []
        self.buffered_bytes = len(rest)
        return messages

    def _read_prefix(self, data: bytes, start: int) -> None:
        flag, length = read_prefix(data, start)
        if flag > 1:
            raise InvalidRequest(MESSAGE, f"has the compressed-flag {flag}, which is neither 0 nor 1")
        if length > self._max_bytes:
            raise PayloadTooLarge(MESSAGE, self._max_bytes, length)
        self._compressed, self._wanted = bool(flag), length

    def end(self) -> None:
        """The stream has ended. Raises InvalidRequest if it did so inside of a message."""
        if self.buffered_bytes or self._compressed is not None:
            raise InvalidRequest(MESSAGE, "is cut off by the end of the stream")


async def inflated(encoding: bytes, data: bytes, max_bytes: int) -> bytes:
    """A message that came compressed.

    Raises:
        PayloadTooLarge: it would be over `max_bytes`, of which no more than these are made.
        InvalidRequest: `data` is not of that encoding, or the call has none.
    """
    if encoding == IDENTITY:
        raise InvalidRequest(MESSAGE, "is compressed, and grpc-encoding does not say how")
    return await inflate.inflated(MESSAGE, data, encoding.decode(), max_bytes)


def deflate(encoding: bytes, message: bytes) -> bytes:
    """`message` compressed, lightly: it is sent once."""
    return gzip.compress(message, 1) if encoding == b"gzip" else zlib.compress(message, 1)
