"""The thread of an instance that writes texts: step after step, with whoever joined and left in between.

It is never more than `_AHEAD` steps before the event loop, so that what was written and not handed over stays small,
and whoever is to be held, or has gone away, is so soon.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from server.engine.base import Job, WritingInstance, WritingStep
from server.errors import EngineFailure, ServingError
from server.tensor import Tensor

log = logging.getLogger(__name__)

_AHEAD = 2


@dataclass(slots=True)
class Written:
    """One step, for the loop."""

    step: WritingStep | None
    """None: it failed, and everybody has left."""
    responses: Sequence[tuple[Job, Sequence[Tensor], str]]
    """With why it is the last one of its job, if it is: by the time the loop sees it the job may be further."""
    since_ns: int
    """When the step before it ended, where there was something to do ever since; else as `began_ns`."""
    began_ns: int
    ended_ns: int
    error: ServingError | None = None
    died: bool = False
    """There will be no more."""


class WritingWorker:
    """Everything but `_work` and what it calls is for the event loop's thread."""

    def __init__(
        self,
        instance: WritingInstance,
        model_name: str,
        loop: asyncio.AbstractEventLoop,
        on_step: Callable[[Written], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`on_step` is called on the loop."""
        self._instance = instance
        self._model_name = model_name
        self._loop = loop
        self._on_step = on_step
        self._clock = clock
        self._news = threading.Condition()
        self._orders: deque[tuple[Callable[[Any], None], Job]] = deque()
        self._ahead = 0
        self._since_ns = 0
        """When the last step ended; 0: there was nothing to do since."""
        self._ending = False
        self._ended = asyncio.Event()
        self.alive = True
        self._inside: set[Job] = set()
        self._thread = threading.Thread(target=self._work, name=f"writing {instance.name}")
        self._thread.start()

    def join(self, job: Job) -> None:
        self._order(self._join, job)

    def leave(self, job: Job) -> None:
        """Before the next step."""
        self._order(self._leave, job)

    def hold(self, job: Job) -> None:
        self._order(self._instance.hold, job)

    def go_on(self, job: Job) -> None:
        self._order(self._instance.go_on, job)

    async def close(self, _clock: Callable[[], int]) -> None:
        """Take no step more; returns when none is under way."""
        with self._news:
            self._ending = True
            self._news.notify()
        await self._ended.wait()
        self._thread.join()

    def _order(self, what: Callable[[Any], None], job: Job) -> None:
        with self._news:
            self._orders.append((what, job))
            self._news.notify()

    # --- on the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._obey():
                written = self._step()
                with self._news:
                    self._ahead += 1
                self._post(self._hand_over, written)
        except BaseException as error:  # the thread ends, and its callers must not wait for ever
            log.critical("the thread of %s died", self._instance.name, exc_info=error)
            self.alive = False
            failure = EngineFailure(self._model_name, repr(error))
            now_ns = self._clock()
            self._post(self._hand_over, Written(None, (), now_ns, now_ns, now_ns, failure, died=True))
        self._post(self._ended.set)

    def _obey(self) -> bool:
        """Do what was ordered, and wait for a step to be due. False: there will be none."""
        while True:
            with self._news:
                while not self._ending and not self._orders and (self._ahead >= _AHEAD or not self._instance.busy):
                    if not self._instance.busy:
                        self._since_ns = 0
                    self._news.wait()
                if self._ending:
                    return False
                orders = list(self._orders)
                self._orders.clear()
                due = self._ahead < _AHEAD
            for what, job in orders:
                what(job)
            if due and self._instance.busy:
                return True

    def _join(self, job: Job) -> None:
        self._inside.add(job)
        self._instance.join(job)

    def _leave(self, job: Job) -> None:
        self._inside.discard(job)
        self._instance.leave(job)

    def _step(self) -> Written:
        began_ns = self._clock()
        since_ns = self._since_ns or began_ns
        try:
            step = self._instance.step()
        except Exception as error:  # noqa: BLE001 - told, and logged, on the loop
            for job in list(self._inside):
                self._leave(job)
            told = error if isinstance(error, ServingError) else EngineFailure(self._model_name, repr(error))
            told.__cause__ = error if told is not error else None
            return Written(None, (), since_ns, began_ns, self._clock(), told)
        self._inside.difference_update(step.failed, [job for job in step.wrote if job.finish])
        responses = [(job, outputs, job.finish) for job, outputs in step.pieces]
        ended_ns = self._since_ns = self._clock()
        return Written(step, responses, since_ns, began_ns, ended_ns)

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed: nobody is left who could wait
            log.warning("%s ended a step after the event loop", self._instance.name)

    # --- on the loop ---------------------------------------------------------------------------------

    def _hand_over(self, written: Written) -> None:
        try:
            self._on_step(written)
        finally:
            with self._news:
                self._ahead -= 1
                self._news.notify()
