"""A server that stalls for 500 ms, asked by both loops, in one report: the open loop's p99 shows it, the other's not.

    python -m loadtests.proofs.stall --out build/bench

The exit code is 1 where that is not what comes out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loadtests.cores import cores, pinned
from loadtests.flags import positive
from loadtests.report import Panel, marks, publish, svg, table
from loadtests.scripted import MODEL, scripted
from server.load.drive import Leg, closed_loop, open_loop, poisson
from server.load.http1 import Http1Wire
from server.load.payloads import payloads
from server.load.samples import Samples

_STALL_MS, _EVERY_S = 500.0, 3.0
_PASS_MS = 2.0
_RATE = 100.0
_CALLERS = 4
_SLICE_S = 0.25


def both(seconds: float) -> dict[str, Samples]:
    """By loop."""
    with (
        tempfile.TemporaryDirectory() as folder,
        scripted(Path(folder), cores()[0], _PASS_MS, _STALL_MS, _EVERY_S) as (server, repository),
        pinned(cores()[-1]),
    ):
        wire = Http1Wire(f"http://{server.http}")
        made = payloads("rest", "infer", MODEL, repository)
        try:
            return {
                "open loop": open_loop([Leg(wire, made, poisson(_RATE, seconds, 0))]),
                "closed loop": closed_loop(Leg(wire, made, ()), _CALLERS, seconds),
            }
        finally:
            wire.close()


def report(found: dict[str, Samples]) -> str:
    rows = [
        (name, len(one), *(f"{one.latency_ms(q):.1f}" for q in (50, 95, 99, 100)), f"{one.lag_ms(99):.2f}")
        for name, one in found.items()
    ]
    head = f"# A pass takes {_PASS_MS:g} ms, and every {_EVERY_S:g} s one takes {_STALL_MS:g} ms more\n\n"
    header = ("loop", "requests", "p50 ms", "p95 ms", "p99 ms", "max ms", "sent late, p99 ms")
    return head + table(header, rows)


def over_time(found: dict[str, Samples]) -> str:
    """p99 of each quarter of a second, by the time at which requests were due."""
    lines = {}
    for name, one in found.items():
        places = (one.due_ns / 1e9 / _SLICE_S).astype(int)
        lines[name] = [
            (float(place) * _SLICE_S, one.of(places == place).latency_ms(99)) for place in np.unique(places).tolist()
        ]
    top = 1.2 * _STALL_MS
    return svg([Panel("p99, ms, by the second in which requests were due", "s", lines, top, marks(top))], 1)


def shown(found: dict[str, Samples]) -> bool:
    return found["open loop"].latency_ms(99) > 0.6 * _STALL_MS > 3 * found["closed loop"].latency_ms(99)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=positive, default=9, help="of each loop (default: 9)")
    parser.add_argument("--out", type=Path, help="a folder for stall.md and stall.svg")
    options = parser.parse_args(arguments)
    found = both(options.seconds)
    publish(report(found), "stall.md", options.out)
    if options.out:
        (options.out / "stall.svg").write_text(over_time(found))
    return 0 if shown(found) else 1


if __name__ == "__main__":
    sys.exit(main())
