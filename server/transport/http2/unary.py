"""A call with one message each way whose request comes in pieces, is compressed, or is not answered at once."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, cast

from server.errors import CallExpired, Overloaded, RequestTooSlow, Unsupported
from server.transport.http2.messages import MessageReader, inflated
from server.transport.http2.prefix import PREFIX_BYTES
from server.types import InferRequest

if TYPE_CHECKING:
    from server.transport.http2.calls import Call, Calls
    from server.transport.http2.stream import Stream
    from server.transport.methods import CallInfo, Later, Method

_BEGIN_BYTES = 256
"""Of a message, in which its model is looked for."""


class UnaryCall:
    __slots__ = ("_calls", "_held_bytes", "_message", "_method", "_reader", "_request", "_stream", "_task", "_timer")

    def __init__(self, calls: Calls, stream: Stream, method: Method) -> None:
        self._calls = calls
        self._stream = stream
        self._method = method
        self._reader = MessageReader(calls.service.settings.max_message_bytes)
        self._held_bytes = 0
        self._message: tuple[bool, bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._request: InferRequest | None = None
        """In the place of a task."""
        self._timer: asyncio.TimerHandle | None = None
        stream.due_ns = calls.connection.now_ns + int(calls.service.settings.request_timeout_s * 1e9)

    def data(self, parts: list[bytes]) -> None:
        if not self._held_bytes and self._stream.timeout_ns and self._is_hopeless(parts[0]):
            call = cast("Call | None", self._stream.call)
            if call is not None:
                call.data(parts)
            return
        try:
            size = sum(map(len, parts))
            self._calls.hold(size)
            self._held_bytes += size
            self._calls.connection.consumed(self._stream, size)
            for message in self._reader.feed(parts):
                if self._message is not None:
                    raise Unsupported("request", "has more than one message")
                self._message = message
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            self._fail(error)

    def _is_hopeless(self, start: bytes) -> bool:
        """It can be told by the begin of the message that there is no time for it: then the call is another's."""
        stream, calls, hopeless = self._stream, self._calls, self._method.hopeless
        head = stream.head
        if (
            hopeless is None
            or head.entry is not None
            or head.explain
            or start[:1] != b"\0"
            or len(start) < PREFIX_BYTES
        ):
            return False
        now_ns, size = calls.connection.now_ns, int.from_bytes(start[1:PREFIX_BYTES])
        begin = start[PREFIX_BYTES : PREFIX_BYTES + _BEGIN_BYTES]
        refusal = hopeless(calls.service.dataplane, begin, size, now_ns, now_ns + stream.timeout_ns)
        if refusal is None:
            return False
        calls.give_up(stream, refusal)
        return True

    def ended(self) -> None:
        """The request is here as a whole."""
        try:
            self._reader.end()
            message, self._message = self._message, None
            if message is None:
                raise Unsupported("request", "has no message")
            self._begin(*message)
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            self._fail(error)

    def _begin(self, compressed: bool, data: bytes) -> None:
        if self._stream.head.hot and not compressed:
            self._release()
            self._calls.infer(self._stream, data)
            return
        info = self._calls.info(self._stream)
        if not self._method.waits and not compressed:
            self._answer(self._method.respond_now(self._calls.plane(self._stream), data, info), info)
            return
        begun = self._start(compressed, data, info)
        loop = asyncio.get_running_loop()
        if not isinstance(begun, InferRequest):
            self._task = loop.create_task(self._run(begun, info))
        elif begun.settled:
            return
        else:
            self._request = begun
        if self._stream.timeout_ns:
            self._timer = loop.call_later(self._stream.timeout_ns / 1e9, self._expire)

    def _start(self, compressed: bool, data: bytes, info: CallInfo) -> InferRequest | Later:
        """What is under way now, or has to be run."""
        if compressed:
            return partial(self._inflate, data, info)
        plane = self._calls.plane(self._stream)
        if self._method.begin is None:
            return partial(self._method.respond, plane, data, info)
        return self._method.begin(plane, self._method.parse(data), info, partial(self._hear, info))

    async def _inflate(self, data: bytes, info: CallInfo) -> bytes:
        data = await inflated(self._stream.head.encoding, data, self._calls.service.settings.max_message_bytes)
        return await self._method.respond(self._calls.plane(self._stream), data, info)

    async def _run(self, later: Later, info: CallInfo) -> None:
        try:
            answer = await later()
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            self._hear(info, error)
        else:
            self._hear(info, answer)

    def _hear(self, info: CallInfo, outcome: bytes | BaseException) -> None:
        """What came of it, by a task or without one."""
        try:
            if isinstance(outcome, bytes):
                self._answer(outcome, info)
            else:
                self._fail(outcome)
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            self._fail(error)
        self._calls.answered()

    def _answer(self, message: bytes, info: CallInfo) -> None:
        self._release()
        self._calls.answer(self._stream, message, info.explanation)

    def _expire(self) -> None:
        """The caller's time is over. It knows that itself, so what it is told hardly matters."""
        self._fail(CallExpired())
        self.cancel()
        self._calls.answered()

    def late(self) -> None:
        self._calls.service.refused["slow_writer"] += 1
        self._fail(RequestTooSlow(self._calls.service.settings.request_timeout_s))

    def sent(self) -> None:
        """There was one message to send, and nothing waits for it."""

    def cancel(self) -> None:
        self._release()
        task, self._task = self._task, None
        if task is not None:
            # Nobody keeps it: a task that was cancelled holds its frames, which hold this call.
            task.cancel()
        request, self._request = self._request, None
        if request is not None:
            self._calls.service.dataplane.cancel(request)

    def _fail(self, error: BaseException) -> None:
        self._release()
        if isinstance(error, Overloaded):
            self._calls.refused_ns = self._stream.timeout_ns
        self._calls.fail(self._stream, error)

    def _release(self) -> None:
        self._calls.let_go(self._held_bytes)
        self._held_bytes = 0
        self._stream.due_ns = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
