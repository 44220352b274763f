"""Capacities as a table, a plot of p99 against load, and values of the Helm chart."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import yaml

from loadtests.report import Panel, marks, svg, table
from server.load.limits import Limits
from server.load.search import Found, Probe

_BOUNDS = {"slo": "the SLO", "generator": "the generator: at least this", "none": "nothing that was tried"}
_BUSY = 0.3
"""The saturation at the capacity from which on it is the model that is the limit."""
_MEMORY_MARGIN = 1.5
_MEMORY_STEP = 64
"""MiB."""
_SHOWN = 1.3
"""Of the capacity: how far the plot goes."""
_ROOM = 1.5
"""Of the limit, or of the highest p99 where there is none: how high the plot goes."""
_APART = 0.05
"""Of the capacity, between the points of the plot: the median of the windows about each."""


_HEADER = (
    "kind",
    "requests/s per replica",
    "nine chances of ten",
    "kept from more by",
    "p50 ms",
    "p99 ms",
    "closed loop/s meanwhile",
    "saturation",
)


@dataclass(frozen=True)
class Capacity:
    """Of one kind of request, on one replica."""

    kind: str
    limits: Limits
    found: Found
    sweep: tuple[Probe, ...]
    """Windows at parts of the capacity."""
    closed_per_s: float
    """Answers a second to callers who wait."""
    saturation: float | None
    """What the server said of itself at the capacity; None: it was not asked."""
    rss_bytes: int
    """0: not known."""
    machine_per_s: tuple[float, ...]
    """Of closed loops from before the searches to after them, of all repeats: how the machine itself wandered."""


def table_of(repeats: Sequence[Sequence[Capacity]], agree: float) -> tuple[str, bool]:
    """The text, and whether the repeats agree."""
    rows = []
    spreads, wanders = [], []
    for several in zip(*repeats, strict=True):
        rates, last = [one.found.rate for one in several], several[-1]
        spreads.append(_spread(rates))
        wanders.append(_spread(last.machine_per_s))
        shown = ", ".join(f"{rate:,.0f}" for rate in rates)
        closed = f"{min(last.machine_per_s):,.0f} to {max(last.machine_per_s):,.0f} ({wanders[-1]:.1%})"
        best = last.found.best
        latency = [f"{best.latency_ms[q]:.2f}" for q in (50.0, 99.0)] if best else ["", ""]
        saturation = "" if last.saturation is None else f"{last.saturation:.2f}"
        if len(repeats) > 1:
            shown += f" ({spreads[-1]:.1%})" if spreads[-1] < math.inf else ""
        between = "{:,.0f} to {:,.0f}".format(*last.found.between) if last.found.rate else ""
        rows.append((last.kind, shown, between, _BOUNDS[last.found.bound], *latency, closed, saturation))
    text = "# The highest rate that holds the SLO\n\n" + table(_HEADER, rows)
    text += "\n" + "".join(f"* {one.kind}: {one.limits}\n" for one in repeats[-1])
    if len(repeats) > 1:
        apart = f"by {max(spreads):.1%} at most" if max(spreads) < math.inf else "in whether anything holds at all"
        text += f"\n{len(repeats)} searches side by side differ {apart}; {agree:.0%} are allowed.\n"
    text += (
        f"\nThe machine itself wandered by {max(wanders):.1%} at most while a kind was measured, by its closed loop.\n"
    )
    return text, max(spreads) <= agree or len(repeats) == 1


def _spread(rates: Sequence[float]) -> float:
    """How far the highest is above the lowest, which may be nothing at all."""
    if not min(rates):
        return math.inf if max(rates) else 0.0
    return max(rates) / min(rates) - 1


def knees(capacities: Sequence[Capacity]) -> str:
    """p99 against the rate, in parts of the capacity: a diagram for each kind."""
    return svg([_knee(one) for one in capacities if one.found.rate] or [Panel("nothing held", "", {}, 1.0, [0])])


def _knee(one: Capacity) -> Panel:
    rate = one.found.rate
    about: defaultdict[int, list[float]] = defaultdict(list)
    for probe in (*one.sweep, *one.found.probes):
        ms = probe.latency_ms.get(99.0, math.nan)
        if not probe.late and not math.isnan(ms) and probe.rate <= _SHOWN * rate:
            about[round(probe.rate / rate / _APART)].append(ms)
    points = [(place * _APART, median(each)) for place, each in sorted(about.items())]
    limit = one.limits.latency_ms.get(99.0)
    lines = {"p99": points, "limit": [] if limit is None else [(0.0, limit), (_SHOWN, limit)]}
    top = _ROOM * (limit or max((ms for _, ms in points), default=0.0)) or 1.0
    return Panel(f"{one.kind}: p99 in ms", f"of {rate:,.0f} requests a second", lines, top, marks(top))


def values(capacities: Sequence[Capacity], cores: int, margin: float) -> str:
    """A values file for the chart: the target per replica, and what a replica asks of its node.

    The target is what the server says of its saturation at the capacity, for the kind where that is lowest, times
    `margin`. A kind that is at its capacity while its model is hardly busy is limited by the server around it, which
    no saturation tells of: for such ones the target is of the processor. Memory is what was resident, half as much
    again.
    """
    lines = ["# Written by `make capacity`. What one replica holds, each kind alone:"]
    for one in capacities:
        more = "" if one.found.bound == "slo" else f"; kept from more by {_BOUNDS[one.found.bound]}"
        lines.append(f"#   {one.kind}: {one.found.rate:,.0f} requests/s at {one.limits}{more}")
    tree: dict[str, object] = {}
    told = {one.kind: one.saturation for one in capacities if one.saturation is not None}
    target: dict[str, object] = {}
    if busy := {kind: saturation for kind, saturation in told.items() if saturation >= _BUSY}:
        lowest = min(busy, key=lambda kind: busy[kind])
        lines.append(
            f"# Saturation at the capacity, where it is lowest ({lowest}): {busy[lowest]:.2f}; {margin:g} of it."
        )
        target["targetSaturation"] = round(busy[lowest] * margin, 2)
    if idle := [kind for kind in told if kind not in busy]:
        lines.append(f"# Limited by the server around the model, and not by the model: {', '.join(idle)}.")
        target["targetCPUUtilizationPercentage"] = round(100 * margin)
    if target:
        tree["autoscaling"] = target
    tree["capacity"] = {
        "kinds": {
            one.kind: {"requestsPerSecond": round(one.found.rate, 1), "slo": one.limits.text()}
            for one in capacities
            if one.found.rate
        }
    }
    resident = max((one.rss_bytes for one in capacities), default=0)
    if resident:
        steps = math.ceil(resident * _MEMORY_MARGIN / 2**20 / _MEMORY_STEP)
        amounts = {"cpu": str(cores), "memory": f"{steps * _MEMORY_STEP}Mi"}
        # Requests equal limits: a server that is throttled misses deadlines.
        tree["resources"] = {"requests": dict(amounts), "limits": dict(amounts)}
    return "\n".join(lines) + "\n" + (yaml.safe_dump(tree, sort_keys=False) if tree else "{}\n")
