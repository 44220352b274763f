"""What a scrape gets, as text: Prometheus' format 0.0.4, or OpenMetrics 1.0.0.

`prometheus_client` writes both, in 13 us a line; a server of twenty models has five thousand lines, and its event loop
does nothing else meanwhile. A test holds this against it. Source: OpenMetrics, "Overall Structure", "Exemplars".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from prometheus_client.core import Exemplar, Metric

from server.observability.catalog import Line, Told, labelled

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def written(metrics: Iterable[Metric], *, openmetrics: bool) -> bytes:
    """All of them."""
    parts: list[str] = []
    for metric in metrics:
        lines = metric.lines if isinstance(metric, Told) else _lines(metric)
        parts += _head(metric, lines, openmetrics=openmetrics)
        for name, labels, value, exemplar in lines:
            told = repr(value) if type(value) is float and math.isfinite(value) else _number(value)
            end = _exemplar(exemplar) if exemplar is not None and openmetrics else ""
            parts.append(f"{name}{{{labels}}} {told}{end}\n" if labels else f"{name} {told}{end}\n")
    if openmetrics:
        parts.append("# EOF\n")
    return "".join(parts).encode()


def _head(metric: Metric, lines: Sequence[Line], *, openmetrics: bool) -> list[str]:
    """Triton's counters have no _total behind their names, which OpenMetrics has no counters without."""
    name, kind, text = metric.name, metric.type, metric.documentation.replace("\\", "\\\\").replace("\n", "\\n")
    if kind == "counter":
        total = metric.total if isinstance(metric, Told) else True
        if openmetrics:
            kind, text = kind if total else "unknown", text.replace('"', '\\"')
        elif total:
            name = f"{name}_total"
    elif openmetrics:
        text = text.replace('"', '\\"')
    unit = [f"# UNIT {name} {metric.unit}\n"] if openmetrics and metric.unit else []
    return [f"# HELP {name} {text}\n", f"# TYPE {name} {kind}\n", *unit]


def _lines(metric: Metric) -> list[Line]:
    """Of a collector that is the library's own."""
    return [Line(sample.name, labelled(sample.labels.items()), sample.value) for sample in metric.samples]


def _number(value: float) -> str:
    value = float(value)
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _exemplar(exemplar: Exemplar) -> str:
    return f" # {{{labelled(exemplar.labels.items())}}} {_number(exemplar.value)} {exemplar.timestamp:.3f}"
