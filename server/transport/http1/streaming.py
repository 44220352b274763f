"""An answer in pieces: each is written as soon as it is there, its turn has come and the peer has room for it.

HTTP/1.1 has the chunked coding for it. To HTTP/1.0, which has not, the end of the connection is the end of the answer.
Source: RFC 9112, sections 6.3, 7.1 and 9.3.2; RFC 9110, section 9.3.2.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from server.transport.http1.reply import Headers, render_head

if TYPE_CHECKING:
    from server.transport.http1.protocol import Http1Protocol, Turn

_CHUNKED = b"transfer-encoding: chunked\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


class Stream:
    """The answer to one turn. `send` pieces, then `end` it, once; whoever is cancelled in between ends it as well.

    Nothing is written before the first piece or the end, so that both leave with the head.
    """

    __slots__ = ("_chunked", "_headers", "_protocol", "_status", "_turn", "_wake")

    def __init__(self, protocol: Http1Protocol, turn: Turn, status: int, headers: Headers) -> None:
        self._protocol = protocol
        self._turn = turn
        self._status = status
        self._headers: Headers | None = headers
        """None: they are written."""
        self._wake = asyncio.Event()
        self._chunked = turn.head is not None and turn.head.version >= (1, 1)
        if not self._chunked:
            protocol.make_last(turn)

    def wake(self) -> None:
        """Something has changed: look again."""
        self._wake.set()

    async def send(self, piece: bytes) -> None:
        """Returns when the piece was written: the turns before this one are answered, and the peer takes its answers.
        If the peer goes away meanwhile the application is told to abandon the turn."""
        while not self._protocol.may_write(self._turn):
            self._wake.clear()
            await self._wake.wait()
        if piece:
            self._protocol.write_piece(self._head() + self._framed(piece))

    def end(self, piece: bytes = b"") -> None:
        """The answer is over, with a last piece. To a HEAD nothing but the head is written."""
        if self._turn.answer is not None:
            return
        self._protocol.streams.remove(self)
        parts = [self._head()]
        if not self._head_only:
            parts += [self._framed(piece), _LAST_CHUNK if self._chunked else b""]
        self._turn.finish(b"".join(parts))

    @property
    def _head_only(self) -> bool:
        return self._turn.head is not None and self._turn.head.method == "HEAD"

    def _head(self) -> bytes:
        """The head, where it is not written yet."""
        if self._headers is None:
            return b""
        headers, self._headers = self._headers, None
        protocol = self._protocol
        framing = protocol.connection_header(self._turn) + (_CHUNKED if self._chunked else b"")
        return render_head(self._status, headers, protocol.server.clock.date, framing)

    def _framed(self, piece: bytes) -> bytes:
        # An empty chunk would be the last one.
        return b"%x\r\n%s\r\n" % (len(piece), piece) if piece and self._chunked else piece
