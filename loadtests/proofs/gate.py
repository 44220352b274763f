"""The gate: an SLO that a server holds is broken by the same server slowed by 30 %, and every repeat says so.

    python -m loadtests.proofs.gate --repeats 10

The SLO is the median of a scripted server whose pass takes 10 ms, in the best window of three runs, and half of the way
to the slower one more (14 %). Then that server and one whose pass takes 13 ms are judged in turns; with --through
locust each is a run of `loadtests.slo.run`. What disturbs a run makes it worse, never better. So a run in which the
generator was late is invalid and made again, and so is one that broke, as with `--tries 4` of `loadtests.slo.run`: one
of four that holds is enough, and two must break. The exit code is 1 where a verdict was wrong, 2 where too few runs
were valid.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import yaml

from loadtests.arrivals import constant
from loadtests.cores import cores, pinned
from loadtests.flags import counted, positive
from loadtests.process import Server
from loadtests.report import publish, table
from loadtests.scripted import MODEL, scripted
from loadtests.slo import run
from loadtests.slo.objectives import Slo
from loadtests.slo.record import Record
from loadtests.slo.verdict import BROKEN, HELD, INVALID, judge
from server.load.drive import Leg, open_loop
from server.load.http1 import Http1Wire
from server.load.payloads import payloads
from server.load.samples import Samples

_KIND = f"rest infer {MODEL}"
_RATE = 40.0
_PASS_MS = 10.0
_WARM_UP_S, _WINDOW_S = 0.5, 0.25
_MAX_LAG_MS = 5.0
_TRIES, _BREAK = 4, 2
"""For each verdict, and how many must break."""
_LOOKS = 3
"""Runs, from whose best window the SLO is."""
_WORDS = ("held", "broken", "invalid")
Codes = list[int]
"""Of the runs that were made for one verdict."""


def sampled(server: Server, repository: Path, seconds: float, seed: int) -> Samples:
    wire = Http1Wire(f"http://{server.http}")
    made = payloads("rest", "infer", MODEL, repository)
    try:
        return open_loop([Leg(wire, made, constant(_RATE, seconds, seed))])
    finally:
        wire.close()


def objectives(server: Server, repository: Path, seconds: float, headroom: float) -> dict[str, object]:
    """Of the best window of some runs."""
    runs = [sampled(server, repository, seconds, seed) for seed in range(_LOOKS)]
    begins_s = np.arange(_WARM_UP_S, seconds, _WINDOW_S)
    medians = [one.between(at_s, at_s + _WINDOW_S).latency_ms(50) for one in runs for at_s in begins_s]
    limit = round(headroom * float(np.nanmin(medians)), 3)
    objective = {"kind": _KIND, "rate": _RATE, "arrivals": "constant", "latency_ms": {"p50": limit}}
    return {"warm_up_s": _WARM_UP_S, "window_s": _WINDOW_S, "max_lag_ms": _MAX_LAG_MS, "objectives": [objective]}


def verdict_of(server: Server, repository: Path, slo: dict[str, object], seconds: float, seed: int) -> int:
    """By the generator of server/load."""
    read = Slo.model_validate(slo)
    record = Record.of(sampled(server, repository, seconds, seed), [_KIND], read.window_s)
    return judge(read, record, seconds).exit_code


def verdict_of_locust(server: Server, repository: Path, slo: dict[str, object], seconds: float, seed: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slo.yaml"
        path.write_text(yaml.safe_dump(slo))
        asked = [
            "--seconds",
            f"{seconds:g}",
            "--slo",
            str(path),
            "--rest",
            f"http://{server.http}",
            "--seed",
            f"{seed}",
        ]
        return run.main([*asked, "--model-repository", str(repository)])


def verdict_on(codes: Codes) -> int:
    """One that holds is enough; where too few broke, nothing is told."""
    return HELD if HELD in codes else BROKEN if codes.count(BROKEN) >= _BREAK else INVALID


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=counted, default=10)
    parser.add_argument("--seconds", type=positive, default=2, help="of each run, its warm-up and all (default: 2)")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first run's arrivals; each has its own (default: 1)"
    )
    parser.add_argument(
        "--slowed", type=positive, default=1.3, help="how many times longer a pass takes (default: 1.3)"
    )
    parser.add_argument("--through", choices=("wire", "locust"), default="wire")
    parser.add_argument("--out", type=Path, help="a folder for gate.md")
    options = parser.parse_args(arguments)
    verdict = verdict_of if options.through == "wire" else verdict_of_locust
    with ExitStack() as stack:
        servers = {}
        for name, times in (("the same", 1.0), ("slowed", options.slowed)):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            servers[name] = stack.enter_context(scripted(folder, cores()[0], _PASS_MS * times))
        stack.enter_context(pinned(cores()[-1]))
        slo = objectives(*servers["the same"], options.seconds, options.slowed**0.5)
        found: dict[str, list[Codes]] = {name: [] for name in servers}
        for turn in range(options.repeats):
            for name, verdicts in found.items():
                codes: Codes = []
                while len(codes) < _TRIES and HELD not in codes:
                    seed = options.seed + turn * _TRIES + len(codes)
                    codes.append(verdict(*servers[name], slo, options.seconds, seed))
                verdicts.append(codes)
    told = {name: [verdict_on(codes) for codes in verdicts] for name, verdicts in found.items()}
    rows = [
        (name, *(told[name].count(code) for code in range(3)), sum(map(len, verdicts)))
        for name, verdicts in found.items()
    ]
    wrong = told["the same"].count(BROKEN) + told["slowed"].count(HELD)
    few = sum(codes.count(INVALID) for codes in told.values())
    text = f"# The same server, and one slowed by {options.slowed - 1:.0%}, {options.repeats} verdicts each\n\n"
    text += table(("server", *_WORDS, "runs"), rows) + f"\n{wrong} wrong verdicts.\n"
    publish(text, "gate.md", options.out)
    return 1 if wrong else 2 if few else 0


if __name__ == "__main__":
    sys.exit(main())
