"""The work that arrives, in a sliding window of five seconds. That is all the smoothing there is."""

from __future__ import annotations

from collections import deque

WINDOW_NS = 5_000_000_000
_SLICE_NS = 250_000_000


class Load:
    """Demand of one model version. Refused work counts: it arrived."""

    __slots__ = ("_began_ns", "_slices", "_total_ns")

    def __init__(self) -> None:
        self._slices: deque[list[int]] = deque()
        """Pairs of a slice's number and the instance time that arrived in it."""
        self._total_ns = 0
        self._began_ns = -1

    def arrive(self, work_ns: int, now_ns: int) -> None:
        """`work_ns`: what a request takes of one instance's time, at the batch sizes in use."""
        number = now_ns // _SLICE_NS
        if self._began_ns < 0:
            self._began_ns = now_ns
        if not self._slices or self._slices[-1][0] != number:
            self._forget(now_ns)
            self._slices.append([number, 0])
        self._slices[-1][1] += work_ns
        self._total_ns += work_ns

    def work(self, now_ns: int) -> float:
        """Instances that what arrived within the window would keep busy; 0: nothing arrived."""
        self._forget(now_ns)
        span_ns = min(WINDOW_NS, now_ns - self._began_ns) if self._began_ns >= 0 else 0
        # Within the first slice there is no rate yet: the slice is taken to be over.
        return self._total_ns / max(span_ns, _SLICE_NS)

    def _forget(self, now_ns: int) -> None:
        oldest = (now_ns - WINDOW_NS) // _SLICE_NS
        while self._slices and self._slices[0][0] <= oldest:
            self._total_ns -= self._slices.popleft()[1]
