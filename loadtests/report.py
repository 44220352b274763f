"""Results as people read them: a Markdown table, and a plot as SVG, both written by hand."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10
from pathlib import Path

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 440, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 34, 40
_TICKS = 6
_COLOURS = ("#0b6e4f", "#c1440e", "#5b5f97", "#8a8a8a")
_DASHES = ("", "", "", "4 3")


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


@dataclass(frozen=True)
class Panel:
    """One diagram: a line for each name, x and y from 0. What is above `top` is drawn at the edge."""

    title: str
    x_label: str
    lines: Mapping[str, Points]
    top: float
    marks: Sequence[float]
    """Where the y axis has its grid lines."""


def svg(panels: Sequence[Panel], columns: int = 2) -> str:
    """The panels side by side, with one legend above all."""
    names = list(panels[0].lines)
    rows = -(-len(panels) // columns)
    width, height = _WIDTH * columns, _HEIGHT * rows + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, name in enumerate(names):
        x = _LEFT + index * 190
        parts.append(f'<path d="M{x} 18h24" {_stroke(index)}/><text x="{x + 30}" y="22">{escape(name)}</text>')
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        parts.append(f'<g transform="translate({column * _WIDTH} {row * _HEIGHT + 30})">{_panel(panel)}</g>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel) -> str:
    right = max(x for points in panel.lines.values() for x, _ in points)
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
    for index, points in enumerate(panel.lines.values()):
        path = "L".join(f"{_LEFT + x * across:.1f} {ground - min(y, panel.top) * up:.1f}" for x, y in points)
        parts.append(f'<path d="M{path}" {_stroke(index)}/>')
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
    dash = _DASHES[index % len(_DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'fill="none" stroke-width="2" stroke="{_COLOURS[index % len(_COLOURS)]}"{dashes}'
