"""The highest rate that holds: a bisection over steady windows of an open loop.

Whatever disturbs a measurement makes it worse, never better. So a rate holds if one window holds it, and is given up
only when three have broken. A generator that is late itself makes it worse too, for latencies count from the time at
which requests were due: what it breaks then tells nothing, and is tried four times; what holds all the same, holds.

A machine that was slow for seconds breaks three windows as well, and the search would end below. So the lowest rate
that was given up is tried again at the end, three times, and where it holds then, the search goes on above: repeats
agree much better for it (`python -m loadtests.benchmarks.searching`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from server.load.limits import Limits
from server.load.samples import Samples

Bound = Literal["slo", "generator", "none"]
"""What keeps the rate from being higher: the objective; the generator, late itself; nothing that was tried."""

_BROKEN, _LATE = 3, 4
_LOOKS = 3
"""Windows at the end, at the lowest rate that was given up."""
_GROWTH, _SHRINKING = 1.4, 0.6
_LEAST = 1e-3
"""Of the first guess: below, nothing holds."""


@dataclass(frozen=True)
class Probe:
    """One window at one rate."""

    rate: float
    broken: tuple[str, ...]
    """Limits that were not held."""
    late: str = ""
    """That the generator was late itself, so that what is broken tells nothing; empty if it was on time."""
    answers_per_s: float = 0.0
    latency_ms: dict[float, float] = field(default_factory=dict)
    """By percentile."""

    @property
    def held(self) -> bool:
        return not self.broken


@dataclass(frozen=True)
class Found:
    rate: float
    """The highest that was held; 0: none."""
    bound: Bound
    probes: tuple[Probe, ...]
    """In the order in which they were made."""

    @property
    def best(self) -> Probe | None:
        return max((one for one in self.probes if one.held), key=lambda one: one.rate, default=None)


def judged(rate: float, samples: Samples, limits: Limits, max_lag_ms: float, percentiles: tuple[float, ...]) -> Probe:
    """A window of `samples`, in which `rate` requests a second were due."""
    lag = samples.lag_ms(99)
    late = "" if lag <= max_lag_ms else f"the generator was late itself: {lag:.1f} ms at the 99th percentile"
    latency = {q: samples.latency_ms(q) for q in sorted({*percentiles, *limits.latency_ms})}
    return Probe(rate, tuple(limits.broken(samples)), late, samples.answers_per_s(), latency)


def highest(
    probe: Callable[[float], Probe],
    guess: float,
    precision: float = 0.03,
    most: float = float("inf"),
    over: Callable[[], bool] = lambda: False,
) -> Found:
    """Search from `guess` requests a second, until a rate that holds and one that does not are within `precision`.

    `most`: no rate above is tried. `over`: once it says so, what was found so far is all.
    """
    windows = _Windows(probe, over)
    low, high = _bracket(windows.hold, min(guess, most), most, over)
    while low and low < most and not over():
        if high / low > 1 + precision:
            middle = (low * high) ** 0.5
            low, high = (middle, high) if windows.hold(middle) else (low, middle)
        elif windows.hold_after_all(high):
            low, high = _above(windows.hold, high, most, 1 + 2 * precision)
        else:
            break
    return Found(low, _bound(windows.made, high), tuple(windows.made))


@dataclass
class _Windows:
    probe: Callable[[float], Probe]
    over: Callable[[], bool]
    made: list[Probe] = field(default_factory=list)

    def _one(self, rate: float) -> Probe:
        self.made.append(self.probe(rate))
        return self.made[-1]

    def hold(self, rate: float) -> bool:
        broken = late = 0
        if self.made and self.over():
            return False
        while broken < _BROKEN and late < _LATE:
            one = self._one(rate)
            if one.held:
                return True
            late, broken = (late + 1, broken) if one.late else (late, broken + 1)
        return False

    def hold_after_all(self, rate: float) -> bool:
        """One of some, at a rate that was given up."""
        return any(not self.over() and self._one(rate).held for _ in range(_LOOKS))


def _bracket(
    holds: Callable[[float], bool], guess: float, most: float, over: Callable[[], bool]
) -> tuple[float, float]:
    """A rate that holds and one above it that does not; 0 and infinity where there is none."""
    if not holds(guess):
        # Further down each time: what holds nothing at all would be asked for minutes.
        part, high = _SHRINKING, guess
        while (low := high * part) > guess * _LEAST and not over():
            if holds(low):
                return low, high
            part, high = part**2, low
        return 0.0, high
    return _above(holds, guess, most, _GROWTH)


def _above(holds: Callable[[float], bool], low: float, most: float, growth: float) -> tuple[float, float]:
    """From a rate that holds."""
    while low < most:
        higher = min(most, low * growth)
        if not holds(higher):
            return low, higher
        low = higher
    return low, float("inf")


def _bound(made: Sequence[Probe], high: float) -> Bound:
    """By the windows at the lowest rate that did not hold."""
    above = [one for one in made if one.rate == high]
    if not above:
        return "none"
    return "slo" if any(one.broken and not one.late for one in above) else "generator"
