"""How Kubernetes' HorizontalPodAutoscaler counts: from a metric of pods to a number of replicas. No clock, no I/O.

Source: Kubernetes, "Horizontal Pod Autoscaling", algorithm details and configurable scaling behavior; what happens to
pods that are not ready and to the policies' periods is as in its controller (replica_calculator.go, horizontal.go).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_VALUES = Path(__file__).parents[1] / "helm" / "forwardpass" / "values.yaml"

SYNC_S = 15.0
"""Seconds between two looks, the controller's default."""
TOLERANCE = 0.1


def chart() -> dict[str, Any]:
    """The chart's values of `autoscaling`."""
    values: dict[str, Any] = yaml.safe_load(_VALUES.read_text())["autoscaling"]
    return values


def wanted(metrics: Sequence[float | None], replicas: int, target: float) -> int:
    """Replicas that bring the mean of the metric to `target`; None of a pod that is not ready.

    Pods that are not ready count as idle where more are wanted, and never turn a wish for more into one for fewer.
    """
    ready = [value for value in metrics if value is not None]
    if not ready:
        return replicas
    ratio = sum(ready) / len(ready) / target
    if len(ready) == len(metrics) or ratio <= 1:
        return replicas if abs(ratio - 1) <= TOLERANCE else math.ceil(ratio * len(ready))
    with_idle = sum(ready) / len(metrics) / target
    if with_idle - 1 <= TOLERANCE:
        return replicas
    return max(replicas, math.ceil(with_idle * len(metrics)))


@dataclass
class Autoscaler:
    """What one HPA remembers between two looks."""

    target: float
    least: int
    most: int
    behavior: Mapping[str, Any] = field(default_factory=lambda: chart()["behavior"])
    speed: float = 1.0
    """Times as fast as the behaviour's seconds say."""
    _wished: deque[tuple[float, int]] = field(default_factory=deque)
    _changed: deque[tuple[float, int]] = field(default_factory=deque)

    def replicas(self, now_s: float, metrics: Sequence[float | None], replicas: int) -> int:
        """How many there should be from now on."""
        now_s *= self.speed
        wish = wanted(metrics, replicas, self.target)
        self._wished.append((now_s, wish))
        up, down = (self.behavior[name] for name in ("scaleUp", "scaleDown"))
        count = self._stable(now_s, replicas, up, down)
        count = min(max(count, self.least), self.most)
        if count > replicas:
            count = max(replicas, min(count, max(self._limits(now_s, replicas, up["policies"], +1))))
        elif count < replicas:
            count = min(replicas, max(count, min(self._limits(now_s, replicas, down["policies"], -1))))
        if count != replicas:
            self._changed.append((now_s, count - replicas))
        return count

    def _stable(self, now_s: float, replicas: int, up: Mapping[str, Any], down: Mapping[str, Any]) -> int:
        """Up to the least wish of the window for going up, down to the most of that for going down."""
        windows = [side["stabilizationWindowSeconds"] for side in (up, down)]
        while self._wished and self._wished[0][0] < now_s - max(windows):
            self._wished.popleft()
        at_least = min(wish for at_s, wish in self._wished if at_s >= now_s - windows[0])
        at_most = max(wish for at_s, wish in self._wished if at_s >= now_s - windows[1])
        return min(max(replicas, at_least), at_most)

    def _limits(self, now_s: float, replicas: int, policies: Sequence[Mapping[str, Any]], sign: int) -> list[int]:
        """How far each policy lets the count go, from what it was at the begin of its period."""
        found = []
        for policy in policies:
            since_s = now_s - policy["periodSeconds"]
            began = replicas - sum(by for at_s, by in self._changed if at_s > since_s and by * sign > 0)
            if policy["type"] == "Pods":
                found.append(began + sign * policy["value"])
            elif sign > 0:
                found.append(math.ceil(began * (1 + policy["value"] / 100)))
            else:
                found.append(int(began * (1 - policy["value"] / 100)))
        return found
