"""What a scrape gets, as text: Prometheus' format 0.0.4, or OpenMetrics 1.0.0.

`prometheus_client` writes both, in 13 us a line; a server of twenty models has five thousand lines, and its event loop
does nothing else meanwhile. A test holds this against it. Source: OpenMetrics, "Overall Structure", "Exemplars".
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from server.observability.catalog import Exemplar, Metric, labelled

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def written(metrics: Iterable[Metric], *, openmetrics: bool) -> bytes:
    """All of them."""
    parts: list[str] = []
    for metric in metrics:
        parts += _head(metric, openmetrics=openmetrics)
        for name, labels, value, exemplar in metric.lines:
            told = repr(value) if type(value) is float and math.isfinite(value) else _number(value)
            end = _exemplar(exemplar) if exemplar is not None and openmetrics else ""
            parts.append(f"{name}{{{labels}}} {told}{end}\n" if labels else f"{name} {told}{end}\n")
    if openmetrics:
        parts.append("# EOF\n")
    return "".join(parts).encode()


def _head(metric: Metric, *, openmetrics: bool) -> list[str]:
    """Triton's counters have no _total behind their names, which OpenMetrics has no counters without."""
    definition = metric.definition
    kind, text = definition.kind, definition.help.replace("\\", "\\\\").replace("\n", "\\n")
    if not openmetrics:
        return [f"# HELP {definition.name} {text}\n", f"# TYPE {definition.name} {kind}\n"]
    name, unit, text = definition.base, definition.told_unit, text.replace('"', '\\"')
    told = "unknown" if kind == "counter" and name == definition.name else kind
    return [f"# HELP {name} {text}\n", f"# TYPE {name} {told}\n", *([f"# UNIT {name} {unit}\n"] if unit else [])]


def _number(value: float) -> str:
    value = float(value)
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _exemplar(exemplar: Exemplar) -> str:
    return f" # {{{labelled(exemplar.labels.items())}}} {_number(exemplar.value)} {exemplar.at_s:.3f}"
