"""What was measured, put together: medians and spread of the repeats, as tables and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Any, TypeVar

from loadtests.bars import Bar, Chart, bars_svg
from loadtests.report import table

NOTHING = "-"
_BUSY = ("server core", "generator core")

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """What is measured several times."""

    server: str
    line: str
    workload: str
    in_flight: int


@dataclass(frozen=True)
class Sample:
    """One measurement of a cell."""

    cell: Cell
    repeat: int
    requests_per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    answered: int = 0
    failed: int = 0
    server_busy: float = 0.0
    generator_busy: float = 0.0
    problem: str = ""
    """Why there is no figure."""

    def figures(self) -> str:
        return self.problem or f"{self.requests_per_s:,.0f}/s, p99 {self.p99_ms:.2f} ms"


@dataclass(frozen=True)
class Summary:
    """The samples of a cell. `problem` is set where not one of them has a figure."""

    requests_per_s: float
    lowest: float
    highest: float
    p50_ms: float
    p99_ms: float
    failed: int
    server_busy: float
    generator_busy: float
    repeats: int
    problem: str = ""

    def rate(self) -> str:
        if self.problem:
            return plain(self.problem)
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{number(self.requests_per_s)} ({number(self.lowest)} to {number(self.highest)}{failed})"

    def latency(self) -> str:
        return NOTHING if self.problem else f"{self.p50_ms:.2f} / {self.p99_ms:.2f}"


def plain(text: str) -> str:
    """What others say, so that it fits into one cell of a Markdown table."""
    return " ".join(text.replace("|", "/").split())


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def interleaved(cells: Sequence[T], repeats: int, seed: int) -> list[tuple[int, T]]:
    """Every cell once in each repeat, in an order of its own each time: what the machine does meanwhile hits all."""
    rng = Random(seed)
    order = []
    for repeat in range(repeats):
        order += [(repeat, cell) for cell in rng.sample(cells, len(cells))]
    return order


def summarise(samples: Sequence[Sample]) -> dict[Cell, Summary]:
    by_cell: dict[Cell, list[Sample]] = {}
    for sample in samples:
        by_cell.setdefault(sample.cell, []).append(sample)
    return {cell: _summary(given) for cell, given in by_cell.items()}


def _summary(samples: Sequence[Sample]) -> Summary:
    good = [sample for sample in samples if not sample.problem]
    if not good:
        return Summary(0, 0, 0, 0, 0, 0, 0, 0, 0, samples[-1].problem)
    rates = [sample.requests_per_s for sample in good]
    return Summary(
        median(rates),
        min(rates),
        max(rates),
        median(sample.p50_ms for sample in good),
        median(sample.p99_ms for sample in good),
        sum(sample.failed for sample in good),
        median(sample.server_busy for sample in good),
        median(sample.generator_busy for sample in good),
        len(good),
    )


def workload_table(
    workload: str,
    lines: Sequence[tuple[str, str]],
    in_flight: Sequence[int],
    cells: Mapping[Cell, Summary],
    batching: Mapping[str, str],
    reasons: Mapping[str, str],
) -> str:
    """A line for each way to ask a server, those that answer most first; `lines` are pairs of server and line.

    A server that is not there has its reason in place of figures.
    """
    header = ["server", "batching"]
    for count in in_flight:
        header += [f"{count}: req/s", f"{count}: p50 / p99 ms"]
    rows: list[tuple[float, list[object]]] = []
    for server, line in lines:
        found = [cells.get(Cell(server, line, workload, count)) for count in in_flight]
        if server in reasons:
            rows.append((-1, [line, batching[server], plain(reasons[server]), *[NOTHING] * (2 * len(in_flight) + 1)]))
        elif any(found):
            row: list[object] = [line, batching[server]]
            for summary in found:
                row += [summary.rate(), summary.latency()] if summary else [NOTHING, NOTHING]
            last = found[-1]
            row += [f"{last.server_busy:.2f}", f"{last.generator_busy:.2f}"] if last else [NOTHING, NOTHING]
            rows.append((max(summary.requests_per_s for summary in found if summary), row))
    rows.sort(key=lambda pair: -pair[0])
    return table([*header, *_BUSY], [row for _, row in rows])


def chart(
    title: str, workload: str, lines: Sequence[tuple[str, str]], in_flight: Sequence[int], cells: Mapping[Cell, Summary]
) -> Chart:
    """The best rate of each line, over how many requests were in flight."""
    bars = []
    for server, line in lines:
        found = [(count, cells.get(Cell(server, line, workload, count))) for count in in_flight]
        good = [(summary, count) for count, summary in found if summary and not summary.problem]
        if good:
            best, count = max(good, key=lambda pair: pair[0].requests_per_s)
            text = f"{number(best.requests_per_s)}/s, p99 {best.p99_ms:.2f} ms ({count})"
            bars.append(Bar(line, best.requests_per_s, best.lowest, best.highest, text, ours=server.startswith("ours")))
    bars.sort(key=lambda bar: -bar.value)
    return Chart(f"{title}: requests a second, median and spread; p99 (in flight)", bars)


def plot(charts: Sequence[Chart]) -> str:
    return bars_svg(charts)


def as_json(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    return [{**vars(sample.cell), **{k: v for k, v in vars(sample).items() if k != "cell"}} for sample in samples]
