"""Families of samples, by the definitions of their metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import Metric

from server.observability.definitions import CATALOG

if TYPE_CHECKING:
    from server.scheduler.statistics import Histogram

Rows = Mapping[str, Sequence[tuple[Sequence[str], float]]]
"""Samples by metric: the values of its labels, and a number. It is JSON, so that processes can tell it each other."""


class Family:
    """One metric of the catalog with its samples, to be handed to a registry as `metric`."""

    def __init__(self, name: str) -> None:
        """Raises KeyError for a name that is not in the catalog."""
        self._definition = definition = CATALOG[name]
        self.metric = Metric(definition.base, definition.help, definition.kind, definition.told_unit)

    def add(self, labels: Sequence[str], value: float) -> None:
        """One sample, with the values of the labels in the catalog's order."""
        self.metric.add_sample(self._definition.name, self._labels(labels), value)

    def add_rows(self, rows: Rows) -> Metric:
        """Those of this metric."""
        for labels, value in rows.get(self._definition.name, ()):
            self.add(labels, value)
        return self.metric

    def add_histogram(self, labels: Sequence[str], histogram: Histogram, unit: float) -> None:
        """`unit`: what one of the histogram's is in the metric's own."""
        name, told = self._definition.name, self._labels(labels)
        bounds = [*(f"{bound * unit:g}" for bound in histogram.bounds), "+Inf"]
        # Prometheus' buckets are cumulative, with their upper bounds as text.
        total = 0
        for bound, total in zip(bounds, accumulate(histogram.counts), strict=True):
            self.metric.add_sample(f"{name}_bucket", {**told, "le": bound}, total)
        self.metric.add_sample(f"{name}_count", told, total)
        self.metric.add_sample(f"{name}_sum", told, histogram.sum * unit)

    def _labels(self, values: Sequence[str]) -> dict[str, str]:
        return dict(zip(self._definition.labels, values, strict=True))


def gauge(name: str, value: float | None) -> Metric:
    """A gauge without labels; None: it has no sample."""
    family = Family(name)
    if value is not None:
        family.add((), value)
    return family.metric
