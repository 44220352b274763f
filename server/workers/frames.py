"""Frames on a stream between two processes of one server: a length, a kind, a body.

Little endian: u32 bytes of the body, u8 kind, body. What is no frame is a fault of the other side, after which
nothing on the stream means anything: `BadFrame`, and the link is closed.
"""

from __future__ import annotations

import struct
from enum import IntEnum

HEAD = struct.Struct("<IB")
MAX_FRAME_BYTES = 1 << 30
"""Of a body. Messages of clients are held to their own limits; this is against a length that is none."""


class BadFrame(Exception):
    """What came is no frame, or a body that is not what its kind says."""


class Kind(IntEnum):
    INFER = 1
    """To the engine process: a checked request."""
    CANCEL = 2
    """To the engine process: nobody waits for these any more."""
    RELEASE = 3
    """To the engine process: nothing more will come for that version."""
    ANSWER = 4
    """To a front: outputs."""
    FAILURE = 5
    """To a front: an error instead of outputs."""
    MODELS = 6
    """To a front: the versions in service from here on, and the index."""
    HEALTH = 7
    """To a front: whether every queue of the engine process moves. Sent all the time: its absence tells as well."""
    ASK = 8
    """Either way: a question that is answered by one REPLY of the same number."""
    REPLY = 9
    PIECE = 10
    """To a front: outputs, behind which more will come."""
    TAKEN = 11
    """To the engine process: the caller of that request takes another piece."""


_KINDS = frozenset(Kind)


class Frames:
    """Bytes in, whole frames out. Bodies are views on what came, copied only where it came in parts."""

    def __init__(self, limit_bytes: int = MAX_FRAME_BYTES) -> None:
        self._limit = limit_bytes
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 0
        """With so many bytes the first frame goes on: its head, or all of it."""

    def feed(self, data: bytes) -> list[tuple[int, memoryview]]:
        """The frames that are whole now. Raises BadFrame: an unknown kind, or a body over the limit."""
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._parts)
            self._parts = []
        view, at, size = memoryview(data), 0, len(data)
        frames: list[tuple[int, memoryview]] = []
        self._need = HEAD.size
        while size - at >= HEAD.size:
            length, kind = HEAD.unpack_from(data, at)
            if kind not in _KINDS or length > self._limit:
                raise BadFrame(f"kind {kind}, {length} bytes")
            end = at + HEAD.size + length
            if end > size:
                self._need = HEAD.size + length
                break
            frames.append((kind, view[at + HEAD.size : end]))
            at = end
        if at < size:
            self._parts, self._have = [data[at:]], size - at
        return frames


def frame(kind: Kind, *parts: bytes | bytearray | memoryview) -> bytes:
    """One frame, its body joined of `parts`."""
    return b"".join((HEAD.pack(sum(map(len, parts)), kind), *parts))
