"""`report.html` in a run's folder: what was read and left out, the splits, how training went, what was measured.

One file that needs no other: pictures stand in it as SVG.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Protocol, runtime_checkable

from exporter import plots
from exporter.history import read_history
from exporter.recipes.base import Dropped, Evaluation, RunConfig, Split, Task
from server.tensor import Array

REPORT_FILE = "report.html"
MOST_ROWS = 200
"""Dropped rows that the page lists; data.json has all."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15em .9em .15em 0; vertical-align: top; }
td.figure { font-variant-numeric: tabular-nums; text-align: right; } .warning { color: #a40000; font-weight: 600; }
svg { max-width: 100%; height: auto; } details { margin: .5em 0; }
"""


@runtime_checkable
class Profiled(Protocol):
    """A `Task` whose columns can be drawn."""

    def profile(self) -> Mapping[str, Mapping[Split, Array]]:
        """Values of each column in each split: numbers with NaN, or texts with None, where one is missing."""


def write_report(folder: Path, config: RunConfig, task: Task, evaluation: Evaluation | None) -> Path:
    """Write the page; `evaluation` is None before there is one. Returns the file."""
    data, history = task.report, read_history(folder)
    parts = [f"<h1>{escape(config.name)}: {escape(config.recipe)}</h1>"]
    if data.synthetic:
        parts.append('<p class="warning">The data are synthetic: no figure says anything about the real thing.</p>')
    if evaluation is not None:
        parts += ["<h2>On the test split</h2>", _metrics(evaluation), _list(evaluation.notes)]
    if history:
        parts += ["<h2>Training</h2>", f"<figure>{plots.learning_curve(history)}</figure>"]
    parts += ["<h2>Data</h2>", f"<p>{escape(data.source)}, SHA-256 <code>{escape(data.sha256)}</code></p>"]
    kept = sum(sum(counts.values()) for counts in data.rows.values())
    told = (("read", data.collected), ("broken", len(data.broken)), ("duplicates", len(data.duplicates)))
    parts += [_table(("rows", ""), [(name, f"{count:,}") for name, count in (*told, ("used", kept))])]
    parts += [_list(data.notes), _splits(data.rows)]
    parts += [_dropped("Broken", data.broken), _dropped("Duplicates", data.duplicates)]
    if isinstance(task, Profiled):
        found = {name: {str(split): a for split, a in splits.items()} for name, splits in task.profile().items()}
        more = len(found) - plots.MOST_COLUMNS
        parts += ["<h2>Columns, by split</h2>", f"<figure>{plots.columns(found)}</figure>"]
        parts += [f"<p>and {more} more columns</p>"] if more > 0 else []
    settings = {**config.model_dump(exclude={"training"}), **config.training.model_dump()}
    parts += ["<h2>Configuration</h2>", _table(("setting", "value"), [(k, str(v)) for k, v in settings.items()])]
    path = folder / REPORT_FILE
    title = escape(f"{config.name}: a run of forwardpass train")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    body = "\n".join(part for part in parts if part)
    path.write_text(f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n', "utf-8")
    return path


def _metrics(evaluation: Evaluation) -> str:
    rows = [(name, f"{value:.4f}", f"{evaluation.baseline[name]:.4f}") for name, value in evaluation.metrics.items()]
    extra = [
        (name, "", f"{value:.4f}") for name, value in evaluation.baseline.items() if name not in evaluation.metrics
    ]
    return _table(("metric", "model", evaluation.baseline_name), [*rows, *extra])


def _splits(rows: Mapping[Split, Mapping[str, int]]) -> str:
    names = list(dict.fromkeys(name for counts in rows.values() for name in counts))
    cells = [(name, *(f"{counts.get(name, 0):,}" for counts in rows.values())) for name in names]
    return _table(("", *(str(split) for split in rows)), cells)


def _dropped(kind: str, dropped: Sequence[Dropped]) -> str:
    if not dropped:
        return ""
    more = f"<p>and {len(dropped) - MOST_ROWS} more, in data.json</p>" if len(dropped) > MOST_ROWS else ""
    table = _table(("where", "why"), [(item.where, item.reason) for item in dropped[:MOST_ROWS]], figures=False)
    return f"<details><summary>{kind}: {len(dropped):,}</summary>{table}{more}</details>"


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], *, figures: bool = True) -> str:
    kind = ' class="figure"' if figures else ""
    lines = [
        f"<tr><td>{escape(row[0])}</td>{''.join(f'<td{kind}>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    ]
    return f"<table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>\n{chr(10).join(lines)}\n</table>"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
