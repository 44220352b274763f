"""The verdict as people and machines read it: tables, JSON, and JUnit XML for CI. The page is `page.py`."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from loadtests.report import as_json, table
from loadtests.slo.around import Around
from loadtests.slo.objectives import Slo
from loadtests.slo.page import page
from loadtests.slo.record import Record, Window
from loadtests.slo.verdict import INVALID, Check, Verdict, percentile_ms
from server.explain import PARTS

_WORDS = {0: "HELD", 1: "BROKEN", 2: "INVALID"}
_LIMITS = ("kind", "what", "limit", "measured", "95 % interval", "held")
_TOTALS = ("kind", "asked", "right", "wrong", "failed", "refused", "p50 ms", "p95 ms", "p99 ms", "max ms")
_STREAMS = ("kind", "first answer p50 ms", "p99 ms", "between answers p50 ms", "p99 ms")
_FAULTS = ("kind", "times", "what")
_SERVED = ("model", "right answers here", "successes there", "failures", "rows a pass", "mean ms here", "mean ms there",
           "of it queue", "of it compute")  # fmt: skip
_MOST_FAULTS = 20
_PER = 1000
"""Predictions that energy and money are told for."""

Table = tuple[str, Sequence[str], Sequence[Sequence[object]]]
"""A title, the head, the rows."""


def publish(verdict: Verdict, slo: Slo, record: Record, around: Around, folder: Path | None) -> None:
    """Print the verdict; write all of it into `folder`, if there is one."""
    text = markdown(verdict, slo, record, around)
    sys.stdout.write(text)
    sys.stdout.flush()
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "load.md").write_text(text)
    (folder / "load.json").write_text(as_json(plain(verdict, record, around)))
    (folder / "load.html").write_text(
        page(
            head(slo, around),
            last(verdict),
            verdict.exit_code,
            tables(verdict, record, around),
            record,
            around.seconds,
        )
    )
    junit_xml = ElementTree.ElementTree(junit(verdict, around.seconds))
    junit_xml.write(folder / "junit.xml", "utf-8", xml_declaration=True)


def head(slo: Slo, around: Around) -> str:
    processes = f"{around.processes} process{'es' if around.processes > 1 else ''}"
    loop = f"{around.loop} loop, {around.seconds:g} s, {slo.warm_up_s:g} s of them warm-up"
    return f"{loop}; {around.generator}, {processes}"


def last(verdict: Verdict) -> str:
    """The verdict in a line."""
    broken = [f"{check.kind} {check.what}" for check in verdict.checks if not check.held]
    limits = f"{len(broken)} of {len(verdict.checks)} limits: {', '.join(broken)}" if broken else "all limits"
    return f"{_WORDS[verdict.exit_code]}: {verdict.invalid or limits}"


def markdown(verdict: Verdict, slo: Slo, record: Record, around: Around) -> str:
    """The tables, and the verdict as the last line."""
    parts = [f"# {head(slo, around)}\n"]
    parts += [f"{title}:\n\n{table(names, rows)}" for title, names, rows in tables(verdict, record, around)]
    lag = f"Sent {verdict.lag_p99_ms:.2f} ms late at the 99th percentile; {slo.max_lag_ms:g} ms are allowed.\n"
    return "\n".join([*parts, lag, f"{last(verdict)}\n"])


def tables(verdict: Verdict, record: Record, around: Around) -> list[Table]:
    """Those that have something to say."""
    kinds = list(record.windows)
    found: list[Table] = [("Requests", _TOTALS, [_totals(kind, whole(record, kind)) for kind in kinds])]
    streams = [(kind, window) for kind in kinds if (window := whole(record, kind)).streamed_us]
    if streams:
        found.append(("Streams", _STREAMS, [_streamed(kind, window) for kind, window in streams]))
    found.append(("Limits", _LIMITS, [(*_limit(check), *_cells(check)) for check in verdict.checks]))
    faults = Counter({(kind, words): times for kind in kinds for words, times in whole(record, kind).faults.items()})
    if faults:
        shown = faults.most_common(_MOST_FAULTS)
        found.append(("Errors by cause", _FAULTS, [(kind, times, words) for (kind, words), times in shown]))
    if record.stages:
        found.append(stages(record))
    if around.served:
        served = [_served(model, record, around) for model in around.served]
        found.append(
            (
                "The server's own counts beside these, with the warm-up and the calls that asked for their stages",
                _SERVED,
                served,
            )
        )
    if cost := costs(record, around):
        found.append((f"For {_PER:,} right predictions", ("what", "amount"), cost))
    return found


def _limit(check: Check) -> tuple[str, str, str]:
    return check.kind, check.what, f"{'>=' if check.at_least else '<='} {check.limit:g}"


def _cells(check: Check) -> tuple[str, str, str]:
    interval = "" if math.isnan(check.interval) else f"+- {check.interval:.3g}"
    return _measured(check, ".4g"), interval, "yes" if check.held else "NO"


def _measured(check: Check, form: str) -> str:
    return "nothing" if math.isnan(check.measured) else format(check.measured, form)


def whole(record: Record, kind: str) -> Window:
    """The run from its first second to its last, warm-up and all."""
    return record.whole(kind, list(record.windows[kind]))


def _totals(kind: str, window: Window) -> tuple[object, ...]:
    counts = [window.outcomes[name] for name in ("right", "wrong", "failed", "refused")]
    times = [_ms(window.latency_us, q) for q in (50, 95, 99, 100)]
    return kind, window.asked, *counts, *times


def _streamed(kind: str, window: Window) -> tuple[object, ...]:
    return kind, *(_ms(window.streamed_us[name], q) for name in ("first", "between") for q in (50, 99))


def _ms(times_us: object, q: float) -> str:
    """Empty of nothing: a stream of one answer has no time between two."""
    value = percentile_ms(times_us, q)
    return "" if math.isnan(value) else f"{value:.2f}"


def stages(record: Record) -> Table:
    """Means of the calls that the server explained, which were sent beside the run."""
    names = [name for name in (*PARTS, "total") if any(name in parts for parts in record.stages.values())]
    rows = [
        (kind, parts["calls"], *(f"{parts[name] / parts['calls']:.3f}" if name in parts else "" for name in names))
        for kind, parts in record.stages.items()
    ]
    return "Stages in the server, mean ms of the calls that asked for it", ("kind", "calls", *names), rows


def _served(model: str, record: Record, around: Around) -> tuple[object, ...]:
    mine = Window()
    for kind in record.windows:
        if kind.split(maxsplit=2)[2] == model:
            mine.add(whole(record, kind))
    there = around.served[model]
    here_ms = mine.latency_us.get_mean_value() / 1e3 if mine.outcomes["right"] else 0.0
    passes = f"{there.rows / there.passes:.2f}" if there.passes else ""
    times = [f"{there.mean_ms(us):.3f}" for us in (there.request_us, there.queue_us, there.compute_us)]
    return model, mine.outcomes["right"], f"{there.success:g}", f"{there.failure:g}", passes, f"{here_ms:.3f}", *times


def costs(record: Record, around: Around) -> list[tuple[str, str]]:
    """Energy and money; what is not known is left out."""
    right = sum(whole(record, kind).outcomes["right"] for kind in record.windows)
    found = []
    if right and around.joules is not None:
        watts = around.joules / around.seconds
        found.append((f"joules (the machine with the generator, {watts:.1f} W)", f"{around.joules / right * _PER:.3g}"))
    if right and around.price_per_hour is not None:
        money = around.price_per_hour / 3600 * around.seconds / right * _PER
        found.append((f"money (at {around.price_per_hour:g} an hour)", f"{money:.3g}"))
    return found


def plain(verdict: Verdict, record: Record, around: Around) -> dict[str, object]:
    return {
        "verdict": _WORDS[verdict.exit_code],
        "invalid": verdict.invalid,
        "loop": around.loop,
        "seconds": around.seconds,
        "generator": around.generator,
        "processes": around.processes,
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
        "stages": {kind: dict(parts) for kind, parts in record.stages.items()},
        "served": {model: vars(served) for model, served in around.served.items()},
        "joules": around.joules,
        "price_per_hour": around.price_per_hour,
        "for_1000": dict(costs(record, around)),
    }


def _kind(window: Window) -> dict[str, object]:
    times = {f"p{q:g}_ms": _number(percentile_ms(window.latency_us, q)) for q in (50, 95, 99, 99.9)}
    streams = {
        f"{name}_p{q:g}_ms": _number(percentile_ms(times_us, q))
        for name, times_us in window.streamed_us.items()
        for q in (50, 99)
    }
    return {"asked": window.asked, **Counter(window.outcomes), **times, **streams, "faults": dict(window.faults)}


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else round(value, 6)


def junit(verdict: Verdict, seconds: float) -> ElementTree.Element:
    """A test case for each limit; in an invalid run each is an error, for nothing is known of it."""
    failures = sum(not check.held for check in verdict.checks)
    suite = ElementTree.Element(
        "testsuite",
        name="slo",
        tests=str(len(verdict.checks)),
        failures=str(0 if verdict.exit_code == INVALID else failures),
        errors=str(len(verdict.checks) if verdict.exit_code == INVALID else 0),
        time=f"{seconds:g}",
    )
    for check in verdict.checks:
        case = ElementTree.SubElement(suite, "testcase", classname=check.kind, name=check.what)
        if verdict.exit_code == INVALID:
            ElementTree.SubElement(case, "error", message=verdict.invalid)
        elif not check.held:
            said = (
                f"{_measured(check, 'g')}, and {check.limit:g} {'at least' if check.at_least else 'at most'} is allowed"
            )
            ElementTree.SubElement(case, "failure", message=said)
    return suite
