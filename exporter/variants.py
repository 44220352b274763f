"""The copies of a run's model beside the model: what each loses, weighs and takes; and the one that is published."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from exporter import checks, quantize
from exporter.errors import ExporterError, UsageError, VerifyError
from exporter.measure import Speed, measure
from exporter.publish import Published
from exporter.recipes.base import Arrays, Measured, Split, Task
from exporter.steps import Run, is_within

ORIGINAL = "fp32"
FOLDER = "quantized"
REPORT_FILE, TABLE_FILE, PLOT_FILE = "report.json", "report.md", "report.png"
BEST = "best"
_BATCHES = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class Row:
    """One file of the model."""

    name: str
    bytes: int
    metric: float
    """The recipe's first."""
    drop: float
    """How much less than the original's."""
    within: bool
    """The drop is no more than was allowed."""
    speed: Speed


@dataclass(frozen=True, slots=True)
class Comparison:
    """The original first."""

    metric: str
    rows: tuple[Row, ...]
    failed: Mapping[str, str]
    """Copies that could not be made or run, and why."""
    max_drop: float = 0.01
    """How much may be lost."""

    def best(self) -> Row:
        """Of the copies within the allowed loss, the one with the most rows a second in the largest batches.

        Raises:
            UsageError: there is none, or the original has as many; names the figures.
        """
        copies = sorted((row for row in self.rows[1:] if row.within), key=_in_largest_batches)
        if not copies:
            lost = ", ".join(f"{row.name} {row.drop:.4f}" for row in self.rows[1:])
            raise UsageError(
                f"--publish {BEST}: none is within --max-metric-drop {self.max_drop:g}"
                + (f"; of {self.metric} is lost: {lost}" if lost else "")
            )
        if _in_largest_batches(copies[-1]) <= _in_largest_batches(self.rows[0]):
            told = ", ".join(f"{row.name} {_in_largest_batches(row):,.0f}" for row in (self.rows[0], *copies))
            raise UsageError(
                f"--publish {BEST}: none is quicker than {self.rows[0].name}, so nothing was published; "
                f"rows/s in batches of {max(self.rows[0].speed.rows_per_s)}: {told}"
            )
        return copies[-1]


def _in_largest_batches(row: Row) -> float:
    return max(row.speed.rows_per_s.items())[1]


def compare(run: Run, names: Sequence[str], max_metric_drop: float) -> Comparison:
    """Make copies of a run's model, measure all of them beside it, and write report.json, .md and .png.

    Raises:
        UsageError: an unknown name, or a recipe whose metrics can't be measured by themselves.
        RunError: the run has no exported model.
    """
    unknown = [name for name in names if name not in quantize.VARIANTS]
    if unknown:
        raise UsageError(f"--variant {unknown[0]}: known are {', '.join(quantize.VARIANTS)}")
    task = run.task
    if not isinstance(task, Measured):
        raise UsageError(f"{run.config.recipe}: its copies can't be measured")
    folder = run.folder / FOLDER
    folder.mkdir(exist_ok=True)
    files, failed = {ORIGINAL: run.model_file}, {}
    batches = quantize.calibration(task)
    for name in names:
        try:
            quantize.make(quantize.VARIANTS[name], run.model_file, file_of(run, name), batches)
            checks.session_of(file_of(run, name))
            files[name] = file_of(run, name)
        except ExporterError as error:
            failed[name] = str(error)
    sessions = {name: checks.session_of(path) for name, path in files.items()}
    found: dict[str, Mapping[str, float]] = {}
    for name, session in list(sessions.items()):
        try:
            found[name] = task.metrics(checks.predictor_of(session, task))
        except VerifyError as error:
            failed[name] = str(error)
            del sessions[name]
    quality = next(iter(found[ORIGINAL]))
    speeds = measure(sessions, feeds(task))
    rows = []
    for name in sessions:
        drop = found[ORIGINAL][quality] - found[name][quality]
        within = is_within(drop, max_metric_drop)
        rows.append(Row(name, files[name].stat().st_size, found[name][quality], drop, within, speeds[name]))
    comparison = Comparison(quality, tuple(rows), failed, max_metric_drop)
    (folder / REPORT_FILE).write_text(json.dumps(asdict(comparison), indent=2) + "\n", encoding="utf-8")
    (folder / TABLE_FILE).write_text("\n".join(table(comparison)) + "\n", encoding="utf-8")
    plot(comparison, folder / PLOT_FILE)
    return comparison


def file_of(run: Run, name: str) -> Path:
    return run.folder / FOLDER / f"{name}.onnx"


def feeds(task: Task) -> dict[int, list[Arrays]]:
    """Test rows in batches of a few sizes."""
    size = task.size(Split.TEST)
    sizes = [rows for rows in _BATCHES if rows <= min(size, task.max_batch_size)]
    found = {}
    for rows in sizes:
        starts = np.linspace(0, size - rows, min(8, max(1, size // rows))).astype(np.int64)
        found[rows] = [task.batch(Split.TEST, np.arange(start, start + rows), 0)[0] for start in starts]
    return found


def publish(run: Run, comparison: Comparison, wanted: str, repository: Path, *, name: str, replace: bool) -> Published:
    """Publish a copy under `name` (the run's own name makes it a further version of that model).

    Raises:
        UsageError: it was not made, or it loses more than was allowed; or `best`, and none is within that and quicker.
        PublishError, VerifyError: see `Run.publish_copy`.
    """
    rows = {row.name: row for row in comparison.rows[1:]}
    chosen = comparison.best() if wanted == BEST else rows.get(wanted)
    if chosen is None:
        there = comparison.failed.get(wanted) or f"of the copies ({', '.join(rows) or 'none'}) there is no such one"
        raise UsageError(f"--publish {wanted}: {there}")
    if not chosen.within:
        raise UsageError(
            f"--publish {chosen.name}: it loses {chosen.drop:.4f} of {comparison.metric}, more than --max-metric-drop"
        )
    precision = quantize.VARIANTS[chosen.name].precision
    return run.publish_copy(
        file_of(run, chosen.name),
        precision,
        repository,
        name=name or f"{run.config.name}-{chosen.name}",
        replace=replace,
        max_drop=comparison.max_drop,
    )


def table(comparison: Comparison) -> list[str]:
    """For people, as Markdown."""
    first, sizes = comparison.rows[0], sorted(comparison.rows[0].speed.p50_ms)
    largest = sizes[-1]
    heads = ["file", "bytes", comparison.metric, "drop", *(f"p50 at {rows}, ms" for rows in sizes)]
    heads += [*(f"rows/s at {rows}" for rows in sizes), f"rows/s to {first.name} at {largest}", "within"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in comparison.rows:
        cells = [row.name, f"{row.bytes:,}", f"{row.metric:.4f}", f"{row.drop:+.4f}"]
        cells += [f"{row.speed.p50_ms[rows]:.3f}" for rows in sizes]
        cells += [f"{row.speed.rows_per_s[rows]:,.0f}" for rows in sizes]
        cells += [
            f"{row.speed.rows_per_s[largest] / first.speed.rows_per_s[largest]:.2f}",
            "yes" if row.within else "no",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines + [f"\n{name}: {why}" for name, why in comparison.failed.items()]


def plot(comparison: Comparison, path: Path) -> None:
    """Rows a second by batch size, and the metric over the size of the file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row in comparison.rows:
        sizes = sorted(row.speed.rows_per_s)
        left.plot(sizes, [row.speed.rows_per_s[rows] for rows in sizes], marker="o", label=row.name)
        right.scatter(row.bytes / 1e6, row.metric, label=row.name)
        right.annotate(row.name, (row.bytes / 1e6, row.metric), textcoords="offset points", xytext=(6, 4))
    left.set(xlabel="rows in a batch", ylabel="rows a second, one thread", xscale="log", yscale="log")
    left.legend()
    right.set(xlabel="megabytes", ylabel=comparison.metric)
    figure.savefig(path, dpi=100)
