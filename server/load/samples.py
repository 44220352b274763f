"""What came of the requests of a run, every one of them, and exact figures of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import stdev

import numpy as np
from numpy.typing import NDArray

from server.load.payloads import OUTCOMES, Outcome

Ns = NDArray[np.int64]
"""Nanoseconds from the start of the run."""

# Two-sided 95 % of Student's t by degrees of freedom; beyond, the normal distribution's.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
_NORMAL = 1.96


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % confidence interval of their mean, by Student's t; NaN of fewer than two."""
    if len(values) < 2 or any(math.isnan(value) for value in values):
        return math.nan
    degrees = len(values) - 1
    t = _T[degrees - 1] if degrees <= len(_T) else _NORMAL
    return t * stdev(values) / math.sqrt(len(values))


@dataclass(frozen=True)
class Samples:
    """Row i of each array is request i, in the order in which they were due."""

    due_ns: Ns
    sent_ns: Ns
    ended_ns: Ns
    outcome: NDArray[np.uint8]
    """Places in `OUTCOMES`."""
    leg: NDArray[np.int16]
    """Which of the kinds that were asked together."""
    faults: Counter[tuple[int, str]] = field(default_factory=Counter)
    """By leg, in the server's words."""

    def __len__(self) -> int:
        return len(self.due_ns)

    def fault(self) -> str:
        """What went wrong most often, for people; empty: nothing did."""
        if self.faults:
            ((_, words), count) = self.faults.most_common(1)[0]
            return f"{count} of {len(self)} requests: {words}"
        amiss = int((self.outcome != 0).sum())
        return f"{amiss} of {len(self)} requests were not answered rightly, and nobody says why" if amiss else ""

    def of(self, mask: NDArray[np.bool_]) -> Samples:
        return Samples(
            self.due_ns[mask], self.sent_ns[mask], self.ended_ns[mask], self.outcome[mask], self.leg[mask], self.faults
        )

    def between(self, from_s: float, to_s: float) -> Samples:
        """Those due from `from_s` on and before `to_s`."""
        return self.of((self.due_ns >= from_s * 1e9) & (self.due_ns < to_s * 1e9))

    def share(self, *outcomes: Outcome) -> float:
        """Of all; NaN of none."""
        if not len(self):
            return math.nan
        return float(np.isin(self.outcome, [OUTCOMES.index(one) for one in outcomes]).mean())

    def latency_ms(self, q: float) -> float:
        """The q-th percentile (nearest rank) of right answers, from the time that they were due; NaN of none."""
        right = self.outcome == 0
        return percentile((self.ended_ns[right] - self.due_ns[right]) / 1e6, q)

    def lag_ms(self, q: float) -> float:
        """How late requests were sent by the generator itself."""
        return percentile((self.sent_ns - self.due_ns) / 1e6, q)

    def answers_per_s(self) -> float:
        """Right answers, over the time from the first due one to the last end."""
        if not len(self):
            return 0.0
        span_ns = int(self.ended_ns.max()) - int(self.due_ns.min())
        return float((self.outcome == 0).sum()) / max(1, span_ns) * 1e9


def percentile(values: NDArray[np.float64], q: float) -> float:
    """Nearest rank; NaN of nothing."""
    return float(np.percentile(values, q, method="inverted_cdf")) if len(values) else math.nan
