"""The report: a page with a time line of what was asked, what came, what was done to the server, and what it said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from loadtests.chaos.caller import Asked
from loadtests.chaos.faults import Event
from loadtests.chaos.readiness import Readiness
from loadtests.chaos.verdict import NAMES
from loadtests.soak.verdict import Rule

_COLOURS = {
    "OK": "#0b6e4f",
    "DEADLINE_EXCEEDED": "#8a8a8a",
    "RESOURCE_EXHAUSTED": "#5b5f97",
    "UNAVAILABLE": "#c1440e",
    "connection lost": "#e3a008",
}
_OTHER = "#000000"
_WIDTH, _HEIGHT, _LEFT, _TOP = 1100, 220, 50, 20
_MOST_BARS = 300
_STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:1200px}td,th{padding:2px 10px;text-align:left}"
    "svg text{font:10px sans-serif}"
)


def page(
    title: str, asked: Sequence[Asked], events: Sequence[Event], readiness: Readiness, rules: Sequence[Rule]
) -> str:
    begin_s = min(one.at_s for one in asked)
    end_s = max(one.at_s for one in asked)
    rows = [
        (f"{event.begun_s - begin_s:.1f}", f"{event.ended_s - event.begun_s:.1f}", event.name, event.told)
        for event in events
    ]
    legend = "".join(f'<span style="color:{colour}">&#9632;</span> {name} ' for name, colour in _COLOURS.items())
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1>{_line(asked, events, readiness, begin_s, end_s)}"
        f"<p>{legend}; below: green ready, red not."
        f"<h2>Rules</h2>{_table(('rule', 'found', 'allowed', 'kept'), [rule.line() for rule in rules])}"
        f"<h2>Faults</h2>{_table(('at, s', 'for, s', 'what', 'what came of it'), rows)}\n"
    )


def _line(asked: Sequence[Asked], events: Sequence[Event], readiness: Readiness, begin_s: float, end_s: float) -> str:
    step_s = max(1.0, (end_s - begin_s) / _MOST_BARS)
    bars: dict[int, Counter[str]] = {}
    for one in asked:
        name = NAMES.get(one.status, one.status or "no answer")
        bars.setdefault(int((one.at_s - begin_s) / step_s), Counter())[name] += 1
    highest = max(bar.total() for bar in bars.values())
    scale = (_WIDTH - _LEFT) / max(end_s - begin_s, step_s)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 80}" width="100%">']
    for index, bar in bars.items():
        y = float(_TOP + _HEIGHT)
        for name in (*_COLOURS, *(bar.keys() - _COLOURS.keys())):
            height = bar[name] / highest * _HEIGHT
            y -= height
            parts.append(_box(_LEFT + index * step_s * scale, y, step_s * scale, height, _COLOURS.get(name, _OTHER)))
    for at_s, ready in zip(readiness.at_s, readiness.ready, strict=True):
        if begin_s <= at_s <= end_s:
            colour = "#0b6e4f" if ready else "#c1440e"
            parts.append(_box(_LEFT + (at_s - begin_s) * scale, _TOP + _HEIGHT + 6, 1.5, 8, colour))
    for number, event in enumerate(events):
        x = _LEFT + (event.begun_s - begin_s) * scale
        width = max(1.0, (event.ended_s - event.begun_s) * scale)
        parts.append(_box(x, _TOP, width, _HEIGHT, "#000", 0.12))
        y = _TOP + _HEIGHT + 30 + number % 4 * 11
        parts.append(f'<text x="{x:.0f}" y="{y}">{escape(event.name)}</text>')
    parts.append(f'<text x="0" y="{_TOP + 8}">{highest / step_s:.0f}/s</text><text x="0" y="{_TOP + _HEIGHT}">0</text>')
    return "".join([*parts, "</svg>"])


def _box(x: float, y: float, width: float, height: float, colour: str, opacity: float = 1) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}" opacity="{opacity}"/>'
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}" for cell in header)]
    lines += ["".join(f"<td>{escape(str(cell))}" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}" for line in lines) + "</table>"
