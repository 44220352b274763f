"""What the schedulers of a model version have in common: one tick for what arrives together, a guard, the way out.

Everything runs on the event loop in plain calls. Who is held is settled exactly once, whatever fails around it.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from server.afterwards import as_step
from server.errors import Draining, EngineFailure, ServingError
from server.scheduler.alarm import Alarm
from server.scheduler.settling import Settling
from server.types import NO_DEADLINE, InferRequest

log = logging.getLogger(__name__)


class Ends(Protocol):
    """What runs the requests of a scheduler."""

    async def close(self, clock: Callable[[], int]) -> None:
        """Begin nothing any more; returns when nothing is under way."""


class Ticking(ABC):
    """A scheduler that looks at all that arrived in one turn of the loop together."""

    _instances: Ends
    _settling: Settling

    def __init__(self, model_name: str, loop: asyncio.AbstractEventLoop, clock: Callable[[], int]) -> None:
        self.model_name = model_name
        self._loop = loop
        self._clock = clock
        self._alarm = Alarm(loop, self._tick)
        self._tick_due = False
        self._drain_until_ns = NO_DEADLINE
        self._drained: list[asyncio.Future[None]] = []

    # --- what a scheduler says of itself -------------------------------------------------------------

    @abstractmethod
    def _advance(self) -> None:
        """All that there is to do at this moment; it sets the alarm for what comes next."""

    @abstractmethod
    def _take_in(self, now_ns: int) -> None:
        """Admit those who arrived, or settle them with the reason why not."""

    @abstractmethod
    def _arrivals(self) -> Sequence[InferRequest]:
        """Those who arrived and were not looked at yet."""

    @abstractmethod
    def _clear(self) -> Sequence[InferRequest]:
        """Take out everybody but those whose passes are under way."""

    @abstractmethod
    def _running(self) -> Sequence[InferRequest]:
        """Those whose passes are under way."""

    @abstractmethod
    def _empty(self) -> bool:
        """Nobody is held, and nobody will be who could not begin anew elsewhere."""

    @abstractmethod
    def _tell(self) -> None:
        """Tell the statistics who waits."""

    # --- the tick ----------------------------------------------------------------------------------

    def _tick_soon(self) -> None:
        if not self._tick_due:
            self._tick_due = True
            self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        self._tick_due = False
        as_step(self._guarded, self._advance)

    def _guarded(self, action: Callable[..., None], *arguments: object) -> None:
        """Do something. If it raises there is a bug; nobody who is held here may wait for ever because of it.

        What still runs on a worker's thread is left to it: its end comes here like any other.
        """
        try:
            action(*arguments)
        except BaseException as error:
            log.exception("the scheduler of model %s failed and settles what waits", self.model_name)
            self._settling.fail_each(self._clear(), self._failure(error))
            self._tick_soon()
            if not isinstance(error, Exception):
                raise

    def _failure(self, error: BaseException) -> Callable[[], EngineFailure]:
        """What a bug of ours is to those whom it strikes."""
        return partial(EngineFailure, self.model_name, repr(error))

    # --- the end -----------------------------------------------------------------------------------

    async def drain(self, until_ns: int) -> None:
        """Admit nothing new any more, answer what is held until `until_ns`, settle the rest as Draining.

        Returns when all is settled.
        """
        self._stop_admitting(until_ns)
        drained = self._loop.create_future()
        self._drained.append(drained)
        self._tick_soon()
        await drained

    async def close(self) -> None:
        """Settle whatever is held as Draining and end the workers; returns when the last pass has ended."""
        self._stop_admitting(self._clock())
        self._end_all(Draining)
        self._settling.release()
        self._tell()
        self._tick_soon()
        await self._instances.close(self._clock)
        self._alarm.cancel()

    def _stop_admitting(self, until_ns: int) -> None:
        if self._arrivals():
            # They came before the end, and would have been admitted in this very turn of the loop.
            self._guarded(self._take_in, self._clock())
        self._drain_until_ns = min(until_ns, self._drain_until_ns)

    def _end_all(self, make_error: Callable[[], ServingError]) -> None:
        """Also what runs; its results will be thrown away."""
        self._settling.fail_each(self._clear(), make_error)
        self._settling.fail_each(self._running(), make_error)

    def _check_drained(self, now_ns: int) -> int:
        """Tell who waits for the drain if it is over; else return when it is over at the latest."""
        if not self._empty() and now_ns < self._drain_until_ns:
            return self._drain_until_ns
        for drained in self._drained:
            if not drained.done():
                drained.set_result(None)
        self._drained.clear()
        return NO_DEADLINE
