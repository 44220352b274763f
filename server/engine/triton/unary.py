"""Unary calls to one Triton: by our own connection, or by grpcio's line where TLS is spoken."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc import StatusCode

from server.engine.triton.channel import Line
from server.engine.triton.failures import NotAnsweredError, checked, of_grpcio
from server.engine.triton.link import Link
from server.engine.triton.methods import Unary
from server.types import Metadata


class UnaryCalls:
    """`link`: None where all go by the line."""

    def __init__(self, line: Line, link: Link | None) -> None:
        self._line = line
        self._link = link
        self._left: set[asyncio.Task[Any]] = set()
        """Calls by the line that nobody waits for, and whose server was not told."""

    async def reply(
        self,
        method: Unary,
        message: Any,
        timeout_s: float | None,
        metadata: Metadata = (),
        *,
        cancels: bool = True,
        by_channel: bool = False,
    ) -> Any:
        """`cancels`: the server hears it when its time is over or this is cancelled. `by_channel`: by grpcio anyway.

        Raises:
            NotAnsweredError: what became of it.
        """
        if self._link is None or by_channel:
            try:
                return await self._reply(method, message, timeout_s, metadata, cancels)
            except grpc.aio.AioRpcError as error:
                raise of_grpcio(error) from error
        sent = message.SerializeToString()
        result = await self._link.reply(method.path, sent, timeout_s, metadata, cancels=cancels)
        return method.response.FromString(checked(result))

    async def _reply(
        self, method: Unary, message: Any, timeout_s: float | None, metadata: Metadata, cancels: bool
    ) -> Any:
        make = self._line.unary(method)
        if cancels:
            return await make(message, timeout=timeout_s, metadata=metadata or None)
        task = asyncio.ensure_future(make(message, metadata=metadata or None))
        self._left.add(task)
        task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(task)
        except TimeoutError as error:
            raise NotAnsweredError(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from error

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._left.discard(task)
        if not task.cancelled():
            # It is taken out here: whoever asked may be gone.
            task.exception()

    async def close(self, grace_s: float) -> None:
        """What is under way has so long to be answered, then it is lost."""
        if self._left:
            await asyncio.wait(set(self._left), timeout=grace_s)
        if self._link is not None:
            await self._link.close(grace_s)
