"""The chunked transfer coding, read strictly. Source: RFC 9112, section 7.1."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto

from server.transport.http1.head import Refused, malformed, too_large

_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_MAX_LINE_BYTES = 1024
"""Of a chunk's size and its extensions, which are ignored."""
_SPARE_CHUNKS = 8192
_MIN_CHUNK_BYTES = 64
"""Chunks beyond the spare ones must be as long as this on average: a read of chunks of one byte each would keep
the event loop for a long time."""


class _State(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILERS = auto()


class Chunked:
    """The reader of one body. `size` is what the sizes of its chunks sum to, up to now."""

    def __init__(self, max_body_bytes: int, max_trailer_bytes: int) -> None:
        self.size = 0
        self._max_body_bytes = max_body_bytes
        self._trailers_left = max_trailer_bytes
        self._state = _State.SIZE
        self._left = 0
        self._chunks = 0
        self._partial = b""

    @property
    def arrived(self) -> int:
        """Bytes of the body that were read."""
        return self.size - self._left

    def feed(self, data: bytes, keep: Callable[[bytes], None]) -> bytes | None:
        """Read on; `keep` gets the body, piece by piece. What follows the body's end, or None if that is not here yet.

        Raises:
            Refused: the coding is broken, or the body is too large.
        """
        if self._partial:
            data, self._partial = self._partial + data, b""
        at = 0
        while True:
            if self._state is _State.DATA:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                at += len(piece)
                keep(piece)
                if self._left:
                    return None
                self._state = _State.DATA_END
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                self._keep_partial(data[at:])
                return None
            if self._end_line(data[at:line_end]):
                return data[line_end + 2 :]
            at = line_end + 2

    def _keep_partial(self, rest: bytes) -> None:
        limit = {_State.SIZE: _MAX_LINE_BYTES, _State.DATA_END: 1, _State.TRAILERS: self._trailers_left}[self._state]
        if len(rest) > limit:
            raise self._too_long()
        # Told at once: a body that goes on for ever without a line's end.
        if b"\n" in rest:
            raise malformed("a line of the chunked body does not end in CRLF")
        self._partial = rest

    def _too_long(self) -> Refused:
        if self._state is _State.TRAILERS:
            return Refused(431, "head_too_large", "trailers: over the limit")
        return malformed("a chunk does not end where its size says, or its size line is too long")

    def _end_line(self, line: bytes) -> bool:
        """Take a line; True if it was the last one."""
        if self._state is _State.DATA_END:
            if line:
                raise self._too_long()
            self._state = _State.SIZE
        elif self._state is _State.SIZE:
            self._begin_chunk(line)
        elif not line:
            return True
        else:
            self._trailers_left -= len(line) + 2
            if self._trailers_left < 0:
                raise self._too_long()
            if not _FIELD.fullmatch(line):
                raise malformed("a trailer is no header field")
        return False

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line) if len(line) <= _MAX_LINE_BYTES else None
        if match is None:
            raise malformed("a chunk has no size in hexadecimal digits")
        self._left = int(match[1], 16)
        self.size += self._left
        self._chunks += 1
        if self.size > self._max_body_bytes:
            raise Refused(413, "body_too_large", too_large(self._max_body_bytes))
        if self._chunks > _SPARE_CHUNKS + self.size // _MIN_CHUNK_BYTES:
            raise malformed("its chunks are too small")
        self._state = _State.DATA if self._left else _State.TRAILERS
