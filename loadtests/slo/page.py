"""The report as a page: the verdict, plots, and the tables. One file, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from loadtests.report import Panel, marks, svg
from loadtests.slo.record import Record, Window
from loadtests.slo.verdict import percentile_ms

_PERCENTILES = (0, 25, 50, 75, 90, 95, 99, 99.5, 99.9)
_COLOURS = ("#0b6e4f", "#b3261e", "#8a6d00")
"""Held, broken, invalid."""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1360px; padding: 0 1rem; color: #1b1b1f; }
h1 { font-size: 1.1rem; font-weight: 500; color: #55555f; }
h2 { font-size: 1rem; margin: 2rem 0 .5rem; }
.verdict { color: white; border-radius: 6px; padding: .6rem 1rem; font-weight: 600; }
svg { width: 100%; height: auto; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:last-child { overflow-wrap: anywhere; }
th { color: #55555f; font-weight: 500; }
.no { color: #b3261e; font-weight: 600; }
"""


def page(
    head: str,
    verdict: str,
    code: int,
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[object]]]],
    record: Record,
    seconds: float,
) -> str:
    panels = [_over_time(record, seconds), _percentiles(record), _throughput(record, seconds), _errors(record, seconds)]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Load test</title>"
        f"<style>{_STYLE}</style></head><body><h1>{escape(head)}</h1>"
        f"<p class='verdict' style='background:{_COLOURS[code]}'>{escape(verdict)}</p>"
        f"{svg(panels)}{''.join(_table(*one) for one in tables)}</body></html>\n"
    )


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = [f"<h2>{escape(title)}</h2><table><thead><tr>{cells}</tr></thead><tbody>"]
    for row in rows:
        marked = (f"<td{' class=no' if cell == 'NO' else ''}>{escape(str(cell))}</td>" for cell in row)
        lines.append(f"<tr>{''.join(marked)}</tr>")
    return "".join([*lines, "</tbody></table>"])


def _over_time(record: Record, seconds: float) -> Panel:
    def p99(window: Window) -> float:
        return percentile_ms(window.latency_us, 99)

    return _panel("p99, ms, by the time at which requests were due", "seconds", _by_window(record, seconds, p99))


def _percentiles(record: Record) -> Panel:
    whole = {kind: record.whole(kind, list(record.windows[kind])) for kind in record.windows}
    lines = {
        kind: [(-math.log10(1 - q / 100), percentile_ms(window.latency_us, q)) for q in _PERCENTILES]
        for kind, window in whole.items()
        if window.latency_us.get_total_count()
    }
    return _panel("latency, ms, by percentile", "nines: 1 is p90, 2 is p99, 3 is p99.9", lines)


def _throughput(record: Record, seconds: float) -> Panel:
    lines = _by_window(record, seconds, lambda window: window.outcomes["right"] / record.window_s)
    return _panel("right answers a second", "seconds", lines)


def _errors(record: Record, seconds: float) -> Panel:
    def wrong(window: Window) -> float:
        return (window.asked - window.outcomes["right"]) / record.window_s

    return _panel("wrong, failed and refused a second", "seconds", _by_window(record, seconds, wrong))


def _by_window(
    record: Record, seconds: float, value: Callable[[Window], float]
) -> dict[str, list[tuple[float, float]]]:
    """Of windows that are whole, for a part of one has fewer requests; or of all, where none is."""
    whole = int(seconds / record.window_s) or math.inf
    return {
        kind: [
            (n * record.window_s, each)
            for n in sorted(windows)
            if n < whole and not math.isnan(each := value(windows[n]))
        ]
        for kind, windows in record.windows.items()
    }


def _panel(title: str, x_label: str, lines: dict[str, list[tuple[float, float]]]) -> Panel:
    top = max((y for points in lines.values() for _, y in points), default=0) or 1.0
    if not max((x for points in lines.values() for x, _ in points), default=1.0):  # One window alone.
        lines = {name: [*points, *((0.5, y) for _, y in points)] for name, points in lines.items()}
    return Panel(title, x_label, lines, top * 1.05, marks(top * 1.05))
