"""Whether one Triton knows this process's memory: told to it when a request first needs it, and anew when it forgot.

A Triton that restarts has forgotten. It says so of the next request that refers to the memory, which it did not
execute then. Source: Triton, docs/protocol/extension_shared_memory.md.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from server.engine.triton.memory import Memory, Placed
from server.engine.triton.methods import Unary
from server.errors import ServingError
from server.types import InferRequest

log = logging.getLogger(__name__)

_FAILED_PAUSE_S = 60.0
"""Until it is tried once more: a Triton that can't is on another host, in another container, or another user's."""
_FORGOT_PAUSE_S = 5.0
"""Until it is told anew: behind one address may be several, which each know of their own alone."""

Ask = Callable[[Unary, Any], Awaitable[Any]]
"""Calls a method of its; raises TimeoutError and ServingError."""


class Registration:
    """Of one Triton. All on the event loop."""

    def __init__(self, memory: Memory, name: str, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        """`name`: of the Triton, for logs."""
        self._memory = memory
        self._name = name
        self._ask = ask
        self._clock = clock
        self.known = False
        """Requests may refer to the memory."""
        self._not_before = 0.0
        self._complained = False
        self._telling: asyncio.Task[None] | None = None

    def put(self, request: InferRequest) -> Placed | None:
        """Its tensors in the memory; None: they go by message, now if not for ever."""
        if not self.known:
            self._want(request)
            return None
        return self._memory.put(request)

    async def copied(self, copying: asyncio.Future[str], within_s: float | None) -> bool:
        """As of `Memory`."""
        return await self._memory.copied(copying, within_s)

    def give_back(self, placed: Placed, *, read: bool) -> None:
        """As of `Memory`."""
        self._memory.give_back(placed, read=read)

    def forgot(self) -> None:
        """It does not know the memory any more."""
        if self.known:
            self.known = False
            self._not_before = self._clock() + _FORGOT_PAUSE_S
            log.info("Triton %s does not know the shared memory any more", self._name)

    def _want(self, request: InferRequest) -> None:
        """Tell it, if this request is a reason to, and nobody does."""
        memory = self._memory
        if self._telling is not None or self._clock() < self._not_before or memory.lost or not memory.wants(request):
            return
        self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        try:
            await asyncio.to_thread(self._memory.open)
            await self._register()
        except (OSError, TimeoutError, ServingError) as error:
            self._not_before = self._clock() + _FAILED_PAUSE_S
            if not self._complained:
                self._complained = True
                problem = str(error) or "no answer in time"
                log.warning("large inputs go to Triton %s by message, not by shared memory: %s", self._name, problem)
        else:
            self.known = True
            self._complained = False
            log.info("Triton %s reads large inputs from shared memory", self._name)
        finally:
            self._telling = None

    async def _register(self) -> None:
        backing = self._memory.backing
        # It may know it after all: of a registration whose answer was lost.
        await self._unregister(backing.name)
        await self._ask(backing.methods.register, backing.registration())
        # What it has of processes that were killed: as much memory as they had.
        status = backing.methods.status
        known = await self._ask(status, status.request())
        for region in known.regions:
            if backing.was_left(region):
                with suppress(TimeoutError, ServingError):
                    await self._unregister(region)

    async def _unregister(self, name: str) -> None:
        unregister = self._memory.backing.methods.unregister
        await self._ask(unregister, unregister.request(name=name))

    async def close(self) -> None:
        """Let it forget."""
        if self._telling is not None:
            self._telling.cancel()
            with suppress(asyncio.CancelledError):
                await self._telling
        if self.known:
            self.known = False
            with suppress(TimeoutError, ServingError):
                await self._unregister(self._memory.backing.name)
