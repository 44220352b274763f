"""The one timer of a batcher."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from server.types import NO_DEADLINE

_LONGEST_TIMER_NS = 3_600_000_000_000
"""One hour. Whatever is later gets another timer then; loops refuse or cut very long ones."""


class Alarm:
    """Rings at the earliest time it was set to.

    It may ring early, or for nothing: uvloop rounds to whole milliseconds, and an alarm that is no longer
    wanted is cheaper to ignore than to cancel. So whoever hears it looks at the clock and sets it again.
    """

    __slots__ = ("_at_ns", "_call", "_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call
        self._handle: asyncio.TimerHandle | None = None
        self._at_ns = NO_DEADLINE

    def set(self, at_ns: int, now_ns: int) -> None:
        """Ring at `at_ns`, unless it already rings before that."""
        if at_ns >= self._at_ns:
            return
        self.cancel()
        self._at_ns = at_ns
        delay_ns = min(max(0, at_ns - now_ns), _LONGEST_TIMER_NS)
        self._handle = self._loop.call_later(delay_ns / 1e9, self._ring)

    def cancel(self) -> None:
        self._at_ns = NO_DEADLINE
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _ring(self) -> None:
        self._at_ns = NO_DEADLINE
        self._handle = None
        self._call()
