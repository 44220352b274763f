"""Goodput and latency against offered load, simulated: ours, a fixed window, an unbounded queue, the bound.

    python -m loadtests.benchmarks.simulate --seed 0 --out DIR

writes simulate.md and simulate.svg into DIR; the same seed writes the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.arrivals import STEADY
from loadtests.flags import positive
from loadtests.report import Panel, svg, table
from loadtests.simulation import Engine, Fifo, Tally, clairvoyant, ours

MS = 1_000_000
LOADS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0)
HEADER = ("server", "load", "goodput/capacity", "p99 of answers, ms", "refused", "expired", "late", "executed expired")

Server = Callable[[Sequence[int], Engine, int, int], Tally]

SERVERS: Mapping[str, Server] = {
    "ours": ours,
    "fixed window": Fifo(max_batch_size=8, window_ns=5 * MS, max_queue_size=64),
    "unbounded queue": Fifo(max_batch_size=32, window_ns=0),
    "clairvoyant bound": clairvoyant,
}


@dataclass(frozen=True)
class Run:
    """One server under one load."""

    server: str
    process: str
    load: float
    """Offered rate over capacity."""
    goodput: float
    """Answers in time a second, over capacity."""
    tally: Tally

    def row(self) -> tuple[object, ...]:
        tally = self.tally
        counts = (tally.refused, tally.expired, tally.late, tally.executed_expired)
        return (self.server, f"{self.load:g}", f"{self.goodput:.3f}", f"{tally.p99_ms():.1f}", *counts)


def simulate(
    server: str, process: str, load: float, engine: Engine, deadline_ns: int, seconds: float, seed: int
) -> Run:
    capacity = engine.capacity_per_s()
    arrivals_ns = STEADY[process](load * capacity, seconds, seed)
    tally = SERVERS[server](arrivals_ns, engine, deadline_ns, seed)
    return Run(server, process, load, tally.in_time / seconds / capacity, tally)


def report(runs: Sequence[Run], title: str) -> str:
    tables = {process: table(HEADER, [run.row() for run in runs if run.process == process]) for process in STEADY}
    return "\n".join([f"# {title}\n", *(f"## {process}\n\n{text}" for process, text in tables.items())])


def plot(runs: Sequence[Run], deadline_ms: float) -> str:
    panels = []
    for process in STEADY:
        lines = {
            server: [(run.load, run.goodput) for run in runs if (run.server, run.process) == (server, process)]
            for server in SERVERS
        }
        panels.append(Panel(f"{process}: goodput / capacity", "offered load", lines, 1.05, (0, 0.25, 0.5, 0.75, 1)))
    for process in STEADY:
        lines = {
            server: [
                (run.load, run.tally.p99_ms())
                for run in runs
                if (run.server, run.process) == (server, process) and run.tally.latencies_ns
            ]
            for server in SERVERS
        }
        marks = tuple(deadline_ms * step / 2 for step in range(7))
        panels.append(Panel(f"{process}: p99 of answers, ms", "offered load", lines, 3 * deadline_ms, marks))
    return svg(panels)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the report")
    parser.add_argument("--seconds", type=positive, default=20, help="simulated seconds of each run (default: 20)")
    parser.add_argument("--deadline-ms", type=positive, default=100)
    parser.add_argument("--base-ms", type=float, default=0.1, help="cost of a pass without its rows (default: 0.1)")
    parser.add_argument("--row-ms", type=positive, default=4, help="cost of each row (default: 4)")
    parser.add_argument("--noise", type=float, default=0.05, help="sigma of a pass's lognormal factor (default: 0.05)")
    options = parser.parse_args(arguments)
    engine = Engine(int(options.base_ms * MS), int(options.row_ms * MS), options.noise)
    deadline_ns = int(options.deadline_ms * MS)
    runs = [
        simulate(server, process, load, engine, deadline_ns, options.seconds, options.seed)
        for process in STEADY
        for server in SERVERS
        for load in LOADS
    ]
    title = (
        f"Simulated: a pass of {options.base_ms:g} + {options.row_ms:g} ms/row, deadline {options.deadline_ms:g} ms, "
        f"capacity {engine.capacity_per_s():.1f}/s, {options.seconds:g} s a run, seed {options.seed}"
    )
    text = report(runs, title)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "simulate.md").write_text(text)
    (options.out / "simulate.svg").write_text(plot(runs, options.deadline_ms))
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
