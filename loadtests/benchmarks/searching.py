"""The search of `make capacity` on servers that are simulated: how far repeats differ, and how many windows it takes.

    python -m loadtests.benchmarks.searching

A queue with one server, whose speed wanders, or falls to a third for moments, which is what a machine with neighbours
is like. On each of many machines three searches are made: one after the other, and side by side as `--repeats 3` makes
them. What they find stands over what the queue serves at its mean speed, and how far they differ over what one of them
tells of itself.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtests.flags import counted
from loadtests.report import publish, table
from server.load.drive import poisson
from server.load.limits import Limits
from server.load.search import Found, Probe, Search, side_by_side

Times = NDArray[np.float64]

_STEP_S = 0.05
"""For so long the speed stays."""
_LONG_S = 900.0
_CAPACITY = 400.0
"""Requests a second, of the machine at its mean speed."""
_SPREAD = 0.3
"""Of the time that a request takes, in parts of it."""
_LIMITS = Limits({50.0: 15.0, 95.0: 40.0, 99.0: 100.0})
_WINDOW_S = _LIMITS.window_s(0.03)
_WARM_S = _WINDOW_S / 4
_REPEATS = 3
_AGREE = 0.1


@dataclass(frozen=True)
class Noise:
    name: str
    wander: float = 0.0
    """Standard deviation of the speed's logarithm."""
    over_s: float = 60.0
    """In so many seconds the speed has forgotten what it was."""
    moments_per_s: float = 0.0
    moment_s: float = 0.2
    slowed_to: float = 0.3


NOISES = (
    Noise("quiet"),
    Noise("slow moments, one in 10 s", moments_per_s=0.1),
    Noise("slow moments, three in 10 s", moments_per_s=0.3),
    Noise("speed wanders by 5 % in 30 s", wander=0.05, over_s=30),
    Noise("speed wanders by 10 % in 5 s", wander=0.1, over_s=5),
    Noise("speed wanders by 10 % in 20 s", wander=0.1, over_s=20),
    Noise("speed wanders by 10 % in 2 min", wander=0.1, over_s=120),
    Noise("by 5 % in 1 min, and two slow moments in 10 s", wander=0.05, moments_per_s=0.2),
    Noise("by 10 % in 5 s, and one slow moment in 10 s", wander=0.1, over_s=5, moments_per_s=0.1),
)


class Machine:
    def __init__(self, noise: Noise, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._speed = self._speeds(noise)
        self._now_s = 0.0
        self.windows = 0

    def _speeds(self, noise: Noise) -> Times:
        keeps = math.exp(-_STEP_S / noise.over_s)
        logs = np.zeros(int(_LONG_S / _STEP_S))
        logs[0] = self._rng.normal(0, noise.wander)
        for step, push in enumerate(self._rng.normal(0, noise.wander * math.sqrt(1 - keeps**2), len(logs) - 1)):
            logs[step + 1] = keeps * logs[step] + push
        speeds = np.exp(logs)
        for at_s in self._rng.random(self._rng.poisson(noise.moments_per_s * _LONG_S)) * _LONG_S:
            until_s = at_s + self._rng.exponential(noise.moment_s)
            speeds[int(at_s / _STEP_S) : int(until_s / _STEP_S) + 1] *= noise.slowed_to
        return speeds

    def search(self, beside: int) -> list[Found]:
        """What so many searches find side by side."""
        return side_by_side([Search(0.8 * _CAPACITY) for _ in range(beside)], lambda _, rate: self._probe(rate))

    def _probe(self, rate: float) -> Probe:
        """One window. An answer ends its work after it came and after the one before, whichever is later."""
        self.windows += 1
        came = np.array(poisson(rate, _WARM_S + _WINDOW_S, self.windows), np.float64) / 1e9
        work = self._rng.gamma(_SPREAD**-2, _SPREAD**2, len(came)) / _CAPACITY
        work /= self._speed[((self._now_s + came) % _LONG_S / _STEP_S).astype(int)]
        done = np.cumsum(work)
        ended = done + np.maximum.accumulate(came - (done - work))
        self._now_s += max(_WARM_S + _WINDOW_S, float(ended[-1]))
        late_ms = (ended - came)[came >= _WARM_S] * 1e3
        over = [q for q, ms in _LIMITS.latency_ms.items() if np.percentile(late_ms, q, method="inverted_cdf") > ms]
        return Probe(rate, tuple(f"p{q:g}" for q in over))


def measured(noise: Noise, machines: int, beside: int) -> str:
    """The part of the machines whose repeats agree, the median of how far they differ, windows of a search, what it
    finds over the mean speed, and what it tells of itself."""
    apart, windows, rates, told = [], 0, [], []
    for seed in range(machines):
        machine = Machine(noise, seed)
        found = [one for _ in range(_REPEATS // beside) for one in machine.search(beside)]
        each = [one.rate for one in found]
        apart.append(max(each) / min(each) - 1)
        rates += [rate / _CAPACITY for rate in each]
        told += [one.between[1] / one.between[0] - 1 for one in found]
        windows += machine.windows
    agree = float(np.mean(np.array(apart) <= _AGREE))
    return (
        f"{agree:.2f}, {np.median(apart):.1%}, {windows / machines / _REPEATS:.0f}, "
        f"{np.median(rates):.2f}, {np.median(told):.0%}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=counted, default=20, help="of each noise (default: 20)")
    parser.add_argument("--out", type=Path, help="a folder for searching.md")
    options = parser.parse_args(arguments)
    rows = [(noise.name, *(measured(noise, options.machines, beside) for beside in (1, _REPEATS))) for noise in NOISES]
    text = (
        f"# {_REPEATS} searches on each of {options.machines} machines: the part within {_AGREE:.0%}, the median of "
        "how far they differ, windows of one, its rate over the mean speed, its interval\n\n"
    )
    publish(text + table(("machine", "one after the other", "side by side"), rows), "searching.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
