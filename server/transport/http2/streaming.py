"""A call with streams of messages: an async generator that takes the client's and gives the server's.

A client that does not read stops the generator, which then takes no more messages, which then stops the client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from server.errors import CallExpired
from server.transport.http2.messages import MessageReader, inflated
from server.transport.http2.prefix import PREFIX_BYTES

if TYPE_CHECKING:
    from server.transport.http2.calls import Calls
    from server.transport.http2.stream import Stream
    from server.transport.methods import Method


_WEIGHT_BYTES = 128
"""What a message that waits weighs beside its bytes: a client might send empty ones."""


class StreamsCall:
    __slots__ = (
        "_begun",
        "_calls",
        "_ended",
        "_held_bytes",
        "_messages",
        "_method",
        "_owed_bytes",
        "_reader",
        "_stream",
        "_task",
        "_timer",
        "_wake",
    )

    def __init__(self, calls: Calls, stream: Stream, method: Method) -> None:
        self._calls = calls
        self._stream = stream
        self._method = method
        self._reader = MessageReader(calls.service.settings.max_message_bytes)
        self._messages: deque[tuple[bool, bytes]] = deque()
        self._held_bytes = 0
        self._owed_bytes = 0
        """DATA whose window the client gets back when the generator has caught up."""
        self._ended = self._begun = False
        self._wake = asyncio.Event()
        """Something has come, or gone: whoever waits looks again."""
        loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        if stream.timeout_ns:
            self._timer = loop.call_later(stream.timeout_ns / 1e9, self._expire)
        self._task: asyncio.Task[None] | None = loop.create_task(self._run())
        # Not at the end of the coroutine, of which nothing runs if it is cancelled before its first turn.
        self._task.add_done_callback(self._over)

    # --- from the client --------------------------------------------------------------------------

    def data(self, parts: list[bytes]) -> None:
        size = sum(map(len, parts))
        try:
            self._hold(size)
            messages = self._reader.feed(parts)
            self._hold(len(messages) * _WEIGHT_BYTES)
            waiting = bool(self._messages)
            self._messages += messages
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            self._abort(error)
            return
        self._owed_bytes += size
        if not waiting:
            self._give_back()
        self._wake.set()

    def _hold(self, size: int) -> None:
        self._calls.hold(size)
        self._held_bytes += size

    def _give_back(self) -> None:
        self._calls.connection.consumed(self._stream, self._owed_bytes)
        self._owed_bytes = 0

    def ended(self) -> None:
        try:
            self._reader.end()
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            self._abort(error)
            return
        self._ended = True
        self._wake.set()

    def sent(self) -> None:
        self._wake.set()

    def late(self) -> None:
        """A stream may be as slow as it likes: it has no time by which all must be here."""

    def cancel(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            # Nobody keeps it: a task that was cancelled holds its frames, which hold this call.
            task.cancel()

    def _expire(self) -> None:
        self._abort(CallExpired())
        self._calls.answered()

    def _abort(self, error: Exception) -> None:
        self._calls.fail(self._stream, error, begun=self._begun)
        self.cancel()

    # --- the generator ----------------------------------------------------------------------------

    async def _run(self) -> None:
        calls, stream = self._calls, self._stream
        try:
            info = calls.info(stream)
            async for message in self._method.respond_streams(calls.plane(stream), self._received(), info):
                calls.send_message(stream, message, first=not self._begun)
                self._begun = True
                calls.answered()
                await self._sendable()
            self._finish()
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            calls.fail(stream, error, begun=self._begun)
        calls.answered()

    def _over(self, _task: asyncio.Task[None]) -> None:
        self._calls.let_go(self._held_bytes)
        if self._timer is not None:
            self._timer.cancel()

    def _finish(self) -> None:
        if not self._begun:
            self._calls.send_headers(self._stream)
        self._calls.finish(self._stream)

    async def _sendable(self) -> None:
        """Returns when what was sent is gone from here."""
        while self._stream.pending is not None or not self._calls.writable:
            self._wake.clear()
            await self._wake.wait()

    async def _received(self) -> AsyncIterator[Any]:
        """The client's messages, parsed. Raises InvalidRequest."""
        encoding, max_bytes = self._stream.head.encoding, self._calls.service.settings.max_message_bytes
        while True:
            while not self._messages:
                if self._ended:
                    return
                self._wake.clear()
                await self._wake.wait()
            compressed, data = self._messages.popleft()
            if not self._messages:
                self._give_back()
                self._calls.answered()
            size = PREFIX_BYTES + len(data) + _WEIGHT_BYTES
            self._held_bytes -= size
            self._calls.let_go(size)
            if compressed:
                data = await inflated(encoding, data, max_bytes)
            yield self._method.parse(data)
