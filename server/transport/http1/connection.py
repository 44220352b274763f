"""One HTTP/1 connection without its socket: bytes in, whole requests out, and when to give up.

A head is what stands before the first empty line; its bytes are looked up, or read once (`head.py`). A body is
counted before any of it is kept. After a request that is the connection's last, or a fault, nothing more is read.
Source: RFC 9112, sections 2.2, 6 and 9.
"""

from __future__ import annotations

from enum import Enum, auto
from io import BytesIO

from server.settings import HttpSettings
from server.transport.http1.chunked import Chunked
from server.transport.http1.head import END, Head, Heads, Refused, malformed
from server.transport.memory import Memory


class Phase(Enum):
    """What the peer is expected to send."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    OVER = auto()
    """Nothing that would be read."""


_MAX_EMPTY_LINES = 64
"""That arrive together: they are passed over one by one, and nobody has a use for them."""

# Names of the module: CPython 3.11 takes ten times as long to find a member through its class.
IDLE, HEAD, BODY, OVER = Phase.IDLE, Phase.HEAD, Phase.BODY, Phase.OVER


Received = tuple[Head, bytes, int]
"""A whole request: its head, its body, and when its head had arrived (`time.monotonic_ns`)."""


class Connection:
    """Give it what was received, take the requests from it. The body of a head with a `refusal` is empty."""

    __slots__ = (
        "_body_here",
        "_chunked",
        "_head",
        "_head_ns",
        "_heads",
        "_left",
        "_memory",
        "_memory_held",
        "_rest",
        "_settings",
        "_wants_continue",
        "fault",
        "phase",
        "refuses",
        "unread",
    )

    def __init__(self, heads: Heads, settings: HttpSettings, memory: Memory) -> None:
        self._heads = heads
        self._settings = settings
        self._memory = memory
        self._memory_held = 0
        self._rest = b""
        """What follows the last request: the begin of a head, or requests for which there was no room."""
        self._head: Head | None = None
        """Of the request whose body is under way."""
        self._head_ns = 0
        self._chunked: Chunked | None = None
        # It grows in place, and gives its bytes away without a copy.
        self._body_here = BytesIO()
        self._left = 0
        self._wants_continue = False
        self.phase: Phase = IDLE
        self.refuses = False
        """Among the requests were some whose head decides the answer; whoever answers them puts this back."""
        self.unread = False
        """The peer has sent, or may be sending, what nobody will read."""
        self.fault: Refused | None = None
        """Why the connection must end, once that is known."""

    @property
    def head(self) -> Head | None:
        """Of the request whose body is under way."""
        return self._head

    @property
    def waits_for_continue(self) -> bool:
        """The peer may send the body only once it is told so. Source: RFC 9110, section 10.1.1."""
        return self._wants_continue and self.body_bytes == 0

    def continued(self) -> None:
        """It was told."""
        self._wants_continue = False

    @property
    def body_bytes(self) -> int:
        """How much is here of the body that is under way."""
        if self._chunked is not None:
            return self._chunked.arrived
        return self._head.length - self._left if self._head is not None else 0

    @property
    def crowded(self) -> bool:
        """There may be requests for which there was no room."""
        return self.phase is HEAD and END in self._rest

    def receive(self, data: bytes, now_ns: int, room: int) -> list[Received]:
        """The requests that are complete with `data`, at most `room`; what follows them waits for the next call.

        Sets `fault` where the bytes are no HTTP, or over a limit; requests before the fault are good.
        """
        received: list[Received] = []
        if self.phase is OVER:
            self.unread = True
            return received
        try:
            if self._head is not None:
                data = self._body(data, received)
            elif self._rest:
                data, self._rest = self._rest + data, b""
            if data:
                self._messages(data, now_ns, room, received)
        except Refused as refused:
            self._fail(refused)
        return received

    def give_up(self, refused: Refused) -> None:
        """Read no more: the peer took too long, for example."""
        self._fail(refused)

    def close(self) -> None:
        """The connection is gone."""
        self.phase = OVER
        self._forget_body()
        self._rest = b""

    def _fail(self, refused: Refused) -> None:
        # One that was not raised: the frames of a traceback would hold this connection, which holds the fault.
        self.fault = Refused(refused.status, refused.cause, refused.problem)
        self.unread = True
        head = self._head
        self.close()
        self._head = head  # Whoever writes the answer wants to know whether this was HEAD.

    def _messages(self, data: bytes, now_ns: int, room: int, received: list[Received]) -> None:
        at, size = 0, len(data)
        while at < size:
            if data[at] == 13:
                at = _past_empty_lines(data, at)
                if at >= size - 1:
                    break
            end = data.find(END, at) + 4
            if end < 4:
                self._heads.check_begin(data[at:])
                break
            if len(received) >= room:
                break
            head = self._heads.find(data[at:end])
            at = end + head.length
            if at > size or head.chunked or (head.refusal is not None and head.length):
                data = self._begin_body(head, data[end:], now_ns, received)
                at, size = 0, len(data)
                if self.phase in (BODY, OVER):
                    return
                continue
            received.append((head, data[end:at] if head.length else b"", now_ns))
            if head.refusal is not None:
                self.refuses = True
            if not head.keep_alive:
                self.phase = OVER
                self.unread = at < size
                return
        self._rest = data[at:] if at else data
        self.phase = HEAD if self._rest else IDLE

    # --- bodies that do not come at once --------------------------------------------------------------

    def _begin_body(self, head: Head, data: bytes, now_ns: int, received: list[Received]) -> bytes:
        """The body of `head` is chunked, or not all here, or to be dropped. Returns what follows it."""
        self._head_ns = now_ns
        if head.refusal is not None and (head.expects_continue or head.length > self._settings.max_body_bytes):
            # Nobody can tell whether the body will come, or it is too long to be waited for.
            received.append((head, b"", now_ns))
            self.refuses = True
            self.phase = OVER
            self.unread = True
            return b""
        self._head = head
        self.phase = BODY
        self._wants_continue = head.expects_continue
        self._left = head.length
        if head.chunked:
            self._chunked = Chunked(self._settings.max_body_bytes, self._settings.max_head_bytes)
        return self._body(data, received)

    def _body(self, data: bytes, received: list[Received]) -> bytes:
        """Take what belongs to the body; returns what follows it, empty while it is not complete."""
        head = self._head
        assert head is not None
        rest = self._piece(data) if self._chunked is None else self._chunked.feed(data, self._keep)
        if rest is None:
            return b""
        received.append((head, self._body_here.getvalue(), self._head_ns))
        if head.refusal is not None:
            self.refuses = True
        self._forget_body()
        if head.keep_alive:
            self.phase = IDLE
            return rest
        self.phase = OVER
        self.unread = bool(rest)
        return b""

    def _piece(self, data: bytes) -> bytes | None:
        piece = data[: self._left]
        self._left -= len(piece)
        self._keep(piece)
        return None if self._left else data[len(piece) :]

    def _keep(self, piece: bytes) -> None:
        if self._head is None or self._head.refusal is not None:
            return
        if not self._memory.take(len(piece)):
            raise Refused(503, "out_of_memory", "body: too many large bodies are under way, try again later")
        self._memory_held += len(piece)
        self._body_here.write(piece)

    def _forget_body(self) -> None:
        self._memory.give_back(self._memory_held)
        self._memory_held = 0
        self._head = None
        self._chunked = None
        self._body_here = BytesIO()
        self._left = 0
        self._wants_continue = False


def _past_empty_lines(data: bytes, at: int) -> int:
    """A few empty lines before a request line are skipped. Source: RFC 9112, section 2.2."""
    end = at
    while data.startswith(b"\r\n", end):
        end += 2
    if end - at > 2 * _MAX_EMPTY_LINES:
        raise malformed("has too many empty lines before it")
    return end
