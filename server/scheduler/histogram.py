"""Counts by size: the buckets that Prometheus reads, of durations and of rows."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DURATION_BOUNDS_NS = tuple(
    int(us * 1000)
    for us in (
        *(50, 100, 250, 500),
        *(1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
        *(1_000_000, 2_500_000, 5_000_000, 10_000_000),
    )
)
"""Upper bounds of the buckets of both durations: 50 us to 10 s."""
ROWS_BOUNDS = tuple(1 << power for power in range(11))
"""Upper bounds of the buckets of rows in a batch: 1 to 1024."""


Numbers = NDArray[np.int64]


class Exemplar(NamedTuple):
    """One of the values that a bucket counts."""

    trace_id: str
    value: int
    at_s: float
    """Since the epoch."""


class Histogram:
    """`counts[i]` values are above `bounds[i - 1]` and at most `bounds[i]`; the last is above all bounds."""

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.exemplars: dict[int, Exemplar] = {}
        """Of the buckets that have one, the latest."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe(self, value: int, count: int = 1) -> None:
        """Count a value that occurred `count` times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def observe_all(self, values: Numbers, counts: Numbers) -> None:
        """Count values [N] that occurred so often each [N]."""
        found = np.bincount(np.searchsorted(_array(self.bounds), values), counts, len(self.counts))
        self.counts = [before + int(more) for before, more in zip(self.counts, found.tolist(), strict=True)]
        self.sum += int(values @ counts)

    def exemplify(self, value: int, trace_id: str) -> None:
        """A value that was counted is that of a request whose trace can be looked at."""
        self.exemplars[bisect_left(self.bounds, value)] = Exemplar(trace_id, value, time.time())

    def observe_since(self, starts_ns: Sequence[int], end_ns: int) -> None:
        """Count the time from each start to `end_ns`. Neighbours that are equal, as those that arrived in one
        tick of the loop are, cost one step together."""
        count = len(starts_ns)
        if count and starts_ns.count(starts_ns[0]) == count:
            self.observe(end_ns - starts_ns[0], count)
            return
        same, start_ns = 0, -1
        for next_ns in starts_ns:
            if next_ns != start_ns:
                if same:
                    self.observe(end_ns - start_ns, same)
                same, start_ns = 0, next_ns
            same += 1
        if same:
            self.observe(end_ns - start_ns, same)


@cache
def _array(bounds: tuple[int, ...]) -> Numbers:
    return np.array(bounds, np.int64)
