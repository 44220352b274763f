"""When requests arrive: seeded processes of the open loop, which do not care how the server is doing."""

from __future__ import annotations

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


PROCESSES = {"poisson": poisson, "bursty": bursty}
