"""When requests arrive: seeded processes of the open loop, which do not care how the server is doing."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, cos, pi
from random import Random


def poisson(rate_per_s: float, seconds: float, seed: int) -> list[int]:
    """Nanoseconds from the start, ascending: independent callers at `rate_per_s` together."""
    rng = Random(seed)
    times: list[int] = []
    at_s = rng.expovariate(rate_per_s)
    while at_s < seconds:
        times.append(int(at_s * 1e9))
        at_s += rng.expovariate(rate_per_s)
    return times


def bursty(rate_per_s: float, seconds: float, seed: int, *, swing: float = 0.8, dwell_s: float = 0.5) -> list[int]:
    """A two-state Markov-modulated Poisson process whose mean is `rate_per_s`.

    Busy and quiet times alternate, each exponential with mean `dwell_s`; the rate is 1 + `swing` times the
    mean in one and 1 - `swing` times it in the other.
    """
    rng = Random(seed)
    times: list[int] = []
    busy = rng.random() < 0.5
    begins_s = 0.0
    while begins_s < seconds:
        ends_s = min(seconds, begins_s + rng.expovariate(1 / dwell_s))
        rate = rate_per_s * (1 + swing if busy else 1 - swing)
        at_s = begins_s + rng.expovariate(rate)
        while at_s < ends_s:
            times.append(int(at_s * 1e9))
            at_s += rng.expovariate(rate)
        begins_s, busy = ends_s, not busy
    return times


def constant(rate_per_s: float, seconds: float, seed: int) -> list[int]:
    """Evenly spaced; the seed says when the first one comes."""
    first_s = Random(seed).random() / rate_per_s
    return [
        int((first_s + index / rate_per_s) * 1e9) for index in range(max(0, ceil((seconds - first_s) * rate_per_s)))
    ]


def ramp(rate_per_s: float, seconds: float, seed: int) -> list[int]:
    """Independent callers, from none to twice `rate_per_s`."""
    return _varying(2 * rate_per_s, seconds, seed, lambda part: part)


def step(rate_per_s: float, seconds: float, seed: int) -> list[int]:
    """Independent callers, at half of `rate_per_s` in the first half, at one and a half times in the second."""
    return _varying(1.5 * rate_per_s, seconds, seed, lambda part: 1 / 3 if part < 0.5 else 1.0)


def diurnal(rate_per_s: float, seconds: float, seed: int) -> list[int]:
    """Independent callers; the run is a day, from a night at a fifth of `rate_per_s` to a noon at 1.8 times."""
    return _varying(1.8 * rate_per_s, seconds, seed, lambda part: (1 - 0.8 * cos(2 * pi * part)) / 1.8)


def _varying(most_per_s: float, seconds: float, seed: int, share: Callable[[float], float]) -> list[int]:
    """A Poisson process of `most_per_s`, thinned to `share` of it, which goes by the part of the run that is over."""
    rng = Random(f"{seed} thinned")
    return [at for at in poisson(most_per_s, seconds, seed) if rng.random() < share(at / 1e9 / seconds)]


STEADY = {"poisson": poisson, "bursty": bursty}
"""Those whose rate is the same at any time, seen over some seconds."""
PROCESSES = {**STEADY, "constant": constant, "ramp": ramp, "step": step, "diurnal": diurnal}
