"""A day of traffic, the same for each signal that pods may be scaled by: saturation, CPU, time in the queue.

    python -m loadtests.benchmarks.simulate_scaling --seed 0 --out DIR

writes scaling_day.md and scaling_day.svg into DIR; the same seed writes the same bytes. Nothing is measured: the
autoscaler is Kubernetes' own rule with the chart's behaviour, the pods are `loadtests.scaling_day`'s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.flags import counted, positive
from loadtests.report import Panel, publish, svg, table
from loadtests.scaling_day import SIGNALS, Cluster, Day, Pod, live, traffic

HEADER = ("signal", "target", "late or refused", "minutes broken", "pod hours", "most pods", "changes", "flaps")
_EVERY = 5
"""Minutes of one point of the plot."""


def row(day: Day) -> tuple[object, ...]:
    return (
        day.signal,
        f"{SIGNALS[day.signal][1]:g}",
        f"{day.late / day.offered:.3%}",
        f"{day.broken_s / 60:.1f}",
        f"{day.pod_s / 3600:.0f}",
        max(day.pods),
        day.changes,
        day.flaps,
    )


def report(days: Sequence[Day], pod: Pod, cluster: Cluster, peak: float, seed: int) -> str:
    return (
        f"# A day of traffic, {peak:g} requests a second at noon, seed {seed}\n\n"
        f"A pod serves {pod.per_s:g}/s ({pod.instances} instances, passes of {pod.pass_s * 1e3:g} ms, objective "
        f"{pod.objective_s * 1e3:g} ms) and starts in {pod.start_s:g} s; a node has room for {cluster.pods_a_node}, "
        f"and comes in {cluster.node_s:g} s. Broken is a second with more than 1 % late or refused.\n\n"
        + table(HEADER, [row(day) for day in days])
    )


def plot(days: Sequence[Day], rates: Sequence[float], pod: Pod) -> str:
    """Pods that serve, and what was late or refused, over the hours of the day."""

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        grouped = [values[index : index + _EVERY] for index in range(0, len(values), _EVERY)]
        return [(index * _EVERY / 60, max(group)) for index, group in enumerate(grouped)]

    enough = [max(rates[index * 60 : index * 60 + 60]) / pod.per_s / pod.use() for index in range(len(rates) // 60)]
    days = days[:3]
    top = 1.1 * max(max(day.pods) for day in days)
    lines = {day.signal: points([float(count) for count in day.pods]) for day in days} | {"just enough": points(enough)}
    missed = {day.signal: points(day.missed) for day in days}
    marks = [round(top * part / 4) for part in range(5)]
    return svg(
        [
            Panel("pods that serve", "hour", lines, top, marks),
            Panel("late or refused, worst minute of five", "hour", missed, 0.4, (0, 0.1, 0.2, 0.3, 0.4)),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=positive, default=2500, help="requests a second at noon (default: 2500)")
    parser.add_argument("--hours", type=counted, default=24, help="of the day (default: 24)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write scaling_day.md and scaling_day.svg into this folder")
    options = parser.parse_args(arguments)
    pod, cluster = Pod(), Cluster()
    rates = traffic(options.peak, options.seed)[: options.hours * 3600]
    days = [live(signal, rates, pod, cluster) for signal in SIGNALS]
    publish(report(days, pod, cluster, options.peak, options.seed), "scaling_day.md", options.out)
    if options.out:
        (options.out / "scaling_day.svg").write_text(plot(days, rates, pod))
    return 0


if __name__ == "__main__":
    sys.exit(main())
