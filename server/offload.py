"""Plain calls on threads, awaited on the event loop: for what would block it, such as decoding a picture.

What `loop.run_in_executor` does, with less between the two: one future instead of two, and one wake-up of the loop for
all calls that ended since the last one. On a core that decodes pictures all the time each wake-up costs a switch to
the loop's thread and back, with caches that the pictures have emptied.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
A = TypeVar("A")

_Done = Callable[[Any, BaseException | None], None]
_Job = tuple[asyncio.Future[Any] | None, _Done, Callable[[Any], Any], Any]
"""What somebody awaits, if somebody does; who hears of the end; the call and its argument."""


class Offload:
    """Up to `threads` threads, started as they are needed. All methods are called on one event loop."""

    def __init__(self, threads: int, name: str) -> None:
        self.most = threads
        self._name = name
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._under_way = 0
        self._ended: deque[tuple[_Done, Any, BaseException | None]] = deque()
        self._woken = False
        """The loop was told of what ended, and has not come to it yet."""

    def run(self, call: Callable[[A], T], argument: A) -> asyncio.Future[T]:
        """What ``call(argument)`` gives or raises. Cancelling it before a thread has begun spares the call."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def done(result: Any, failure: BaseException | None) -> None:
            if future.done():
                return
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

        self._put(loop, (future, done, call, argument))
        return future

    def post(self, call: Callable[[A], T], argument: A, done: Callable[[T], None]) -> None:
        """As `run`, of a call that never raises: `done` hears on the loop what it gives, without a future for it.
        Not where the threads were closed before one began."""
        self._put(asyncio.get_running_loop(), (None, lambda result, _failure: done(result), call, argument))

    def _put(self, loop: asyncio.AbstractEventLoop, job: _Job) -> None:
        self._jobs.put(job)
        self._under_way += 1
        if len(self._threads) < min(self._under_way, self.most):
            # A daemon: who makes an Offload and never closes it, does not keep its process from ending.
            name = f"{self._name}_{len(self._threads)}"
            thread = threading.Thread(target=self._work, args=(loop,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Cancel what no thread has begun, and let the threads end."""
        with suppress(Empty):
            while True:
                if (job := self._jobs.get_nowait()) and job[0] is not None:
                    job[0].cancel()
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while (job := self._jobs.get()) is not None:
            future, done, call, argument = job
            result: Any = None
            failure: BaseException | None = None
            try:
                result = None if future is not None and future.cancelled() else call(argument)
            except StopIteration as error:  # which no future takes
                failure = RuntimeError(f"the call raised {error!r}")
            except BaseException as error:  # noqa: BLE001 - whoever awaits the call gets it
                failure = error
            self._ended.append((done, result, failure))
            # A thread that waits for its next job must not keep the last one's pictures.
            del job, future, done, call, argument, result, failure
            if not self._woken:
                self._woken = True
                try:
                    loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:  # the loop is closed: nobody is left who could wait
                    return

    def _deliver(self) -> None:
        # Before looking: what ends from here on wakes the loop again.
        self._woken = False
        while self._ended:
            done, result, failure = self._ended.popleft()
            self._under_way -= 1
            try:
                done(result, failure)
            except Exception as error:  # whoever it is of, the others are to hear of theirs
                log.error("what was to hear of the end of a call failed", exc_info=error)
