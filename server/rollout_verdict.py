"""Whether a candidate is worse than the version that serves. No clock, no I/O.

What is judged is a rate over its limit, and not by chance: the lower end of Wilson's interval is compared. Of latency
it is the rate of answers that take longer than so many times the other version's 95 % quantile, which is to be 5 % at
most, with enough answers on both sides; one that is still waited for, and has taken longer, is one of them, so that a
candidate that hangs is not judged by the few that it answers. Counts are of a sliding window of requests.
Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from enum import StrEnum

import numpy as np

from server.errors import Code, ServingError
from server.repository.rollout import WINDOW, Compare, Rollout
from server.tensor import Tensor
from server.types import InferResponse, Outcome

_Z = 1.96
_LOOK_EVERY = 8
"""Outcomes of the candidate between two looks."""
_SLOW = 0.05
"""Of the candidate's answers, beyond the limit that is of the other version's 95 % quantile."""
_LEAST_NS = 1_000_000
"""A quantile of the version that serves is taken to be this at least: ratios of microseconds say nothing."""
_NOT_ITS_FAULT = (Code.CANCELLED, Code.INVALID_ARG, Code.TOO_LARGE)


class Cause(StrEnum):
    """Why a candidate was rolled back."""

    ERRORS = "errors"
    LATENCY = "latency"
    DISAGREEMENT = "disagreement"


class Side:
    """What one version did lately."""

    __slots__ = ("_failed", "_ns")

    def __init__(self) -> None:
        self._failed: deque[bool] = deque(maxlen=WINDOW)
        self._ns: deque[int] = deque(maxlen=WINDOW)

    def count(self, outcome: Outcome, ns: int) -> None:
        """`ns`: from its submission to its outcome."""
        if isinstance(outcome, InferResponse):
            self._failed.append(False)
            self._ns.append(ns)
        elif not (isinstance(outcome, ServingError) and outcome.code in _NOT_ITS_FAULT):
            self._failed.append(True)

    @property
    def requests(self) -> int:
        return len(self._failed)

    @property
    def answers(self) -> int:
        return len(self._ns)

    @property
    def failed(self) -> int:
        return sum(self._failed)

    def p95_ns(self) -> float:
        return float(np.quantile(self._ns, 1 - _SLOW)) if self._ns else 0.0

    def slower(self, than_ns: float) -> int:
        """Answers that took longer."""
        return sum(ns > than_ns for ns in self._ns)


class Verdict:
    """Of one rollout."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout
        self.stable, self.candidate = Side(), Side()
        self._differed: deque[bool] = deque(maxlen=WINDOW)
        self._since = 0

    def compared(self, differs: bool) -> None:
        """Two answers to one request."""
        self._differed.append(differs)

    def judge(self, under_way: Collection[int] = (), now_ns: int = 0) -> Cause | None:
        """After something of the candidate has begun or ended; None: nothing is wrong with it, or it is not known yet.
        `under_way`: when those of its latest `WINDOW` requests began that have not ended."""
        self._since += 1
        limits, stable, candidate = self._rollout, self.stable, self.candidate
        if self._since < _LOOK_EVERY or candidate.requests + len(under_way) < limits.min_requests:
            return None
        self._since = 0
        if candidate.requests >= limits.min_requests:
            usual = stable.failed / stable.requests if stable.requests else 0.0
            if at_least(candidate.failed, candidate.requests) > min(1.0, usual + limits.max_error_rate):
                return Cause.ERRORS
            if at_least(sum(self._differed), len(self._differed)) > limits.max_disagreement:
                return Cause.DISAGREEMENT
        if stable.answers >= limits.min_requests:
            limit_ns = limits.max_latency_ratio * max(stable.p95_ns(), _LEAST_NS)
            late = sum(now_ns - since_ns > limit_ns for since_ns in under_way)
            answers = candidate.answers + late
            if answers >= limits.min_requests and at_least(candidate.slower(limit_ns) + late, answers) > _SLOW:
                return Cause.LATENCY
        return None


def at_least(hits: int, trials: int) -> float:
    """The lower end of the 95 % interval of a rate; 0 where nothing was hit."""
    if not hits:
        return 0.0
    rate, square = hits / trials, _Z**2 / trials
    middle = rate + square / 2
    spread = _Z * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials))
    return max(0.0, (middle - spread) / (1 + square))


def differ(one: InferResponse, other: InferResponse, compare: Compare, tolerance: float) -> bool:
    """Whether two answers to a request say different things. Any thread."""
    ours, theirs = ({tensor.name: tensor for tensor in response.outputs} for response in (one, other))
    return ours.keys() != theirs.keys() or any(
        _tensors_differ(tensor, theirs[name], compare, tolerance) for name, tensor in ours.items()
    )


def _tensors_differ(one: Tensor, other: Tensor, compare: Compare, tolerance: float) -> bool:
    if one.datatype != other.datatype or one.shape != other.shape:
        return True
    if one.datatype not in ("FP16", "FP32", "FP64"):
        return bytes(one.data) != bytes(other.data)
    a, b = one.numpy().astype(np.float64), other.numpy().astype(np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return True
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    if compare == "top" and a.ndim and a.shape[-1] > 1:
        return bool(np.any(a.argmax(-1) != b.argmax(-1)))
    return bool(a.size) and bool(np.abs(a - b).max() > tolerance * np.abs(a).max())
