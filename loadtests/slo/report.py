"""The verdict as people and machines read it: a table, JSON, JUnit XML for CI, and a page with plots."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from html import escape
from pathlib import Path
from xml.etree import ElementTree

from loadtests.report import Panel, svg, table
from loadtests.slo.objectives import Slo
from loadtests.slo.record import Record, Window
from loadtests.slo.verdict import INVALID, Check, Verdict, percentile_ms

_HEADER = ("kind", "what", "limit", "measured", "95 % interval", "held")
_TOTALS = ("kind", "asked", "right", "wrong", "failed", "refused", "p50 ms", "p95 ms", "p99 ms", "max ms")
_WORDS = {0: "HELD", 1: "BROKEN", 2: "INVALID"}
_PERCENTILES = (0, 25, 50, 75, 90, 95, 99, 99.5, 99.9)
_MARKS = 5


def publish(
    verdict: Verdict, slo: Slo, record: Record, loop: str, seconds: float, processes: int, folder: Path | None
) -> None:
    """Print the verdict; write all of it into `folder`, if there is one."""
    text = markdown(verdict, slo, record, loop, seconds, processes)
    sys.stdout.write(text)
    sys.stdout.flush()
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "load.md").write_text(text)
    (folder / "load.json").write_text(json.dumps(plain(verdict, record, loop, seconds), indent=1) + "\n")
    (folder / "load.html").write_text(page(text, record))
    ElementTree.ElementTree(junit(verdict, seconds)).write(folder / "junit.xml", "utf-8", xml_declaration=True)


def markdown(verdict: Verdict, slo: Slo, record: Record, loop: str, seconds: float, processes: int) -> str:
    """The tables, and the verdict as the last line."""
    rows = [
        (each.kind, each.what, f"{'>=' if each.at_least else '<='} {each.limit:g}", *_cells(each))
        for each in verdict.checks
    ]
    last = f"{_WORDS[verdict.exit_code]}: {verdict.invalid or _summary(verdict)}"
    return (
        f"# {loop} loop, {seconds:g} s, {slo.warm_up_s:g} s of them warm-up, {processes} generator processes\n\n"
        + table(_TOTALS, [_totals(kind, whole(record, kind)) for kind in record.windows])
        + "\n"
        + table(_HEADER, rows)
        + f"\nSent {verdict.lag_p99_ms:.2f} ms late at the 99th percentile; {slo.max_lag_ms:g} ms are allowed.\n\n"
        + f"{last}\n"
    )


def _cells(check: Check) -> tuple[str, str, str]:
    interval = "" if math.isnan(check.interval) else f"+- {check.interval:.3g}"
    return f"{check.measured:.4g}", interval, "yes" if check.held else "NO"


def _summary(verdict: Verdict) -> str:
    broken = [f"{check.kind} {check.what}" for check in verdict.checks if not check.held]
    return f"{len(broken)} of {len(verdict.checks)} limits: {', '.join(broken)}" if broken else "all limits"


def whole(record: Record, kind: str) -> Window:
    """The run from its first second to its last, warm-up and all."""
    return record.whole(kind, list(record.windows[kind]))


def _totals(kind: str, window: Window) -> tuple[object, ...]:
    counts = [window.outcomes[name] for name in ("right", "wrong", "failed", "refused")]
    times = [f"{percentile_ms(window.latency_us, q):.2f}" for q in (50, 95, 99, 100)]
    return kind, window.asked, *counts, *times


def plain(verdict: Verdict, record: Record, loop: str, seconds: float) -> dict[str, object]:
    return {
        "verdict": _WORDS[verdict.exit_code],
        "invalid": verdict.invalid,
        "loop": loop,
        "seconds": seconds,
        "lag_p99_ms": _number(verdict.lag_p99_ms),
        "checks": [
            {
                "kind": check.kind,
                "what": check.what,
                "limit": check.limit,
                "measured": _number(check.measured),
                "interval": _number(check.interval),
                "held": check.held,
            }
            for check in verdict.checks
        ],
        "kinds": {kind: _kind(whole(record, kind)) for kind in record.windows},
    }


def _kind(window: Window) -> dict[str, object]:
    times = {f"p{q:g}_ms": _number(percentile_ms(window.latency_us, q)) for q in (50, 95, 99, 99.9)}
    return {"asked": window.asked, **Counter(window.outcomes), **times}


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else round(value, 6)


def junit(verdict: Verdict, seconds: float) -> ElementTree.Element:
    """A test case for each limit; an invalid run is an error, which no limit is to blame for."""
    failures = sum(not check.held for check in verdict.checks)
    suite = ElementTree.Element(
        "testsuite",
        name="slo",
        tests=str(len(verdict.checks)),
        failures=str(0 if verdict.exit_code == INVALID else failures),
        errors=str(int(verdict.exit_code == INVALID)),
        time=f"{seconds:g}",
    )
    for check in verdict.checks:
        case = ElementTree.SubElement(suite, "testcase", classname=check.kind, name=check.what)
        if verdict.exit_code == INVALID:
            ElementTree.SubElement(case, "error", message=verdict.invalid)
        elif not check.held:
            said = f"{check.measured:g}, and {check.limit:g} {'at least' if check.at_least else 'at most'} is allowed"
            ElementTree.SubElement(case, "failure", message=said)
    return suite


def page(text: str, record: Record) -> str:
    """The tables as they were printed, and three plots."""
    plots = svg([_over_time(record), _percentiles(record), _throughput(record)], columns=3)
    return (
        "<!doctype html><meta charset='utf-8'><title>Load test</title>"
        "<body style='font-family:sans-serif;margin:2em'>"
        f"{plots}<pre>{escape(text)}</pre></body>\n"
    )


def _over_time(record: Record) -> Panel:
    lines = {
        kind: [
            (number * record.window_s / 60, percentile_ms(windows[number].latency_us, 99))
            for number in sorted(windows)
            if windows[number].latency_us.get_total_count()
        ]
        for kind, windows in record.windows.items()
    }
    return _panel("p99, ms, by the minute in which requests were due", "minutes", lines)


def _percentiles(record: Record) -> Panel:
    lines = {
        kind: [(-math.log10(1 - q / 100), percentile_ms(whole(record, kind).latency_us, q)) for q in _PERCENTILES]
        for kind in record.windows
        if whole(record, kind).latency_us.get_total_count()
    }
    return _panel("latency, ms, by percentile", "nines: 1 is p90, 2 is p99, 3 is p99.9", lines)


def _throughput(record: Record) -> Panel:
    lines = {
        kind: [(n * record.window_s / 60, windows[n].outcomes["right"] / record.window_s) for n in sorted(windows)]
        for kind, windows in record.windows.items()
    }
    return _panel("right answers a second", "minutes", lines)


def _panel(title: str, x_label: str, lines: dict[str, list[tuple[float, float]]]) -> Panel:
    drawn = {name: points for name, points in lines.items() if points} or {"nothing": [(0.0, 0.0), (1.0, 0.0)]}
    top = max((y for points in drawn.values() for _, y in points), default=0) or 1.0
    wide = max(x for points in drawn.values() for x, _ in points)
    if not wide:  # One window alone.
        drawn = {name: [*points, (0.5, points[-1][1])] for name, points in drawn.items()}
    step = 10 ** math.floor(math.log10(top / _MARKS)) if top else 1.0
    step *= next(factor for factor in (1, 2, 5, 10) if step * factor * _MARKS >= top)
    return Panel(title, x_label, drawn, top * 1.05, [step * mark for mark in range(int(top / step) + 1)])
