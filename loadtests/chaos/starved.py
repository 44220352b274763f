"""How long the server's processes waited for a core, and when: what a busy machine does, and no server can mend."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, bisect_right
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.process import family

_EVERY_S = 0.05


@dataclass
class Starved:
    """Of the threads that have the event loops. Linux's own count (schedstat: nanoseconds on a run queue)."""

    at_s: list[float] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)
    """Of the process that waited longest, since the time before."""

    async def watch(self, pid: int) -> None:
        """Until it is cancelled."""
        before = _waits_ns(pid)
        while True:
            await asyncio.sleep(_EVERY_S)
            now = _waits_ns(pid)
            most_ns = max((now[each] - before[each] for each in now.keys() & before.keys()), default=0)
            self.at_s.append(time.monotonic())
            self.waited_s.append(most_ns / 1e9)
            before = now

    def between(self, begin_s: float, end_s: float) -> float:
        """Seconds, of the one that waited longest each time."""
        # Each look tells of the time since the one before, which is long where this process had no core either.
        first, last = bisect_left(self.at_s, begin_s), bisect_right(self.at_s, end_s) + 1
        return sum(self.waited_s[first:last])

    def most(self, window_s: float = 1.0) -> float:
        """The longest in any such window."""
        return max((self.between(at_s - window_s, at_s - _EVERY_S / 2) for at_s in self.at_s), default=0.0)


def _waits_ns(pid: int) -> dict[int, int]:
    found = {}
    with suppress(OSError):
        for each in family(pid):
            with suppress(OSError):
                found[each] = int(Path(f"/proc/{each}/schedstat").read_text().split()[1])
    return found
