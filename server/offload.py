"""Plain calls on threads, awaited on the event loop: for what would block it, such as decoding a picture.

What `loop.run_in_executor` does, with less between the two: one future instead of two, and one wake-up of the loop for
all calls that ended since the last one. On a core that decodes pictures all the time each wake-up costs a switch to
the loop's thread and back, with caches that the pictures have emptied.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
A = TypeVar("A")

_Job = tuple[asyncio.Future[Any], Callable[[Any], Any], Any]


class Offload:
    """Up to `threads` threads, started as they are needed. All methods are called on one event loop."""

    def __init__(self, threads: int, name: str) -> None:
        self.most = threads
        self._name = name
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._under_way = 0
        self._ended: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._woken = False
        """The loop was told of what ended, and has not come to it yet."""

    def run(self, call: Callable[[A], T], argument: A) -> asyncio.Future[T]:
        """What ``call(argument)`` gives or raises. Cancelling it before a thread has begun spares the call."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((future, call, argument))
        self._under_way += 1
        if len(self._threads) < min(self._under_way, self.most):
            # A daemon: who makes an Offload and never closes it, does not keep its process from ending.
            name = f"{self._name}_{len(self._threads)}"
            thread = threading.Thread(target=self._work, args=(loop,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def close(self) -> None:
        """Cancel what no thread has begun, and let the threads end."""
        with suppress(Empty):
            while True:
                if job := self._jobs.get_nowait():
                    job[0].cancel()
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while (job := self._jobs.get()) is not None:
            future, call, argument = job
            result: Any = None
            failure: BaseException | None = None
            try:
                result = None if future.cancelled() else call(argument)
            except StopIteration as error:  # which no future takes
                failure = RuntimeError(f"the call raised {error!r}")
            except BaseException as error:  # noqa: BLE001 - whoever awaits the call gets it
                failure = error
            self._ended.append((future, result, failure))
            # A thread that waits for its next job must not keep the last one's pictures.
            del job, future, call, argument, result, failure
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
            future, result, failure = self._ended.popleft()
            self._under_way -= 1
            if future.done():
                continue
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)
