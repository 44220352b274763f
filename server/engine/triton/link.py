"""Unary calls to one Triton over a connection of our own (`wire.py`): opened when it is needed, pinged, opened anew.

Everything runs on the event loop in plain calls; a call costs no task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import lru_cache, partial
from typing import cast

from server.engine.triton.addresses import Endpoint
from server.engine.triton.wire import Answered, Failed, Fate, Result, Stream, Wire
from server.settings import TritonSettings
from server.transport.http2.frames import ConnectionFault, goaway
from server.transport.http2.hpack_encode import encode
from server.types import Metadata

log = logging.getLogger(__name__)

DEADLINE_EXCEEDED = 4
_UNITS = ((b"u", 1), (b"m", 1000), (b"S", 1_000_000), (b"M", 60_000_000))
_MOST_DIGITS = 99_999_999


class Link:
    """To one address, in plain text."""

    def __init__(self, endpoint: Endpoint, settings: TritonSettings, max_message_bytes: int) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._max_message_bytes = max_message_bytes
        self._authority = settings.tls_server_name or endpoint.authority
        self._socket: _Socket | None = None
        self._opening: asyncio.Task[None] | None = None
        self._unsent: list[_Call] = []
        """Until there is a connection."""
        self._closed = False
        self._under_way: set[_Call] = set()
        self._landed: asyncio.Event | None = None

    def call(
        self,
        path: str,
        message: bytes,
        timeout_s: float | None,
        metadata: Metadata,
        done: Callable[[Result], None],
        *,
        cancels: bool = True,
    ) -> Callable[[], None]:
        """Make a call; `done` hears its result once, later. Returns what gives it up, of which `done` hears at once.

        `cancels`: the server hears of that, and of the time that there is. Else its answer is waited for by nobody.
        """
        block = _head(path, self._authority)
        if timeout_s is not None and cancels:
            block += encode([(b"grpc-timeout", _timeout(timeout_s))])
        if metadata:
            block += encode([(name.encode(), value.encode("latin-1", "replace")) for name, value in metadata])
        call = _Call(self, block, message, done, cancels=cancels)
        self._under_way.add(call)
        if timeout_s is not None:
            call.timer = asyncio.get_running_loop().call_later(timeout_s, call.expire)
        socket = self._socket
        if socket is not None and not socket.wire.over:
            call.go(socket)
        else:
            self._unsent.append(call)
            self._open_soon()
        return call.give_up

    async def reply(
        self, path: str, message: bytes, timeout_s: float | None, metadata: Metadata = (), *, cancels: bool = True
    ) -> Result:
        """As `call`; cancelling it gives the call up."""
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        give_up = self.call(path, message, timeout_s, metadata, partial(_resolve, result), cancels=cancels)
        try:
            return await result
        finally:
            give_up()

    def _open_soon(self) -> None:
        if self._opening is None and not self._closed:
            self._opening = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        loop, at = asyncio.get_running_loop(), self._endpoint
        make = partial(_Socket, self, self._settings, self._max_message_bytes)
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                if at.target.is_socket:
                    _, socket = await loop.create_unix_connection(make, at.target.host)
                else:
                    _, socket = await loop.create_connection(make, at.address, at.target.port)
        except (OSError, TimeoutError) as error:
            calls, self._unsent = self._unsent, []
            for call in calls:
                call.settle(Failed(Fate.UNSENT, str(error) or "no connection in time"))
        else:
            self._socket = socket
            calls, self._unsent = self._unsent, []
            for call in calls:
                call.go(socket)
        finally:
            self._opening = None
            if self._unsent:
                self._open_soon()

    def forget(self, call: _Call) -> None:
        """It is over."""
        self._under_way.discard(call)
        if call in self._unsent:
            self._unsent.remove(call)
        if self._landed is not None and not self._under_way:
            self._landed.set()

    async def close(self, grace_s: float) -> None:
        """What is under way has so long to be answered, then it is lost."""
        if self._under_way and grace_s:
            self._landed = asyncio.Event()
            try:
                async with asyncio.timeout(grace_s):
                    await self._landed.wait()
            except TimeoutError:
                log.warning("Triton %s: %d calls are given up", self._endpoint.name, len(self._under_way))
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
        for call in list(self._under_way):
            call.settle(Failed(Fate.LOST if call.stream is not None else Fate.UNSENT, "the connection is closed"))
        if self._socket is not None:
            self._socket.close()


class _Call:
    __slots__ = ("_block", "_cancels", "_done", "_link", "_message", "_socket", "stream", "timer")

    def __init__(
        self, link: Link, block: bytes, message: bytes, done: Callable[[Result], None], *, cancels: bool
    ) -> None:
        self._link = link
        self._cancels = cancels
        self._block = block
        self._message = message
        self._done: Callable[[Result], None] | None = done
        self._socket: _Socket | None = None
        self.stream: Stream | None = None
        self.timer: asyncio.TimerHandle | None = None

    def go(self, socket: _Socket) -> None:
        self._socket = socket
        self.stream = socket.wire.ask(self._block, self._message, self.settle)
        self._message = b""
        socket.flush_soon()

    def settle(self, result: Result) -> None:
        """It is over. Who was told before is not told again."""
        self._link.forget(self)
        self._tell(result)

    def _tell(self, result: Result) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        if self.timer is not None:
            self.timer.cancel()
        done(result)

    def expire(self) -> None:
        self._leave(Answered(DEADLINE_EXCEEDED, "Deadline Exceeded"))

    def give_up(self) -> None:
        if self._done is not None:
            self._leave(Failed(Fate.GIVEN_UP, "its caller waits no more"))

    def _leave(self, result: Result) -> None:
        """Before the server has ended it."""
        stream, socket = self.stream, self._socket
        if stream is not None and stream.id and not self._cancels:
            self._tell(result)
            return
        if stream is not None and socket is not None:
            socket.wire.give_up(stream)
            socket.flush_soon()
        self.settle(result)


class _Socket(asyncio.Protocol):
    """One connection, from its begin to its end. It closes itself when the server wants no more of it."""

    def __init__(self, link: Link, settings: TritonSettings, max_message_bytes: int) -> None:
        self.wire = Wire(max_message_bytes)
        self._link = link
        self._interval_s = settings.keepalive_s
        self._timeout_s = settings.keepalive_timeout_s
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._flushing = False
        self._heard = True
        """Anything, since the last beat."""
        self._beat: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class.
        self._beat = self._loop.call_later(self._interval_s, self._on_beat)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            self.wire.receive(data)
        except ConnectionFault as fault:
            log.warning("a Triton broke the protocol: %s", fault.problem)
            self.wire.out.append(goaway(0, fault.code, fault.problem.encode()))
            self._flush()
            self._end(fault.problem)
            return
        if self.wire.out:
            self._flush()
        if self.wire.over and self.wire.idle:
            self.close()

    def flush_soon(self) -> None:
        """Calls of one turn of the loop go together."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out, self.wire.out = self.wire.out, []
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(out)

    def _on_beat(self) -> None:
        """Also where nothing is under way: what stands between may drop a connection that nothing comes by."""
        if self._heard:
            self._heard = False
            self._beat = self._loop.call_later(self._interval_s, self._on_beat)
            return
        self.wire.ping()
        self._flush()
        self._beat = self._loop.call_later(self._timeout_s, self._on_silence)

    def _on_silence(self) -> None:
        if self._heard:
            self._on_beat()
        else:
            self._end("no answer to a keepalive ping")

    def _end(self, why: str) -> None:
        if self._beat is not None:
            self._beat.cancel()
        if self._transport is not None:
            self._transport.abort()
        self.wire.lose(why)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._beat is not None:
            self._beat.cancel()
        self.wire.lose(str(exc) if exc else "the connection ended")

    def close(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
        if self._transport is not None:
            self._transport.close()


@lru_cache(64)
def _head(path: str, authority: str) -> bytes:
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"forwardpass"),
    ]
    return encode(fields)


def _timeout(seconds: float) -> bytes:
    """As grpc-timeout: at most 8 digits, rounded down, at least 1 us."""
    us = max(1, int(seconds * 1e6))
    for unit, size in _UNITS:
        if us // size <= _MOST_DIGITS:
            return b"%d%s" % (us // size, unit)
    return b"%dM" % _MOST_DIGITS


def _resolve(future: asyncio.Future[Result], result: Result) -> None:
    if not future.done():
        future.set_result(result)
