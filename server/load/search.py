"""The highest rate that holds: windows of an open loop, each at the rate that tells most after those before it.

A machine's speed wanders, so near its limit the same rate holds in one window and breaks in the next, and what else
disturbs it breaks windows at any rate. What is found is the rate at which half of the windows that nothing disturbs
hold (`server.load.threshold`), with the interval in which it is with nine chances of ten. Searches side by side see the
same minutes, so that they differ by what a search can't tell and not by what the machine does meanwhile
(`python -m loadtests.benchmarks.searching`).

A generator that is late itself breaks windows too, for latencies count from the time at which requests were due: then
what is found is its own limit, and at least the server's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from server.load.limits import Limits
from server.load.samples import Samples
from server.load.threshold import Threshold

Bound = Literal["slo", "generator", "none"]
"""What keeps the rate from being higher: the objective; the generator, late itself; nothing that was tried."""

PRECISION = 0.05
"""Of the interval that a search ends with: its highest rate over its lowest, less one."""
WINDOWS = 60
_HOPELESS = 14
"""After so many windows none of which held, none will."""
_LOW, _MIDDLE, _HIGH = 0.05, 0.5, 0.95


@dataclass(frozen=True)
class Probe:
    """One window at one rate."""

    rate: float
    broken: tuple[str, ...]
    """Limits that were not held."""
    late: str = ""
    """That the generator was late itself, so that it is not the server that breaks; empty if it was on time."""
    answers_per_s: float = 0.0
    latency_ms: dict[float, float] = field(default_factory=dict)
    """By percentile."""

    @property
    def held(self) -> bool:
        return not self.broken


@dataclass(frozen=True)
class Found:
    rate: float
    """0: no window held."""
    bound: Bound
    probes: tuple[Probe, ...]
    """In the order in which they were made."""
    between: tuple[float, float] = (0.0, 0.0)
    """The rate is, with nine chances of ten."""

    @property
    def best(self) -> Probe | None:
        """The window that held nearest to the rate."""
        held = [one for one in self.probes if one.held]
        return min(held, key=lambda one: abs(one.rate - self.rate), default=None)


def judged(rate: float, samples: Samples, limits: Limits, max_lag_ms: float, percentiles: tuple[float, ...]) -> Probe:
    """A window of `samples`, in which `rate` requests a second were due."""
    lag = samples.lag_ms(99)
    late = "" if lag <= max_lag_ms else f"the generator was late itself: {lag:.1f} ms at the 99th percentile"
    latency = {q: samples.latency_ms(q) for q in sorted({*percentiles, *limits.latency_ms})}
    return Probe(rate, tuple(limits.broken(samples)), late, samples.answers_per_s(), latency)


class Search:
    """From `guess` requests a second, until the rate is known to `precision`, or that many `windows` were made."""

    def __init__(
        self,
        guess: float,
        precision: float = PRECISION,
        windows: int = WINDOWS,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        """`over`: once it says so, what was found so far is all."""
        self._guess = guess
        self._precision = precision
        self._windows = windows
        self._over = over
        self._threshold = Threshold(guess)
        self._made: list[Probe] = []

    @property
    def next(self) -> float:
        """The rate of the next window."""
        return self._threshold.most_telling() if self._made else self._guess

    def take(self, made: Probe) -> None:
        self._made.append(made)
        self._threshold.learn(made.rate, made.held)

    @property
    def through(self) -> bool:
        """No window is needed any more, or there is no time for one."""
        made = len(self._made)
        if made >= self._windows or (made and self._over()):
            return True
        if not any(one.held for one in self._made):
            return made >= _HOPELESS
        low, high = self._between
        return any(one.broken for one in self._made) and high / low <= 1 + self._precision

    @property
    def _between(self) -> tuple[float, float]:
        return self._threshold.quantile(_LOW), self._threshold.quantile(_HIGH)

    def found(self) -> Found:
        probes = tuple(self._made)
        if not any(one.held for one in probes):
            return Found(0.0, _bound(probes), probes)
        return Found(self._threshold.quantile(_MIDDLE), _bound(probes), probes, self._between)


def highest(search: Search, probe: Callable[[float], Probe]) -> Found:
    """What a search finds by the windows of `probe`."""
    (found,) = side_by_side([search], lambda _, rate: probe(rate))
    return found


def side_by_side(searches: Sequence[Search], probe: Callable[[int, float], Probe]) -> list[Found]:
    """What each finds, a window of each in turn, until all of them are through: all of them see the same minutes.

    `probe` is told whose window it is, by its place in `searches`, and the rate. In each round another one is first.
    """
    turns = deque(range(len(searches)))
    while not all(one.through for one in searches):
        for number in turns:
            searches[number].take(probe(number, searches[number].next))
        turns.rotate(-1)
    return [one.found() for one in searches]


def _bound(made: Sequence[Probe]) -> Bound:
    """By the windows that broke."""
    broken = [one for one in made if not one.held]
    if not broken:
        return "none"
    return "generator" if 2 * sum(bool(one.late) for one in broken) > len(broken) else "slo"
