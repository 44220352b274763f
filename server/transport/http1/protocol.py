"""One HTTP/1 connection on its socket: answers in the order of the requests, back-pressure, time-outs, the end.

A request that arrives is a `Turn`; whoever answers it calls `reply` or `reply_ok`, at once or later. Turns that
arrive together are handed over together. Nothing here awaits.

Source: RFC 9112, section 9.3.2 (pipelining), 9.6 (tear-down).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from server.transport.http1.connection import BODY, HEAD, IDLE, OVER, Connection, Phase
from server.transport.http1.head import Head, Refused
from server.transport.http1.reply import CONTINUE, Headers, Reply, error_reply, render
from server.transport.http1.streaming import Stream

if TYPE_CHECKING:
    from server.transport.http1.server import Http1Server

_JOIN_BYTES = 64 * 1024
"""Answers up to here are joined before they are written; of larger ones the parts are not copied."""
_CLOSE = b"connection: close\r\n"
_KEEP_ALIVE = b"connection: keep-alive\r\n"


class Turn:
    """One request, and the place of its answer in the order of its connection."""

    __slots__ = ("_protocol", "answer", "body", "formats", "head", "received_ns", "work")

    def __init__(self, protocol: Http1Protocol, head: Head | None, body: bytes, received_ns: int) -> None:
        """`head` is None for an answer to bytes that were no request."""
        self._protocol = protocol
        self.head = head
        self.body = body
        self.received_ns = received_ns
        """When its head had arrived, by `time.monotonic_ns`."""
        self.work: Any = None
        """What the application needs to abandon it."""
        self.formats: Any = None
        """What the application needs to answer it."""
        self.answer: Sequence[Any] | None = None
        """Its bytes, in parts, once it was answered."""

    def reply(self, reply: Reply) -> None:
        """Answer. Whatever comes after the first answer, or after the connection is gone, is dropped."""
        if self.answer is not None:
            return
        head, protocol = self.head, self._protocol
        connection = protocol.connection_header(self)
        head_only = head is not None and head.method == "HEAD"
        self.answer = (render(reply, protocol.server.clock.date, connection, head_only=head_only),)
        self.work = None
        protocol.answered(self)

    def stream(self, status: int, headers: Headers) -> Stream:
        """Answer in pieces. An answer to HEAD is to be ended at once."""
        stream = Stream(self._protocol, self, status, headers)
        self._protocol.streams.append(stream)
        return stream

    def finish(self, rest: bytes) -> None:
        """What is left of an answer in pieces."""
        self.answer = (rest,)
        self.work = None
        self._protocol.answered(self)

    def reply_ok(self, parts: Sequence[Any]) -> None:
        """Answer 200 to a request that is not HEAD. `parts` are the header fields but for `Connection` and
        `Date`, an empty line, and the body; they must not change afterwards."""
        if self.answer is not None:
            return
        protocol = self._protocol
        server = protocol.server
        if self.head.plain and not server.draining:  # type: ignore[union-attr]  # only Turns of requests get here
            self.answer = (server.clock.ok, *parts)
        else:
            self.answer = (server.clock.ok, protocol.connection_header(self), *parts)
        self.work = None
        protocol.answered(self)


class Http1Protocol(asyncio.Protocol):
    """Made by `Http1Server` for each connection."""

    __slots__ = (
        "_clock",
        "_closing",
        "_connection",
        "_max_pipelined",
        "_paused_bytes",
        "_paused_ns",
        "_phase",
        "_reading",
        "_since_ns",
        "_transport",
        "_turns",
        "server",
        "streams",
    )

    def __init__(self, server: Http1Server) -> None:
        self.server = server
        self._clock = server.clock
        self._max_pipelined = server.settings.max_pipelined_requests
        self._transport: asyncio.Transport | None = None
        self._connection = Connection(server.heads, server.settings, server.memory)
        self._turns: deque[Turn] = deque()
        """Requests whose answer was not written yet."""
        self._phase: Phase = IDLE
        self._since_ns = 0
        """Since when the peer is waited for: for its next request, its head, its body, or its close."""
        self._reading = True
        self._closing = False
        """The last answer was written; what comes is thrown away until the peer closes."""
        self._paused_ns = 0
        """Since when the peer takes no more of its answers; 0: it does."""
        self._paused_bytes = 0
        self.streams: list[Stream] = []
        """Answers in pieces that are under way, or wait for their turn."""

    # --- what asyncio calls ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a stream's is one
        server = self.server
        self._since_ns = time.monotonic_ns()
        if server.draining or not server.connections.admit(self):
            self._closing = True
            reply = error_reply(503, "the server takes no more connections now, try again later")
            transport.write(render(reply, server.clock.date, _CLOSE, head_only=False))
            transport.close()
            return
        transport.set_write_buffer_limits(high=server.settings.max_unsent_bytes)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        clock = self._clock
        if now_ns >= clock.stale_ns:
            clock.tick(now_ns)
        if not self._closing:
            self._receive(data, now_ns)

    def eof_received(self) -> bool:
        """A peer that sends no more is gone: of a half-closed one nobody can tell the difference."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closing = True
        self._connection.close()
        turns, self._turns = self._turns, deque()
        for turn in turns:
            if turn.answer is None:
                self.server.app.abandon(turn)
        self.server.lost(self)

    def pause_writing(self) -> None:
        if self._transport is None:
            return  # It was turned away.
        self._paused_ns = time.monotonic_ns()
        self._paused_bytes = self._transport.get_write_buffer_size()
        self._steer()

    def resume_writing(self) -> None:
        self._paused_ns = 0
        self._since_ns = time.monotonic_ns()
        self._go_on()

    # --- requests in ----------------------------------------------------------------------------------

    def _receive(self, data: bytes, now_ns: int) -> None:
        connection, waiting = self._connection, self._turns
        received = connection.receive(data, now_ns, self._max_pipelined - len(waiting))
        phase = connection.phase
        if received:
            self._since_ns = now_ns
            turns: list[Turn] = []
            for head, body, received_ns in received:
                turn = Turn(self, head, body, received_ns)
                turns.append(turn)
                waiting.append(turn)
            if phase is not self._phase:
                self._enter(phase)
            if connection.refuses:
                turns = self._refuse(turns)
            self.server.app.take(turns)
        elif phase is not self._phase:
            self._since_ns = now_ns
            self._enter(phase)
        if phase is not IDLE or len(waiting) > 1:
            self._go_on()

    def _refuse(self, turns: list[Turn]) -> list[Turn]:
        """Answer those whose head decides the answer; returns the others."""
        self._connection.refuses = False
        others: list[Turn] = []
        for turn in turns:
            refusal = turn.head.refusal if turn.head is not None else None
            if refusal is None:
                others.append(turn)
                continue
            if refusal.status == 413:
                self.server.connections.count_closed("body_too_large")
            turn.reply(refusal)
        return others

    def _enter(self, phase: Phase) -> None:
        """If the connection ends with a fault, its answer goes behind those of all requests."""
        self._phase = phase
        fault = self._connection.fault
        if phase is OVER and fault is not None:
            self.server.connections.count_closed(fault.cause)
            turn = Turn(self, self._connection.head, b"", 0)
            self._turns.append(turn)
            turn.reply(error_reply(fault.status, fault.problem))

    def _send_continue(self) -> None:
        if self._transport is not None:
            self._transport.write(CONTINUE)
            self._connection.continued()

    # --- answers out ----------------------------------------------------------------------------------

    def connection_header(self, turn: Turn) -> bytes:
        """The `Connection` field that an answer needs, empty for none."""
        if self._is_last(turn):
            return _CLOSE
        return b"" if turn.head is not None and turn.head.plain else _KEEP_ALIVE

    def _is_last(self, turn: Turn) -> bool:
        if not self._turns or turn is not self._turns[-1]:
            return False
        return self._connection.phase is OVER or (self.server.draining and self._connection.phase is IDLE)

    def answered(self, turn: Turn) -> None:
        """Write the answers whose turn it is."""
        turns, transport = self._turns, self._transport
        if not turns or turns[0] is not turn or transport is None:
            return
        if len(turns) == 1:
            turns.pop()
            _write(transport, turn.answer)  # type: ignore[arg-type]  # it has one
            if self._phase is not IDLE or self.server.draining:
                self._go_on()
            return
        while turns and turns[0].answer is not None:
            _write(transport, turns.popleft().answer)  # type: ignore[arg-type]
        self._go_on()

    def may_write(self, turn: Turn) -> bool:
        """Its turn has come, and the peer takes more."""
        return bool(self._turns) and self._turns[0] is turn and not self._paused_ns and self._transport is not None

    def write_piece(self, data: bytes) -> None:
        """Of the answer whose turn it is."""
        assert self._transport is not None
        self._transport.write(data)

    def make_last(self, turn: Turn) -> None:
        """Nothing is answered behind this one, whatever was asked, and no more is read."""
        connection = self._connection
        if turn not in self._turns:
            return  # Its peer is gone.
        connection.unread |= self._turns[-1] is not turn or connection.phase in (HEAD, BODY)
        connection.close()
        self._enter(OVER)
        while self._turns[-1] is not turn:
            later = self._turns.pop()
            if later.answer is None:
                self.server.app.abandon(later)

    def _go_on(self) -> None:
        """An answer was written, or can be: read what had no room, or close if that was the last one."""
        connection = self._connection
        if self._closing or self._transport is None:
            return
        if not self._turns:
            if connection.phase is OVER:
                self._close()
                return
            if self.server.draining and connection.phase is IDLE:
                self._transport.close()
                return
            if connection.waits_for_continue:
                self._send_continue()
        for stream in self.streams:
            stream.wake()
        self._steer()
        if connection.crowded and self._reading:
            asyncio.get_running_loop().call_soon(self._receive_rest)

    def _receive_rest(self) -> None:
        if not self._closing and self._connection.crowded:
            self._receive(b"", time.monotonic_ns())

    def _steer(self) -> None:
        """Read only while the peer takes its answers and has not too many requests under way."""
        if self._transport is None or self._closing:
            return
        full = len(self._turns) >= self._max_pipelined
        reading = not (self._paused_ns or full)
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # --- the end --------------------------------------------------------------------------------------

    def _close(self) -> None:
        """After the last answer. If the peer may still be sending, it is let finish for a while: a socket that is
        closed with bytes unread resets the connection, and the answer may be lost with it."""
        transport = self._transport
        assert transport is not None
        self._closing = True
        self._since_ns = time.monotonic_ns()
        if not self._connection.unread:
            transport.close()
            return
        if not self._reading:
            self._reading = True
            transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()

    def drain(self) -> None:
        """Take no new request; what is under way is answered, and the connection closed behind it."""
        if self._transport is not None and not self._turns and self._connection.phase is IDLE:
            self._transport.close()

    def cut_off(self) -> None:
        """The grace is over: what is not answered is abandoned, and what is not complete is dropped."""
        for turn in list(self._turns):
            if turn.answer is None:
                self.server.app.abandon(turn)
        if self._transport is not None and not self._turns:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def check_time(self, now_ns: int) -> None:
        """Close what has lasted too long; called now and then."""
        settings, connection = self.server.settings, self._connection
        phase, waited_s = connection.phase, (now_ns - self._since_ns) / 1e9
        if self._paused_ns:
            self._check_reader(now_ns)
        elif self._closing:
            if waited_s > (settings.linger_s if connection.unread else settings.write_timeout_s):
                self.abort()
        elif self._turns and (phase is not BODY or connection.waits_for_continue):
            self._since_ns = now_ns
        elif phase is IDLE and waited_s > settings.keep_alive_s:
            if self._transport is not None:
                self.server.connections.count_closed("idle")
                self._transport.close()
        elif phase is HEAD and waited_s > settings.head_timeout_s:
            self._time_out("slow_head", f"request head: not complete after {settings.head_timeout_s:g} s")
        elif phase is BODY:
            allowed_s = settings.body_timeout_s + connection.body_bytes / settings.min_bytes_per_s
            if waited_s > allowed_s:
                self._time_out("slow_body", f"body: {connection.body_bytes} bytes after {waited_s:.0f} s, too slow")

    def _time_out(self, cause: str, problem: str) -> None:
        self._connection.give_up(Refused(408, cause, problem))
        self._enter(OVER)
        self._go_on()

    def _check_reader(self, now_ns: int) -> None:
        assert self._transport is not None
        settings = self.server.settings
        taken = self._paused_bytes - self._transport.get_write_buffer_size()
        earned_s = max(0, taken) / settings.min_bytes_per_s
        if (now_ns - self._paused_ns) / 1e9 > settings.write_timeout_s + earned_s:
            self.server.connections.count_closed("slow_reader")
            self.abort()


def _write(transport: asyncio.Transport, parts: Sequence[Any]) -> None:
    few = len(parts) <= 3 and len(parts[-1]) <= _JOIN_BYTES
    if few or sum(map(len, parts)) <= _JOIN_BYTES:
        transport.write(b"".join(parts))
    else:
        transport.writelines(parts)
