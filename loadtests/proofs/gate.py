"""The gate: an SLO that a server holds is broken by the same server slowed by 30 %, and every repeat says so.

    python -m loadtests.proofs.gate --repeats 10

The SLO is the median of a scripted server whose pass takes 10 ms, the best of three runs, and 15 % more. Then that
server and one whose pass takes 13 ms are judged in turns; with --through locust each is a run of `loadtests.slo.run`. A
run in which the generator was late by more than 2 ms, where the margin is 1.5, is invalid and made again, so that a
busy machine gives no verdict instead of a wrong one. The exit code is 1 where a verdict was wrong, 2 where too few runs
were valid.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import yaml

from loadtests.arrivals import constant
from loadtests.cores import cores, pinned
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
_HEADROOM = 1.15
_WARM_UP_S = 1.0
_MAX_LAG_MS = 2.0
_TRIES = 3
"""For each verdict: runs that are invalid are made again."""
_WORDS = ("held", "broken", "invalid")


def sampled(server: Server, repository: Path, seconds: float, seed: int) -> Samples:
    wire = Http1Wire(f"http://{server.http}")
    made = payloads("rest", "infer", MODEL, repository)
    try:
        return open_loop([Leg(wire, made, constant(_RATE, seconds, seed))])
    finally:
        wire.close()


def objectives(server: Server, repository: Path, seconds: float) -> dict[str, object]:
    """Of the best of some runs: what disturbs one makes it worse, never better."""
    runs = [sampled(server, repository, seconds, seed).between(_WARM_UP_S, seconds) for seed in range(_TRIES)]
    limit = round(_HEADROOM * min(one.latency_ms(50) for one in runs), 3)
    objective = {"kind": _KIND, "rate": _RATE, "arrivals": "constant", "latency_ms": {"p50": limit}}
    return {"warm_up_s": _WARM_UP_S, "window_s": 1.0, "max_lag_ms": _MAX_LAG_MS, "objectives": [objective]}


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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=4, help="of each run, a warm-up of 1 s and all (default: 4)")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first run's arrivals; each has its own (default: 1)"
    )
    parser.add_argument("--slowed", type=float, default=1.3, help="how many times longer a pass takes (default: 1.3)")
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
        slo = objectives(*servers["the same"], options.seconds)
        found: dict[str, list[int]] = {name: [] for name in servers}
        for turn in range(options.repeats * _TRIES):
            for name, codes in found.items():
                if len(codes) - codes.count(INVALID) < options.repeats:
                    codes.append(verdict(*servers[name], slo, options.seconds, options.seed + turn))
    rows = [(name, *(codes.count(code) for code in range(3))) for name, codes in found.items()]
    wrong = found["the same"].count(BROKEN) + found["slowed"].count(HELD)
    text = f"# The same server, and one slowed by {options.slowed - 1:.0%}, {options.repeats} verdicts each\n\n"
    text += table(("server", *_WORDS), rows) + f"\n{wrong} wrong verdicts.\n"
    publish(text, "gate.md", options.out)
    few = any(len(codes) - codes.count(INVALID) < options.repeats for codes in found.values())
    return 1 if wrong else 2 if few else 0


if __name__ == "__main__":
    sys.exit(main())
