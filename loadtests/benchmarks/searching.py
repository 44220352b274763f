"""The search of `make capacity` on servers that are simulated: how far repeats differ, and how many windows it takes.

    python -m loadtests.benchmarks.searching

A queue with one server, whose speed wanders, or falls to a third for moments, which is what a machine with neighbours
is like. On each of many machines three searches are made: one after the other, and side by side as `--repeats 3` makes
them. Beside them stand the search that looks once at the end, and arrivals whose number is left to luck.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from loadtests.flags import counted
from loadtests.report import publish, table
from server.load import search
from server.load.drive import poisson
from server.load.search import Probe

Times = NDArray[np.float64]
Arrivals = Callable[[float, float, int], Times]

_STEP_S = 0.05
"""For so long the speed stays."""
_LONG_S = 900.0
_CAPACITY = 400.0
"""Requests a second, of the machine at its mean speed."""
_SPREAD = 0.3
"""Of the time that a request takes, in parts of it."""
_LIMIT_MS = 100.0
_WINDOW_S, _WARM_S = 3.0, 0.75
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
    Noise("speed wanders by 10 % in 2 min", wander=0.1, over_s=120),
    Noise("by 5 % in 1 min, and two slow moments in 10 s", wander=0.05, moments_per_s=0.2),
)


def given(rate: float, seconds: float, seed: int) -> Times:
    """As `make capacity` sends."""
    return np.array(poisson(rate, seconds, seed), np.float64) / 1e9


def by_luck(rate: float, seconds: float, seed: int) -> Times:
    """Their number too."""
    times = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * seconds) + 10))
    return times[times < seconds]


class Machine:
    def __init__(self, noise: Noise, seed: int, arrivals: Arrivals) -> None:
        self._rng = np.random.default_rng(seed)
        self._arrivals = arrivals
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

    def search(self, beside: int) -> list[float]:
        """What so many searches find side by side."""
        tried: list[Counter[float]] = [Counter() for _ in range(beside)]

        def probe(number: int, rate: float) -> Probe:
            tried[number][rate] += 1
            return self._probe(rate, tried[number][rate])

        searches = [search.Search(0.8 * _CAPACITY) for _ in range(beside)]
        return [found.rate for found in search.side_by_side(searches, probe)]

    def _probe(self, rate: float, seed: int) -> Probe:
        """One window. An answer ends its work after it came and after the one before, whichever is later."""
        self.windows += 1
        came = self._arrivals(rate, _WARM_S + _WINDOW_S, seed)
        work = self._rng.gamma(_SPREAD**-2, _SPREAD**2, len(came)) / _CAPACITY
        work /= self._speed[((self._now_s + came) % _LONG_S / _STEP_S).astype(int)]
        done = np.cumsum(work)
        ended = done + np.maximum.accumulate(came - (done - work))
        self._now_s += max(_WARM_S + _WINDOW_S, float(ended[-1]))
        late_ms = (ended - came)[came >= _WARM_S] * 1e3
        p99 = float(np.percentile(late_ms, 99, method="inverted_cdf"))
        return Probe(rate, ("p99",) if p99 > _LIMIT_MS else (), latency_ms={99.0: p99})


def measured(noise: Noise, machines: int, beside: int, looks: int, arrivals: Arrivals) -> tuple[float, float, float]:
    """The part of the machines whose repeats agree, the median of how far they differ, windows of a search."""
    apart, windows = [], 0
    with patch.object(search, "_LOOKS", looks):
        for seed in range(machines):
            machine = Machine(noise, seed, arrivals)
            rates = [rate for _ in range(_REPEATS // beside) for rate in machine.search(beside)]
            apart.append(max(rates) / min(rates) - 1)
            windows += machine.windows
    return float(np.mean(np.array(apart) <= _AGREE)), float(np.median(apart)), windows / machines / _REPEATS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=counted, default=150, help="of each noise (default: 150)")
    parser.add_argument("--out", type=Path, help="a folder for searching.md")
    options = parser.parse_args(arguments)
    modes = {
        "one look, number by luck": (1, 1, by_luck),
        "one look, number given": (1, 1, given),
        f"{search._LOOKS} looks, number given": (1, search._LOOKS, given),
        "the same, side by side": (_REPEATS, search._LOOKS, given),
    }
    rows = []
    for noise in NOISES:
        each = [measured(noise, options.machines, *mode) for mode in modes.values()]
        rows.append((noise.name, *(f"{agree:.2f}, {apart:.1%}, {windows:.0f}" for agree, apart, windows in each)))
    header = ("machine", *modes)
    text = f"# Repeats within {_AGREE:.0%} (part of {options.machines} machines), their median spread, windows\n\n"
    publish(text + table(header, rows), "searching.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
