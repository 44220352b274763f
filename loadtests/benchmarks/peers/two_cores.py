"""What a second core brings: the CNN with 64 requests in flight over 4 connections, on one core and on two.

With two, a server has two copies of the model (and those that are made so, two processes), and the generator
is on both cores as well: that is a machine of two cores with its callers on it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from loadtests.benchmarks.peers import workloads
from loadtests.benchmarks.peers.results import (
    NOTHING,
    Cell,
    Sample,
    Summary,
    as_json,
    interleaved,
    plain,
    summarise,
)
from loadtests.benchmarks.peers.running import Running, end_all, start_all
from loadtests.benchmarks.peers.sampling import cells_of, problems_of, sample
from loadtests.fitting import fitting_cnn
from loadtests.generators import Load
from loadtests.report import table

MODEL = "cnn"
CONNECTIONS, STREAMS = 4, 16
HEADER = (
    "server",
    "1 core: req/s",
    "p50 / p99 ms",
    "2 cores: req/s",
    "p50 / p99 ms",
    "ratio of req/s",
    "1 core: p99/p50",
    "2 cores: p99/p50",
)


def compare(folder: Path, options: argparse.Namespace, tell: Callable[[str], None]) -> tuple[str, dict[str, object]]:
    """Markdown, and the data."""
    groups: dict[int, list[Running]] = {}
    reasons: dict[int, dict[str, str]] = {}
    fitted = fitting_cnn(options.cores_here[0])
    try:
        for count in (1, 2):
            own = folder / f"cores-{count}"
            given = {MODEL: workloads.write(own, instances=count, fitted=fitted)[MODEL]}
            used = options.cores_here[:count]
            groups[count], reasons[count] = start_all(options.peers, given, own, used, options.window_ms, tell)
        samples = _measure(groups, options, tell)
    finally:
        for servers in groups.values():
            end_all(servers)
    head = (
        f"# One core and two\n\n{fitted.title}, {CONNECTIONS} connections of {STREAMS} requests in flight; one core: "
        f"the generator on the other; two: both on both. {options.repeats} x {options.seconds} s, medians.\n\n"
    )
    summaries = {count: summarise(samples[count]) for count in samples}
    rows = []
    for peer in options.peers.values():
        for line in peer.lines:
            cell = Cell(peer.name, line.title, MODEL, CONNECTIONS * STREAMS)
            why = {count: reasons[count].get(peer.name, NOTHING) for count in reasons}
            if any(cell in found for found in summaries.values()) or peer.name in reasons[1]:
                rows.append(row(cell, summaries, why))
    data = {"machine": options.machine, "not_measured": reasons, "samples": {n: as_json(s) for n, s in samples.items()}}
    return head + table(HEADER, rows), data


def _measure(
    groups: Mapping[int, Sequence[Running]], options: argparse.Namespace, tell: Callable[[str], None]
) -> dict[int, list[Sample]]:
    in_flight = (CONNECTIONS * STREAMS,)
    cells = [
        (count, server, cell) for count in groups for server in groups[count] for cell in cells_of(server, in_flight)
    ]
    samples = {count: problems_of(groups[count], in_flight) for count in groups}
    for repeat, (count, server, cell) in interleaved(cells, options.repeats, options.seed):
        generator_cores = options.cores_here if count == 2 else options.generator_cores
        load = Load(CONNECTIONS, STREAMS, options.seconds, generator_cores)
        found = sample(server, cell, repeat, load, tell)
        samples[count].append(found)
        tell(f"{cell.line}, cores: {count}: {found.figures()}")
    return samples


def row(cell: Cell, summaries: Mapping[int, Mapping[Cell, Summary]], reasons: Mapping[int, str]) -> list[str]:
    """One line of the table; `reasons` is what stands where nothing was measured."""
    found = [summaries[count].get(cell) for count in (1, 2)]
    cells = [cell.line]
    for count, summary in zip((1, 2), found, strict=True):
        cells += [summary.rate(), summary.latency()] if summary else [plain(reasons[count]), NOTHING]
    good = [summary for summary in found if summary and not summary.problem]
    if len(good) < 2:
        return [*cells, *[NOTHING] * 3]
    one, two = good
    ratio = two.requests_per_s / one.requests_per_s
    return [*cells, f"{ratio:.2f}", *(f"{each.p99_ms / each.p50_ms:.2f}" for each in good)]
