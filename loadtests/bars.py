"""Horizontal bars with their spread, as SVG written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_NAMES, _BAR, _NUMBERS, _RIGHT = 250, 360, 150, 10
_ROW, _TITLE, _BELOW = 20, 34, 22
_WIDTH = _NAMES + _BAR + _NUMBERS + _RIGHT
_OURS, _THEIRS, _SPREAD = "#0b6e4f", "#9aa0b5", "#222"


@dataclass(frozen=True)
class Bar:
    name: str
    value: float
    low: float
    high: float
    text: str
    """Written behind the bar."""
    ours: bool
    """Drawn in the colour that stands out."""


@dataclass(frozen=True)
class Chart:
    title: str
    bars: Sequence[Bar]


def bars_svg(charts: Sequence[Chart]) -> str:
    """The charts one below the other, each with a scale of its own from 0; charts without bars are left out."""
    parts: list[str] = []
    top = 0
    for chart in charts:
        if chart.bars:
            parts.append(f'<g transform="translate(0 {top})">{_chart(chart)}</g>')
            top += _TITLE + _ROW * len(chart.bars) + _BELOW
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" font-family="sans-serif"'
    ground = f'<rect width="{_WIDTH}" height="{top}" fill="white"/>'
    return "\n".join([f'{head} font-size="12">', ground, *parts, "</svg>", ""])


def _chart(chart: Chart) -> str:
    scale = _BAR / (max(bar.high for bar in chart.bars) or 1)
    parts = [f'<text x="8" y="22" font-size="13" font-weight="bold">{escape(chart.title)}</text>']
    for index, bar in enumerate(chart.bars):
        y = _TITLE + _ROW * index
        middle = y + _ROW / 2 - 1
        colour = _OURS if bar.ours else _THEIRS
        parts.append(f'<text x="{_NAMES - 8}" y="{middle + 4}" text-anchor="end">{escape(bar.name)}</text>')
        width = max(1.0, bar.value * scale)
        parts.append(f'<rect x="{_NAMES}" y="{y}" width="{width:.1f}" height="{_ROW - 5}" fill="{colour}"/>')
        low, high = (_NAMES + value * scale for value in (bar.low, bar.high))
        parts.append(f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}" stroke="{_SPREAD}" stroke-width="2"/>')
        parts.append(f'<text x="{max(high, _NAMES + width) + 6:.1f}" y="{middle + 4}">{escape(bar.text)}</text>')
    return "".join(parts)
