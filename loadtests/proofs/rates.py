"""Rates that one worker holds: 2,000 REST and 1,000 gRPC requests a second, sent within 2 ms of when they are due.

    python -m loadtests.proofs.rates
    python -m loadtests.proofs.rates --generator wire

Each is a run of its own of `loadtests.slo.run` with `max_lag_ms: 2`. What the worker does not hold makes the run
invalid: the exit code is 0 where each run was either on time or called itself invalid, and 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from loadtests.flags import positive
from loadtests.report import publish, table
from loadtests.slo import run
from loadtests.slo.verdict import INVALID

_MAX_LAG_MS = 2.0
_RATES = {"rest infer breast_cancer": 2_000, "grpc infer fraud": 1_000}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=positive, default=8, help="of each run, 2 s of them warm-up (default: 8)")
    parser.add_argument("--generator", choices=("locust", "wire"), default="locust")
    parser.add_argument("--times", type=positive, default=1.0, help="the rates, so many times")
    parser.add_argument("--out", type=Path, help="a folder for rates.md")
    options = parser.parse_args(arguments)
    rows, told = [], True
    for kind, rate in _RATES.items():
        with tempfile.TemporaryDirectory() as folder:
            objective = {"kind": kind, "rate": rate * options.times, "arrivals": "constant", "max_error_rate": 0}
            slo = {"warm_up_s": 2, "window_s": 1, "max_lag_ms": _MAX_LAG_MS, "objectives": [objective]}
            path = Path(folder) / "slo.yaml"
            path.write_text(yaml.safe_dump(slo))
            asked = ["--slo", str(path), "--seconds", f"{options.seconds:g}", "--generator", options.generator]
            code = run.main([*asked, "--out", folder])
            found = json.loads((Path(folder) / "load.json").read_text())
        late = found["lag_p99_ms"]
        told = told and (late <= _MAX_LAG_MS) == (code != INVALID)
        asked_for = found["kinds"][kind]
        rows.append(
            (
                kind,
                f"{rate * options.times:,.0f}",
                f"{asked_for['asked'] / options.seconds:,.0f}",
                f"{late:.2f}",
                f"{asked_for['p50_ms']:.2f}",
                f"{asked_for['p99_ms']:.2f}",
                found["verdict"],
            )
        )
    header = ("kind", "requests/s", "sent/s", "sent late, p99 ms", "p50 ms", "p99 ms", "verdict")
    publish(f"# One process of {options.generator}\n\n" + table(header, rows), "rates.md", options.out)
    return 0 if told else 1


if __name__ == "__main__":
    sys.exit(main())
