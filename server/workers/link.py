"""One side of the stream between a front and the engine process: frames in, frames out, questions and replies.

What is sent in one tick of the loop is written at its end, in one go. A link is closed by its end of the stream, by
bytes that are no frames, or by whoever has it; `lost` is called once, whichever it was.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import Any

from server.errors import EngineLost, ServingError
from server.tensor import Buffer
from server.workers.frames import BadFrame, Frames, Kind, frame
from server.workers.messages import NUMBER, number_of, read_error, read_json, write_error

log = logging.getLogger(__name__)

_JOIN_BYTES = 32 * 1024
"""Data up to here is joined with its frame: a copy of it costs less than another buffer to write."""

Question = Callable[[dict[str, Any]], Awaitable[Any]]
"""Answers a question with what JSON can say, or raises a ServingError."""


class Link(asyncio.Protocol):
    """`take` gets every frame but questions and replies, and may raise BadFrame; `answer` replies to questions."""

    def __init__(self, name: str, take: Callable[[int, memoryview], None], answer: Question) -> None:
        """`name`: of the other side, for the log."""
        self.lost: Callable[[], None] = lambda: None
        self._name = name
        self._take = take
        self._answer = answer
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self._out: list[Buffer] = []
        self._due = False
        self._closed = False
        self._numbers = count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def open(self) -> bool:
        return not self._closed

    @property
    def unsent_bytes(self) -> int:
        """That the other side has not read, and the system holds no more of."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def close(self) -> None:
        """Whoever waits for a reply gets EngineLost."""
        if self._closed:
            return
        self._closed = True
        if self._transport is not None:
            self._transport.abort()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(EngineLost())
        self._asked.clear()
        for task in self._answering:
            task.cancel()
        self.lost()

    # --- out --------------------------------------------------------------------------------------

    def send(self, head: bytes, datas: Sequence[Buffer] = ()) -> None:
        """Send a frame whose body ends with `datas`, at the end of this tick. After the end it is dropped."""
        out = self._out
        if not datas:
            out.append(head)
        elif sum([memoryview(data).nbytes for data in datas]) <= _JOIN_BYTES:
            out.append(b"".join((head, *datas)))
        else:
            out.append(head)
            out += datas
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._due = False
        if self._transport is None:
            return  # What is said before the link is there goes with its first write.
        out, self._out = self._out, []
        if out and not self._closed:
            self._transport.writelines(out)

    async def ask(self, what: str, **more: Any) -> Any:
        """What the other side answers. Raises ServingError as it does; EngineLost: the link was lost before."""
        if self._closed:
            raise EngineLost
        number = next(self._numbers) & 0xFFFFFFFF
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        self.send(frame(Kind.ASK, NUMBER.pack(number), json.dumps({"what": what, **more}).encode()))
        try:
            return await future
        finally:
            self._asked.pop(number, None)

    # --- in ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a stream's is one
        self._transport = transport
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            for kind, body in self._frames.feed(data):
                if kind == Kind.ASK:
                    self._reply(body)
                elif kind == Kind.REPLY:
                    self._replied(body)
                else:
                    self._take(kind, body)
        except BadFrame as error:
            log.error("%s sent what can't be understood, and the link is closed: %s", self._name, error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.close()

    def _reply(self, body: memoryview) -> None:
        task = asyncio.get_running_loop().create_task(self._respond(number_of(body), read_json(body)))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _respond(self, number: int, question: dict[str, Any]) -> None:
        reply: Mapping[str, Any]
        try:
            reply = {"value": await self._answer(question)}
        except ServingError as error:
            reply = write_error(error)
        except Exception as error:
            log.exception("a question of %s could not be answered", self._name)
            reply = write_error(error)
        self.send(frame(Kind.REPLY, NUMBER.pack(number), json.dumps(reply, default=repr).encode()))

    def _replied(self, body: memoryview) -> None:
        future = self._asked.get(number_of(body))
        reply = read_json(body)
        if future is None or future.done():
            return
        if "error" in reply:
            future.set_exception(read_error(reply))
        else:
            future.set_result(reply.get("value"))
