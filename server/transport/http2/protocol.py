"""A socket and the connection on it: bytes read go in, bytes to send go out once for each turn of the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import cast

from server.afterwards import afterwards
from server.transport.connections import TOO_MANY, Connections
from server.transport.http2.calls import Calls, Service
from server.transport.http2.connection import Connection
from server.transport.http2.frames import ConnectionFault, ErrorCode
from server.transport.methods import Method

_LINGER_NS = 1_000_000_000
"""How long a client may take to close its side, once ours is. Closing at once could reset what it has yet to read."""


_HOLD_PART = 0.04
_SHORTEST_HOLD_NS, _LONGEST_HOLD_NS = 1_000_000, 5_000_000
"""A client that is told that it asks for too much is heard again after this part of the time that its request had, and
what it sent meanwhile is read together. To wake for each request that is refused, and to drive the passes' data out of
the core's cache, would take a tenth of the core from those that are answered."""


class Http2Protocol(asyncio.Protocol):
    def __init__(
        self, service: Service, methods: Mapping[bytes, Method], connections: Connections[Http2Protocol]
    ) -> None:
        self._service = service
        self._connections = connections
        plane = service.dataplane
        self.connection = Connection(
            service.settings, methods, service.refused, time.monotonic_ns(), plane.forwards, plane.gate
        )
        self._calls = Calls(service, self.connection, self._answered)
        self._loop = asyncio.get_running_loop()
        self._flush_due = False
        self._paused_ns = 0
        self._held_ns = 0
        """Since when the client is not heard, or was not before `_heard_ns`."""
        self._heard_ns = 0
        self._hold: asyncio.TimerHandle | None = None
        self._left_ns = 0
        """When our side was closed; 0: it is open."""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._service.settings.send_buffer_bytes)
        if self._connections.admit(self):
            self._flush()
        else:
            self.connection.fail(ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many connections", TOO_MANY))
            self._leave()
            # Nobody will tell this one the time.
            self._loop.call_later(_LINGER_NS / 1e9, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        if now_ns < self._heard_ns:
            # It may have waited in the socket all the time, and its deadlines are as old.
            now_ns = self._held_ns
        events = self.connection.receive(data, now_ns)
        if events:
            self._calls.handle(events)
        if self.connection.sender.out and not self._flush_due:
            self._flush()
        if self.connection.fault is not None or self.connection.done:
            self._leave()

    def eof_received(self) -> bool:
        """The client has closed its side: it can't be answered to any use, but what it asked for may have effects."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        self._connections.discard(self)
        self._left_ns = time.monotonic_ns()
        if self._hold is not None:
            self._hold.cancel()
        self._calls.close()

    def pause_writing(self) -> None:
        """The client reads more slowly than it asks: its requests wait until it has caught up."""
        self._paused_ns = time.monotonic_ns()
        self._calls.writable = False
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused_ns = 0
        self._calls.writable = True
        if not self._transport.is_closing():
            if self._hold is None:
                self._transport.resume_reading()
            self._calls.resume()

    def _hold_back(self) -> None:
        """The client asks for more than can be done: do not hear it for a moment."""
        hold_ns = min(self._calls.refused_ns * _HOLD_PART, _LONGEST_HOLD_NS)
        self._calls.refused_ns = 0
        if hold_ns < _SHORTEST_HOLD_NS or self._paused_ns or self._hold is not None or self._transport.is_closing():
            return
        self._held_ns = time.monotonic_ns()
        self._transport.pause_reading()
        self._hold = self._loop.call_later(hold_ns / 1e9, self._hear)

    def _hear(self) -> None:
        self._hold = None
        if not self._paused_ns and not self._transport.is_closing():
            self._heard_ns = time.monotonic_ns() + _SHORTEST_HOLD_NS
            self._transport.resume_reading()

    def _answered(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            afterwards(self._flush)

    def _flush(self) -> None:
        """Write what there is to send, and leave if that was all."""
        self._flush_due = False
        self._write()
        if self._calls.refused_ns:
            self._hold_back()
        if self.connection.done:
            self._leave()

    def _write(self) -> None:
        out = self.connection.sender.out
        if out and not self._left_ns:
            self._transport.write(b"".join(out))
            if self._paused_ns and self._unsent_bytes() > self._service.settings.max_send_bytes:
                self._abort("slow_reader")
        out.clear()

    def held_bytes(self) -> int:
        """What the client makes us keep: requests that are not whole, answers that it does not take."""
        return self._calls.held_bytes + self._unsent_bytes()

    def _unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() + self.connection.sender.pending_bytes

    def tick(self, now_ns: int) -> None:
        """The time is `now_ns`; called a few times a second."""
        events = self.connection.tick(now_ns)
        self._calls.handle(events)
        if self.connection.sender.out:
            self._flush()
        if self._paused_ns and now_ns - self._paused_ns > self._service.settings.send_timeout_s * 1e9:
            self._abort("slow_reader")
        elif self._left_ns and now_ns - self._left_ns > _LINGER_NS:
            self._transport.abort()
        elif self.connection.fault is not None or self.connection.done:
            self._leave()

    def drain(self, grace_s: float) -> None:
        """Ask the client to leave; after the grace the connection ends."""
        self.connection.drain(time.monotonic_ns(), grace_s)
        self._flush()

    def shut(self) -> None:
        """Answer what is left as UNAVAILABLE, and leave."""
        self._calls.shut()
        self.connection.fail(ConnectionFault(ErrorCode.NO_ERROR, "shutting down", "shutdown"))
        self._leave()

    def abort(self) -> None:
        self._transport.abort()

    def _abort(self, cause: str) -> None:
        self._connections.count_closed(cause)
        self._transport.abort()

    def _leave(self) -> None:
        """Close our side, and the socket when the client has closed its own."""
        if self._left_ns:
            return
        fault = self.connection.fault
        cause = self.connection.leaves if fault is None else fault.cause
        if cause and cause not in (TOO_MANY, "shutdown"):
            self._connections.count_closed(cause)
        self._write()
        self._left_ns = time.monotonic_ns()
        self._calls.close()
        try:
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()
        except OSError:
            # The client is gone, and the loop has yet to notice.
            self._transport.abort()
