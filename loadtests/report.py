"""Results as people read them: a Markdown table, and a plot as SVG, both written by hand."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10
from pathlib import Path
from typing import Any

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 440, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 34, 40
_TICKS = 6
_COLOURS = ("#0b6e4f", "#c1440e", "#5b5f97", "#8a8a8a", "#1f78b4", "#d59c00", "#8e2470", "#5a3b1c")
_DASHES = ("", "", "", "4 3", "", "", "", "")
_AGAIN = "1 3"
"""The dashes of lines that have a colour which another one has already."""
_NAME, _LETTER = 150, 6.5
"""The width of a name in the legend, at least, and of one of its letters."""
_LEGEND = 20
"""The height of a line of the legend."""


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def publish(text: str, name: str, folder: Path | None) -> None:
    """Print a report, and write it as `name` into `folder` where one is given."""
    sys.stdout.write(text)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def as_json(value: object) -> str:
    """What was not measured, or has no end, is null: JSON has no NaN."""
    return json.dumps(_finite(value), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Panel:
    """One diagram: a line for each name, x and y from 0. What is above `top` is drawn at the edge; a line of no points
    is not drawn."""

    title: str
    x_label: str
    lines: Mapping[str, Points]
    top: float
    marks: Sequence[float]
    """Where the y axis has its grid lines."""


def svg(panels: Sequence[Panel], columns: int = 2) -> str:
    """The panels side by side, with one legend above all: a name has the same colour in each."""
    drawn = {name for panel in panels for name, points in panel.lines.items() if points}
    names = dict.fromkeys(name for panel in panels for name in panel.lines if name in drawn)
    places = {name: place for place, name in enumerate(names)}
    step = max([_NAME, *(_LETTER * len(name) for name in places)]) + 40
    beside = max(1, int((_WIDTH * columns - _LEFT) / step))
    above = 10 + _LEGEND * max(1, -(-len(places) // beside))
    rows = -(-len(panels) // columns)
    width, height = _WIDTH * columns, _HEIGHT * rows + above
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for name, place in places.items():
        row, column = divmod(place, beside)
        x, y = _LEFT + column * step, 18 + row * _LEGEND
        parts.append(
            f'<path d="M{x:g} {y}h24" {_stroke(place)}/><text x="{x + 30:g}" y="{y + 4}">{escape(name)}</text>'
        )
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        parts.append(f'<g transform="translate({column * _WIDTH} {row * _HEIGHT + above})">{_panel(panel, places)}</g>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, places: Mapping[str, int]) -> str:
    right = max((x for points in panel.lines.values() for x, _ in points), default=0) or 1.0
    across = (_WIDTH - _LEFT - _RIGHT) / right
    up = (_HEIGHT - _TOP - _BOTTOM) / panel.top
    ground = _HEIGHT - _BOTTOM
    parts = [f'<text x="{_LEFT}" y="{_TOP - 12}" font-weight="bold">{escape(panel.title)}</text>']
    for mark in panel.marks:
        y = ground - mark * up
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{mark:g}</text>')
    step = _round(right / _TICKS)
    for tick in range(int(right / step + 1e-9) + 1):
        x = _LEFT + tick * step * across
        parts.append(f'<text x="{x:.1f}" y="{ground + 16}" text-anchor="middle">{tick * step:g}</text>')
    parts.append(f'<text x="{_LEFT + right / 2 * across:.0f}" y="{ground + 32}" text-anchor="middle">')
    parts.append(f"{escape(panel.x_label)}</text>")
    for name, points in panel.lines.items():
        if points:
            path = "L".join(f"{_LEFT + x * across:.1f} {ground - min(y, panel.top) * up:.1f}" for x, y in points)
            parts.append(f'<path d="M{path}" {_stroke(places[name])}/>')
    return "".join(parts)


def _round(value: float) -> float:
    """1, 2 or 5 times a power of ten: the least that is not below `value`."""
    power: float = 10 ** floor(log10(value))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= value * (1 - 1e-9))


def marks(top: float) -> list[float]:
    """Where an axis from 0 to `top` has its lines."""
    step = _round(top / _TICKS)
    return [step * mark for mark in range(int(top / step + 1e-9) + 1)]


def _stroke(index: int) -> str:
    dash = _DASHES[index] if index < len(_DASHES) else _AGAIN
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'fill="none" stroke-width="2" stroke="{_COLOURS[index % len(_COLOURS)]}"{dashes}'
