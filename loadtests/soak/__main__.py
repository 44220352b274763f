"""A long time under half of the capacity, beside clients that misbehave.

    python -m loadtests.soak --seconds 1800

Starts the server with its defaults on a repository of its own, measures how many calls a second it answers (gRPC,
streams, REST with JSON and binary tensors, predict, all together), then asks for less than half of it, from connections
that come and go, while other clients cancel, leave, run out of time, and send broken frames and broken HTTP. Exits with
1 if a rule of the table is broken: memory that grows, something left open, an answer that is missing or wrong, a
request that is counted otherwise than once.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests.flags import counted, positive
from loadtests.machine import describe
from loadtests.report import publish, table
from loadtests.soak.run import Plan, Seen, judge, soak
from loadtests.soak.verdict import Rule


def report(seen: Seen, rules: Sequence[Rule], plan: Plan) -> str:
    chaos, asked = seen.chaos, seen.asked
    resident = [sample.resident_bytes / 1e6 for sample in seen.samples]
    lines = [
        ("steady calls a second: capacity, then", f"{seen.capacity:.0f}, {seen.rate:.0f}"),
        ("steady calls, connections", f"{asked.calls.total()}, {asked.connections}"),
        *((f"of them by {way}", f"{count}") for way, count in asked.calls.items()),
        ("acts of chaos", f"{chaos.acts.total()}"),
        ("resident: first, least, most, last", " ".join(f"{value:.1f}" for value in _range(resident)) + " MB"),
    ]
    parts = [
        f"# A soak of {plan.seconds:g} s at {plan.load:g} of the capacity",
        table(("what", "seen"), lines),
        table(("rule", "found", "allowed", "kept"), [rule.line() for rule in rules]),
        table(("how the acts ended", "times"), sorted(chaos.ends.items())),
    ]
    faults = [*asked.faults, *chaos.faults, *seen.complaints[:20]]
    return "\n".join(parts) + "".join(f"- {text}\n" for text in faults)


def _range(values: Sequence[float]) -> tuple[float, ...]:
    return (values[0], min(values), max(values), values[-1]) if values else ()


def record(seen: Seen, rules: Sequence[Rule]) -> dict[str, Any]:
    """The same for programs, with every sample."""
    return {
        "machine": describe(),
        "capacity_per_s": seen.capacity,
        "rate_per_s": seen.rate,
        "calls": dict(seen.asked.calls),
        "connections": seen.asked.connections,
        "acts": dict(seen.chaos.acts),
        "ends": dict(seen.chaos.ends),
        "rules": [vars(rule) for rule in rules],
        "faults": [*seen.asked.faults, *seen.chaos.faults, *seen.complaints],
        "samples": [sample.line() for sample in (seen.before, *seen.samples, seen.after)],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=positive, default=Plan.seconds, help="of the soak (default: 1800)")
    parser.add_argument("--load", type=positive, default=Plan.load, help="of the capacity (default: 0.45)")
    parser.add_argument("--acts", type=positive, default=Plan.acts_per_s, help="of chaos, a second (default: 15)")
    parser.add_argument("--workers", type=counted, default=1, help="the server's --workers (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the chaos")
    parser.add_argument("--out", type=Path, help="also write soak.md and soak.json into this folder")
    options = parser.parse_args(arguments)
    plan = Plan(options.seconds, load=options.load, acts_per_s=options.acts, seed=options.seed, workers=options.workers)
    with tempfile.TemporaryDirectory() as folder:
        seen = soak(plan, Path(folder))
    rules = judge(seen, plan)
    publish(report(seen, rules, plan), "soak.md", options.out)
    if options.out:
        (options.out / "soak.json").write_text(json.dumps(record(seen, rules), indent=1) + "\n")
    return 0 if all(rule.kept for rule in rules) else 1


if __name__ == "__main__":
    sys.exit(main())
