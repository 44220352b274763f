"""How long a forward pass takes, by the rows in it: seeded by the warm-up, then learned from every pass.

A pass has its compute (merge, run, split) and an overhead that does not depend on its rows: the hand-off to a
thread and back, the loop's own lateness, the answers that are given before the next one begins. From both follow the
mean, a high quantile, and the size of batch beyond which a row does not become cheaper.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

_WEIGHT = 8
"""A new measurement moves the estimate by a weight-th: some ten passes follow a change, one does not."""
_CLAMP = 4
"""A measurement counts for at most this many times the estimate, and at least this part of it: a page fault
or a neighbour on the core makes a pass tens of times longer and says nothing about the next one."""
_OUTLIER = 1.5
"""Over this many times the estimate a measurement is an outlier, and counts as just so much, until the next pass
of the same size is one too: then it is how things are now."""
_QUANTILE = 0.95
_RATIO = 1.2
"""The high quantile over the mean before anything was learned; the warm-up knows only medians."""
_RATIO_STEP = 0.05
_TOLERANCE = 0.02
"""A batch size must make a row cheaper by more than this to be worth its latency."""
_PERIOD = 16
"""Passes after which sizes that did not occur follow the drift of the one that occurred most."""
_LATE_SHARE, _RAREST_LATE_SHARE = 256, 2048
"""In a trial of a larger batch all rows but the last ones wait longer than they else would. Of the rows served one in
so many may be such a one: more, and they are the 99th percentile. Each further trial of a size is half as frequent, but
never rarer than the second: a machine that has changed is found out."""
_DOUBTED = 1.25
"""A size whose row takes by the warm-up over so many times that of the best size is doubted: the warm-up may have
been disturbed, and disturbances only add."""
_DOUBTED_SHARE = 8
"""It is tried once soon, for where many servers start together, all sizes but the smallest may look dear."""


class CostModel:
    """Nanoseconds of a forward pass by rows. Not thread-safe: it lives on the event loop."""

    __slots__ = (
        "_best",
        "_judged",
        "_ns",
        "_offered",
        "_overhead",
        "_passes",
        "_ratio",
        "_seen",
        "_since_trial",
        "_sizes",
        "_suspect",
        "_then",
        "_trials",
    )

    def __init__(self, seed: Mapping[int, float] | None = None) -> None:
        """`seed`: nanoseconds by rows, as the warm-up sweep measured them."""
        self._ns: dict[int, float] = {rows: float(ns) for rows, ns in (seed or {}).items()}
        self._sizes = sorted(self._ns)
        self._overhead = 0.0
        self._ratio = _RATIO
        self._passes: dict[int, int] = {}
        """By rows, how many passes were observed since the size was last out of use: the first ones weigh more, for a
        seed may be wrong, and so may be what was true then."""
        self._suspect: set[int] = set()
        """Sizes whose last pass was an outlier."""
        self._since_trial = 0
        """Rows."""
        self._offered = 0
        """The size of which a trial is to be made; 0: none."""
        self._trials: dict[int, int] = {}
        """By the size that was offered, how many were made; filled or not, for there may never be so many that wait."""
        self._best: dict[int, int] = {}
        """The best size, by the maximum asked for."""
        self._judged: set[int] = set()
        """The maxima of which that is so until the next period."""
        self._seen: dict[int, int] = {}
        """How often each size occurred in this period."""
        self._then = dict(self._ns)
        """The estimates at the period's begin."""

    # A model version whose passes are of one class has this as its whole book: see `costs.Costs`.

    def on(self, device: str) -> CostModel:
        return self

    def for_signature(self, signature: object) -> CostModel:
        return self

    def speed(self, device: str) -> float:
        return 1.0

    # --- what is known -----------------------------------------------------------------------------

    @property
    def sizes(self) -> Sequence[int]:
        """The rows of which something is known, ascending."""
        return self._sizes

    def mean_ns(self, rows: int) -> float:
        """The expected time without the overhead; 0 while nothing was ever measured."""
        return self._estimate(rows) or 0.0

    def fixed_ns(self) -> float:
        """The part of a pass's time that does not grow with its rows; with one size known, none of it."""
        if len(self._sizes) < 2:
            return 0.0
        least = self._sizes[0]
        return min(max(0.0, self._on_line(least, self._sizes[-1], 0)), self._ns[least])

    def like(self, seed: Mapping[int, float]) -> CostModel:
        """A new one with another seed, which starts with the overhead and the quantile that were learned here."""
        other = CostModel(seed)
        other._overhead, other._ratio = self._overhead, self._ratio
        return other

    # --- learning and telling ----------------------------------------------------------------------

    def observe(self, rows: int, ns: int, overhead_ns: int = 0) -> None:
        """Learn from one pass. An outlier moves the estimate by a bounded step only, also the first of its size."""
        estimate = self._estimate(rows)
        if estimate:
            self._learn_ratio(ns / estimate)
        passes = self._passes[rows] = self._passes.get(rows, 0) + 1
        new = rows not in self._ns
        if new:
            insort(self._sizes, rows)
            self._ns[rows] = ns if estimate is None else _clamped(ns, estimate)
        elif estimate is not None:
            # The first one in service that is shorter than in the warm-up is nearer to the truth: neighbours only add.
            weight = 1 if passes == 1 and ns < estimate else min(_WEIGHT, passes + 1)
            self._ns[rows] = estimate + (self._believed(rows, ns, estimate) - estimate) / weight
        step_ns = overhead_ns - self._overhead
        self._overhead += min(step_ns, self._ns[rows] + self._overhead) / _WEIGHT
        self._count(rows)
        if new:
            self._judged.clear()

    def predict_ns(self, rows: int) -> int | None:
        """The expected time of a pass of `rows` rows, overhead included; None while nothing was ever measured.

        Between two known sizes the time is interpolated; beyond the largest it goes on with the last slope;
        below the smallest it is that of the smallest, for a pass has costs that do not shrink with its rows.
        """
        estimate = self._estimate(rows)
        return None if estimate is None else int(estimate + self._overhead)

    def high_ns(self, rows: int) -> int | None:
        """What nineteen passes of twenty do not take; None while nothing was ever measured."""
        estimate = self._estimate(rows)
        return None if estimate is None else int(estimate * self._ratio + self._overhead)

    def compute_ns(self, rows: int) -> int | None:
        """The expected time without the overhead: what the pass would take on the loop itself."""
        estimate = self._estimate(rows)
        return None if estimate is None else int(estimate)

    def best_rows(self, largest: int) -> int:
        """The smallest batch, up to `largest` rows, that costs as little per row as any, within a tolerance.

        `largest` while nothing was measured. Once in a while a larger size, if enough rows were served since the
        last trial: one that the warm-up measured wrong gets its chance so, and a smaller one occurs by itself
        whenever few wait.
        """
        if not self._sizes or largest <= 1:
            return largest
        if largest not in self._judged:
            self._best[largest] = self._cheapest(largest, self._best.get(largest))
            self._judged.add(largest)
        best = self._best[largest]
        if best < largest:
            trial = self._trial(best, largest)
            if self._since_trial > self._share(trial, best) * (trial - best):
                self._offered = trial
                return trial
        return best

    def _trial(self, best: int, largest: int) -> int:
        """The next larger size that service has not shown yet; else twice the best.

        Not only twice the best: each doubling may gain less than the tolerance, and all together much.
        """
        sizes = [min(best << power, largest) for power in range(1, (largest // best).bit_length() + 1)]
        return next((size for size in sizes if not self._shown(size)), sizes[0])

    def _share(self, trial: int, best: int) -> int:
        """Of so many rows one may be late for a trial of a size."""
        shown = self._shown(trial)
        if not shown and (self._estimate(trial) or 0) * best > _DOUBTED * (self._estimate(best) or 0) * trial:
            return _DOUBTED_SHARE
        return min(_LATE_SHARE << min(shown, 10), _RAREST_LATE_SHARE)

    def _shown(self, rows: int) -> int:
        """How often service has shown what so many rows cost, or could have."""
        return max(self._passes.get(rows, 0), self._trials.get(rows, 0))

    def _cheapest(self, largest: int, used: int | None) -> int:
        """The best size. `used`, the one until now, stays while it is good enough; a smaller one takes its place within
        half of the tolerance: noise would move it to and fro, and each time that batches become larger their first
        rows are late."""
        sizes = [1 << power for power in range(largest.bit_length()) if 1 << power < largest]
        by_row = {rows: ((self._estimate(rows) or 0.0) + self._overhead) / rows for rows in (*sizes, largest)}
        least = min(by_row.values())
        enough = least * (1 + _TOLERANCE)
        if used is not None and by_row[used] <= enough:
            better = least * (1 + _TOLERANCE / 2)
            return next(rows for rows, ns in by_row.items() if ns <= better or rows == used)
        return next(rows for rows, ns in by_row.items() if ns <= enough)

    def _believed(self, rows: int, ns: int, estimate: float) -> float:
        alone = ns > _OUTLIER * estimate and rows not in self._suspect
        if ns > _OUTLIER * estimate:
            self._suspect.add(rows)
        else:
            self._suspect.discard(rows)
        return _OUTLIER * estimate if alone else _clamped(ns, estimate)

    def _learn_ratio(self, ratio: float) -> None:
        """Follow the quantile by steps of one size, so that the height of an outlier does not matter."""
        above = ratio > self._ratio
        step = _RATIO_STEP * (_QUANTILE if above else _QUANTILE - 1)
        self._ratio = min(max(1.0, self._ratio + step), float(_CLAMP))

    def _count(self, rows: int) -> None:
        self._since_trial += rows
        # Only a pass that an offer has made larger is a trial: requests of several rows come by themselves, and would
        # put trials off for ever. Where few waited, it tells little of the size that was offered.
        for largest, best in self._best.items():
            if self._offered and rows > best:
                self._since_trial = 0
                if rows >= min(2 * best, largest):
                    self._trials[self._offered] = self._trials.get(self._offered, 0) + 1
                self._offered = 0
        self._seen[rows] = self._seen.get(rows, 0) + 1
        if sum(self._seen.values()) >= _PERIOD:
            self._follow_drift()

    def _follow_drift(self) -> None:
        """The machine became slower or faster for all sizes: without this those not in use would look better
        or worse than they are, for no other reason than that they were measured earlier."""
        common = max(self._seen, key=lambda rows: self._seen[rows])
        now, before = self._ns[common], self._then.get(common)
        for rows in self._sizes:
            if rows in self._seen:
                continue
            self._passes[rows] = 0
            if before:
                # Where the commonest size is another one each time, as on a machine that is slow now and then and has
                # larger batches then, drifts multiply without end. Between one pass of the commonest size and as many
                # rows of it is where the truth must be, or near.
                least, most = sorted((now, now * rows / common))
                self._ns[rows] = min(max(self._ns[rows] * now / before, least / _CLAMP), most * _CLAMP)
        self._seen.clear()
        self._judged.clear()
        self._then = dict(self._ns)

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
