"""Of canaries and shadows: whether they are asked, what came of it, and why they were rolled back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from server.observability.catalog import Family

if TYPE_CHECKING:
    from server.rollout import RolloutServed

_OUTCOMES = ("answered", "failed", "agreed", "differed", "skipped")


class RolloutMetrics(Collector):
    """No sample where no model has a candidate."""

    def __init__(self, rollouts: Callable[[], Iterable[RolloutServed]]) -> None:
        self._rollouts = rollouts

    def collect(self) -> Iterator[Metric]:
        asked, requests = Family("forwardpass_rollout_asked"), Family("forwardpass_rollout_requests_total")
        rolled_back = Family("forwardpass_rollout_rolled_back")
        for rollout in self._rollouts():
            labels = tuple(rollout.labels.values())
            asked.add(labels, float(rollout.cause is None))
            for outcome in _OUTCOMES:
                requests.add((*labels, outcome), rollout.counts[outcome])
            if rollout.cause is not None:
                rolled_back.add((*labels, rollout.cause.value), 1.0)
        yield from (each.metric for each in (asked, requests, rolled_back))
