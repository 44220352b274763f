"""How long a forward pass takes, by the rows in it: seeded by the warm-up, then learned from every pass."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping

_WEIGHT = 8
"""A new measurement moves the estimate by a weight-th: some ten passes follow a change, one does not."""
_CLAMP = 4
"""A measurement counts for at most this many times the estimate, and at least this part of it: a page fault
or a neighbour on the core makes a pass tens of times longer and says nothing about the next one."""


class CostModel:
    """Nanoseconds of a forward pass by rows. Not thread-safe: it lives on the event loop."""

    __slots__ = ("_ns", "_sizes")

    def __init__(self, seed: Mapping[int, int] | None = None) -> None:
        """`seed`: nanoseconds by rows, as the warm-up sweep measured them."""
        self._ns: dict[int, float] = {rows: float(ns) for rows, ns in (seed or {}).items()}
        self._sizes = sorted(self._ns)

    def observe(self, rows: int, ns: int) -> None:
        """Learn from one pass. An outlier moves the estimate by a bounded step only, also the first of its size."""
        estimate = self._estimate(rows)
        if rows not in self._ns:
            insort(self._sizes, rows)
            self._ns[rows] = ns if estimate is None else _clamped(ns, estimate)
        elif estimate is not None:
            self._ns[rows] = estimate + (_clamped(ns, estimate) - estimate) / _WEIGHT

    def predict_ns(self, rows: int) -> int | None:
        """The expected time of a pass of `rows` rows; None while nothing was ever measured.

        Between two known sizes the time is interpolated; beyond the largest it goes on with the last slope;
        below the smallest it is that of the smallest, for a pass has costs that do not shrink with its rows.
        """
        estimate = self._estimate(rows)
        return None if estimate is None else int(estimate)

    def _estimate(self, rows: int) -> float | None:
        known = self._ns.get(rows)
        if known is not None or not self._sizes:
            return known
        right = bisect_left(self._sizes, rows)
        if right == 0:
            return self._ns[self._sizes[0]]
        if right < len(self._sizes):
            return self._on_line(self._sizes[right - 1], self._sizes[right], rows)
        largest = self._sizes[-1]
        if len(self._sizes) == 1:
            return self._ns[largest] * rows / largest
        return max(self._ns[largest], self._on_line(self._sizes[-2], largest, rows))

    def _on_line(self, left: int, right: int, rows: int) -> float:
        slope = (self._ns[right] - self._ns[left]) / (right - left)
        return self._ns[left] + slope * (rows - left)


def _clamped(ns: int, estimate: float) -> float:
    return min(max(float(ns), estimate / _CLAMP), estimate * _CLAMP)
