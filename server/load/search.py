"""The highest rate that holds: a bisection over steady windows of an open loop.

Whatever disturbs a measurement makes it worse, never better. So a rate holds if one window holds it, and is given up
only when three have broken. A generator that is late itself makes it worse too, for latencies count from the time at
which requests were due: what it breaks then tells nothing, and is tried four times; what holds all the same, holds.

A machine that was slow for seconds breaks three windows as well, and the search would end below. So the lowest rate
that was given up is tried again at the end, three times, and where it holds then, the search goes on above: repeats
agree much better for it (`python -m loadtests.benchmarks.searching`). Searches side by side see the same minutes, from
the first window to the last look, and agree better still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

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


_T = TypeVar("_T")
_Windows: TypeAlias = Generator[float, Probe, _T]
"""It gives the rates that it wants to try, and is sent the window that was made at each."""


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
    """What a search finds by the windows of `probe`."""
    (found,) = side_by_side([Search(guess, precision, most, over)], lambda _, rate: probe(rate))
    return found


def side_by_side(searches: Sequence[Search], probe: Callable[[int, float], Probe]) -> list[Found]:
    """What each finds, a window of each in turn, so that all of them see the same minutes.

    They end together: who is through waits for the others, and as long as what one of them gave up holds after all,
    all of them look again. `probe` is told whose window it is, by its place in `searches`, and the rate.
    """
    _in_turns([one.narrow() for one in searches], probe)
    while any(_in_turns([one.look_again() for one in searches], probe)):
        pass
    return [one.found() for one in searches]


def _in_turns(several: Sequence[_Windows[_T]], probe: Callable[[int, float], Probe]) -> list[_T]:
    """What each returns. In each round another one has the first window; one that returned drops out."""
    returned: dict[int, _T] = {}
    made: dict[int, Probe | None] = dict.fromkeys(range(len(several)))
    turns = deque(made)
    while turns:
        this_round = tuple(turns)
        turns.rotate(-1)
        for number in this_round:
            try:
                # A generator that has not begun is sent None.
                rate = several[number].send(made[number])  # type: ignore[arg-type]
            except StopIteration as end:
                returned[number] = end.value
                turns.remove(number)
            else:
                made[number] = probe(number, rate)
    return [returned[number] for number in made]


@dataclass
class Search:
    """From `guess` requests a second, until a rate that holds and one that does not are within `precision`."""

    guess: float
    precision: float = 0.03
    most: float = float("inf")
    """No rate above is tried."""
    over: Callable[[], bool] = lambda: False
    """Once it says so, what was found so far is all."""
    _low: float = field(default=0.0, init=False)
    """It holds; 0: nothing does."""
    _high: float = field(default=float("inf"), init=False)
    """The lowest rate that was given up; infinity: none."""
    _made: list[Probe] = field(default_factory=list, init=False)

    def found(self) -> Found:
        return Found(self._low, _bound(self._made, self._high), tuple(self._made))

    def narrow(self) -> _Windows[None]:
        """Until both are near each other."""
        yield from self._bracket(min(self.guess, self.most))
        yield from self._halve()

    def look_again(self) -> _Windows[bool]:
        """Whether what was given up holds after all, by one of some windows; then the search goes on above."""
        if self._ended() or not (yield from self._holds_after_all(self._high)):
            return False
        yield from self._above(self._high, 1 + 2 * self.precision)
        yield from self._halve()
        return True

    def _ended(self) -> bool:
        return not 0 < self._low < self.most or self.over()

    def _bracket(self, guess: float) -> _Windows[None]:
        if (yield from self._holds(guess)):
            yield from self._above(guess, _GROWTH)
            return
        # Further down each time: what holds nothing at all would be asked for minutes.
        part, self._high = _SHRINKING, guess
        while (low := self._high * part) > guess * _LEAST and not self.over():
            if (yield from self._holds(low)):
                self._low = low
                return
            part, self._high = part**2, low

    def _above(self, low: float, growth: float) -> _Windows[None]:
        """From a rate that holds to one that does not."""
        self._low, self._high = low, float("inf")
        while self._low < self.most and self._high == float("inf"):
            yield from self._try(min(self.most, self._low * growth))

    def _halve(self) -> _Windows[None]:
        while not self._ended() and self._high / self._low > 1 + self.precision:
            yield from self._try((self._low * self._high) ** 0.5)

    def _try(self, rate: float) -> _Windows[None]:
        if (yield from self._holds(rate)):
            self._low = rate
        else:
            self._high = rate

    def _holds(self, rate: float) -> _Windows[bool]:
        broken = late = 0
        if self._made and self.over():
            return False
        while broken < _BROKEN and late < _LATE:
            one = yield from self._window(rate)
            if one.held:
                return True
            late, broken = (late + 1, broken) if one.late else (late, broken + 1)
        return False

    def _holds_after_all(self, rate: float) -> _Windows[bool]:
        for _ in range(_LOOKS):
            if not self.over() and (yield from self._window(rate)).held:
                return True
        return False

    def _window(self, rate: float) -> _Windows[Probe]:
        self._made.append((yield rate))
        return self._made[-1]


def _bound(made: Sequence[Probe], high: float) -> Bound:
    """By the windows at the lowest rate that did not hold."""
    above = [one for one in made if one.rate == high]
    if not above:
        return "none"
    return "slo" if any(one.broken and not one.late for one in above) else "generator"
