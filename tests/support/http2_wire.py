"""A client of HTTP/2 on a socket, which knows frames and nothing of what they mean."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

from server.transport.http2 import frames
from server.transport.http2.frames import ErrorCode
from tests.support.http2_client import Frame, parse

PATIENCE_S = 5.0
CLOSED = Frame(-1, 0, 0, b"")
"""What is read when the server has closed its side."""
Wanted = Callable[[Frame], bool]


class Wire:
    """A connection, on which the server has said its SETTINGS."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self._frames = self._read()
        first = next(self._frames)
        assert (first.kind, first.flags) == (frames.SETTINGS, 0), first

    def _read(self) -> Iterator[Frame]:
        received = b""
        while True:
            end = frames.FRAME_HEADER_BYTES + int.from_bytes(received[:3])
            if len(received) >= end:
                yield from parse(received[:end])
                received = received[end:]
            elif part := self.socket.recv(65_536):
                received += part
            else:
                yield CLOSED

    def send(self, part: bytes) -> None:
        self.socket.sendall(part)

    def until(self, wanted: Wanted) -> Frame:
        """The first such frame. No error may come before it, nor the answer to a PING, nor the end."""
        found = next(self._frames)
        while not wanted(found):
            reset = found.kind == frames.RST_STREAM and found.code is not ErrorCode.NO_ERROR
            assert not reset, found
            assert found.kind not in (frames.GOAWAY, frames.PING, CLOSED.kind), found
            found = next(self._frames)
        return found
