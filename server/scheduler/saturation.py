"""The signal that replicas are scaled by: the work that arrives over the work that can be done within the objective.

Work is counted in instances: 1.5 would keep one and a half of them busy. What a version's instances can do is less
than their number where answers have an objective, for requests come unevenly: at full use the wait grows without
bound. Two bounds say how much of them can be used so that one request in a hundred waits longer than it may, and
the higher one counts:

1. what arrives by chance (Poisson) within the time that there is to wait can be done in that time;
2. the queue's tail falls exponentially: ``P(wait > t) <= exp(-d t / s)`` with a row's time `s`, where the use is
   ``d / (exp(d) - 1)``, of arrivals by chance and passes of equal length (Lundberg's inequality).

Passes of all models share the cores. So no version's saturation is below that of the cores, as long as work for it
arrives at all. No clock, no I/O.
Source: Kingman, "Inequalities in the theory of queues", 1970.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_LATE = 0.01
"""The part of the requests that may wait longer than the objective leaves them."""
_QUANTILE = 2.33
"""Of the normal distribution, at that part."""
_STEEP = 100.0
"""Where the tail falls so fast, the use is as good as nothing."""
_LEAST_USE = 0.25
"""Below this the objective is out of reach: more replicas would not bring it nearer."""


class Ability(NamedTuple):
    """What the instances of one version can do."""

    instances: float
    """That live; one on a slower device counts for as much as it does of what one on the fastest does."""
    rows: int = 1
    """Of a pass."""
    pass_ns: int = 0
    """What it takes; 0: not known."""
    objective_ns: int = 0
    """From receipt to answer; 0: there is none."""
    of_cores: float = 0.0
    """The part of this machine's cores that an instance at work has."""

    def within(self) -> float:
        """Instances' work that can be done within the objective."""
        return self.instances * use_within(self.instances * self.rows, self.pass_ns, self.rows, self.objective_ns)


class Demand(NamedTuple):
    """What is asked of one version."""

    work: float = 0.0
    """Instances that what arrives lately would keep busy, refused work too."""
    able: float = 0.0
    """Instances' work that can be done within the objective."""
    of_cores: float = 0.0
    """The part of this machine's cores that the work would keep busy."""

    def saturation(self) -> float:
        """Of the version by itself. Without an instance as if there were one."""
        return self.work / (self.able or 1.0)

    def behind(self, other: Demand) -> Demand:
        """Of both, where the same requests need the `other` first: the fuller one, with what both take of the cores."""
        fuller = max(self, other, key=Demand.saturation)
        return fuller._replace(of_cores=self.of_cores + other.of_cores)


def use_within(places: float, pass_ns: int, rows: int, objective_ns: int) -> float:
    """The part of the instances' time that can be used, `_LEAST_USE` to 1, so that answers come within the objective.

    `places`: rows that all instances do in one pass each.
    """
    if not objective_ns or not pass_ns or places <= 0:
        return 1.0
    passes = objective_ns / pass_ns - 1
    """That there is time to wait for."""
    if passes <= 0:
        return _LEAST_USE
    in_time = places * passes
    by_chance = ((math.sqrt(_QUANTILE**2 + 4 * in_time) - _QUANTILE) / 2) ** 2 / in_time
    # Who comes while a pass is under way can't join it.
    behind = places * max(0.0, passes - 1 if rows > 1 else passes)
    falls = -math.log(_LATE) / behind if behind else math.inf
    tail = falls / math.expm1(falls) if falls < _STEEP else 0.0
    return max(_LEAST_USE, by_chance, tail)


def saturations(demands: Sequence[Demand]) -> list[float]:
    """Of each version, in their order; 1: just as much is asked of it as can be done."""
    cores = sum(demand.of_cores for demand in demands)
    return [max(demand.saturation(), cores if demand.of_cores else 0.0) for demand in demands]


def summed(parts: Sequence[Demand]) -> Demand:
    """Of one version in several processes. One in which nothing of it arrives can't help those in which it does."""
    at_work = [part for part in parts if part.work] or parts
    return Demand(
        sum(part.work for part in at_work),
        sum(part.able for part in at_work),
        sum(part.of_cores for part in at_work),
    )


def replicas(hottest: float, target: float) -> float:
    """Replicas like this one that would do what arrives here at the saturation `target`. Not rounded: the sum over
    all replicas is what is needed of them."""
    return hottest / target
