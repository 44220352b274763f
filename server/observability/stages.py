"""Where the time of requests goes, of some of them: each carries an `Explanation` that its caller did not ask for.

All are looked at while they are few. Under load it is every n-th in the mean, by chance, so that about `PER_S` of a
model version are looked at each second, and each counts for n: sums and counts are those of all, but for chance.
A request that is not chosen costs a subtraction with all that came with it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from server.explain import Explanation

if TYPE_CHECKING:
    from server.scheduler.statistics import ModelStatistics
    from server.types import InferRequest, PredictRequest

PER_S = 50
"""Requests that are looked at in a second, about."""
_WINDOW_NS = 1_000_000_000
"""After which n is set anew."""


class Stages:
    """Chooses among the requests of one model version. On the event loop."""

    __slots__ = ("_chosen", "_since_ns", "_statistics", "_stride", "left")

    def __init__(self, statistics: ModelStatistics) -> None:
        self._statistics = statistics
        self._stride = 1
        self._chosen = 0
        self._since_ns = 0
        self.left = 0
        """Requests to be passed over before the next one. Whoever lets `count` of them by subtracts it, and calls
        `choose` if that is below 0."""

    def choose(self, requests: Sequence[InferRequest]) -> None:
        """Of requests that were just decoded, and that `left` counts already."""
        count = len(requests)
        index = self.left + count
        while index < count:
            request = requests[index]
            explanation = request.explanation
            if explanation is None:
                explanation = request.explanation = Explanation(request.received_ns, asked=False)
                explanation.mark("decode")
            explanation.then(partial(self._count, self._stride))
            index += self._gap(request.received_ns)
        self.left = index - count

    def one(self, call: PredictRequest) -> None:
        """As `choose`, of a call that comes by itself."""
        self.left -= 1
        if self.left >= 0:
            return
        if call.explanation is None:
            call.explanation = Explanation(call.received_ns, asked=False)
            call.explanation.mark("decode")
        call.explanation.then(partial(self._count, self._stride))
        self.left = self._gap(call.received_ns) - 1

    def _count(self, weight: int, explanation: Explanation) -> None:
        self._statistics.count_stages(explanation.parts_ns(), explanation.waited, weight)

    def _gap(self, now_ns: int) -> int:
        """How far the next one is, behind one that was chosen now."""
        self._chosen += 1
        elapsed_ns = now_ns - self._since_ns
        if elapsed_ns >= _WINDOW_NS:
            self._stride = max(1, round(self._chosen * self._stride * 1e9 / elapsed_ns / PER_S))
            self._chosen, self._since_ns = 0, now_ns
        elif self._chosen >= 2 * PER_S:
            # A burst: not every one of it until the window is over.
            self._stride *= 2
            self._chosen, self._since_ns = 0, now_ns
        return random.randrange(1, 2 * self._stride)
