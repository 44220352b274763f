"""Families of samples, by the definitions of their metrics.

A scrape keeps the event loop from everything else, so that a family holds what is to be written, not objects for each
sample (`exposition.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import Exemplar, Metric

from server.observability.definitions import CATALOG, Definition

if TYPE_CHECKING:
    from server.scheduler.histogram import Histogram

Rows = Mapping[str, Sequence[tuple[Sequence[str], float]]]
"""Samples by metric: the values of its labels, and a number. It is JSON, so that processes can tell it each other."""


class Line(NamedTuple):
    """One sample."""

    name: str
    labels: str
    """As they are written, without their braces."""
    value: float
    exemplar: Exemplar | None = None


class Told(Metric):
    """What a registry takes, with lines in the place of its samples."""

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition.base, definition.help, definition.kind, definition.told_unit)
        self.total = definition.name.endswith("_total")
        """Behind its name, where it is a counter's."""
        self.lines: list[Line] = []


class Family:
    """One metric of the catalog, to be handed to a registry as `metric`."""

    def __init__(self, name: str) -> None:
        """Raises KeyError for a name that is not in the catalog."""
        self._definition = definition = CATALOG[name]
        self.metric = Told(definition)

    def add(self, labels: Sequence[str], value: float) -> None:
        """One sample, with the values of the labels in the catalog's order."""
        self.metric.lines.append(Line(self._definition.name, self._labels(labels), value))

    def add_rows(self, rows: Rows) -> Metric:
        """Those of this metric."""
        for labels, value in rows.get(self._definition.name, ()):
            self.add(labels, value)
        return self.metric

    def add_histogram(self, labels: Sequence[str], histogram: Histogram, unit: float) -> None:
        """`unit`: what one of the histogram's is in the metric's own."""
        name, told, lines = self._definition.name, self._labels(labels), self.metric.lines
        bucket = f"{name}_bucket"
        bounds = _bounds(histogram.bounds, unit)
        # Prometheus' buckets are cumulative, with their upper bounds as text.
        for bound, total in zip(bounds, accumulate(histogram.counts), strict=True):
            lines.append(Line(bucket, f'le="{bound}",{told}', total))
        for number, found in histogram.exemplars.items():
            exemplar = Exemplar({"trace_id": found.trace_id}, found.value * unit, found.at_s)
            place = number - len(bounds)
            lines[place] = lines[place]._replace(exemplar=exemplar)
        lines.append(Line(f"{name}_count", told, histogram.count))
        lines.append(Line(f"{name}_sum", told, histogram.sum * unit))

    def _labels(self, values: Sequence[str]) -> str:
        return labelled(zip(self._definition.labels, values, strict=True))


@cache
def _bounds(bounds: tuple[int, ...], unit: float) -> tuple[str, ...]:
    """As OpenMetrics and Prometheus from version 3 on have them: those that are whole with a point, whatever came."""
    written = [f"{bound * unit:g}" for bound in bounds]
    return (*(text if set(text) & set(".e") else f"{text}.0" for text in written), "+Inf")


def labelled(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values as they are written, by name."""
    return ",".join([f'{name}="{escaped(value)}"' for name, value in sorted(pairs)])


def escaped(value: str) -> str:
    """A label's value as it stands between its quotes."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def gauge(name: str, value: float | None) -> Metric:
    """A gauge without labels; None: it has no sample."""
    family = Family(name)
    if value is not None:
        family.add((), value)
    return family.metric
