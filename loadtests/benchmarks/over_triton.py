"""The gateway in front of a Triton, beside that Triton alone and the embedded engine: a JPEG to its label.

    python -m loadtests.benchmarks.over_triton

All servers on one core, the generator on another; the gateway and the embedded engine are held still while another one
is measured. Triton has three ways of its own: an ensemble whose first model, in Python, decodes; a Python model that
decodes and asks the other one (BLS); and a Python model that does all. Each side with either of two decoders, the same
at all: the whole picture in Pillow, or reduced while it is decoded. A closed loop with 8 and 32 requests in flight,
interleaved, medians of the rounds. Then overload, decoding the whole picture, beside the Python model that does all,
which is the quickest of the three: Poisson arrivals at twice the capacity of Triton (its best closed-loop rate), each
with 100 ms, the same at all of them: through the gateway, straight at Triton with its default queue, and with the queue
policy that does best of `POLICIES` in a short trial of each; and at both of ours, JPEGs reduced while they are decoded.
And the gateway and the embedded engine at twice their own capacities.

Latency counts from the time that a request was due. Goodput is answers within the deadline, at which callers give up. A
Triton may end of that, by a race of cancellations: then the benchmark says so, and prints what it has.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import math
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import grpc
import uvloop

from loadtests.arrivals import poisson
from loadtests.benchmarks.over_triton_sides import DECODERS, POLICIES, WORKLOAD, Side, Sides, started
from loadtests.benchmarks.peers import workloads
from loadtests.benchmarks.peers.environments import Unavailable
from loadtests.benchmarks.peers.running import ask, generate
from loadtests.benchmarks.peers.workloads import Workload
from loadtests.client import OpenLoop, open_loop, quantile
from loadtests.cores import cores
from loadtests.flags import counted, positive
from loadtests.generators import Load, Measured, missing
from loadtests.report import publish, table
from server.local_triton.program import TritonMissing

IN_FLIGHT = (8, 32)
OVERLOAD = 2.0
DEADLINE_NS = 100_000_000
CLOSED_HEADER = ("server", "in flight", "answers/s", "from-to", "p50 ms", "p99 ms", "CPU ms an answer", "failed")
OPEN_HEADER = (
    *("server", "goodput/s", "over Triton's capacity", "over its own", "in time"),
    *("p50 ms", "p99 ms", "valid", "statuses"),
)
RATIO_HEADER = ("server", "beside", "answers/s", "answers a CPU second", "p99")
_WARM_UP_S = 1


class Overload(NamedTuple):
    """What came of one load, or of several of them together."""

    goodput_per_s: float
    share_in_time: float
    p50_ms: float
    p99_ms: float
    valid: bool
    """The generator kept its times."""
    statuses: Counter[str]
    capacity: float = math.nan
    """Of the same server, without overload."""


class Cell(NamedTuple):
    """One closed loop."""

    measured: Measured
    cpu_ms: float
    """Processor time of all processes of the side, for each answer: what neighbours on the core hardly change."""


Cells = dict[tuple[str, int], list[Cell]]
"""By a side's title and the number in flight."""


def closed(side: Side, workload: Workload, in_flight: int, options: argparse.Namespace) -> Cell:
    load = Load(1, in_flight, _WARM_UP_S, [options.sent_from])
    with side.awake(workload):
        answer_bytes = len(ask(side.call, side.address))
        generate(side.call, side.address, answer_bytes, load)
        before_s = sum(tree.cpu_s() for tree in side.trees)
        found = generate(side.call, side.address, answer_bytes, Load(1, in_flight, options.seconds, load.cores))
        cpu_s = sum(tree.cpu_s() for tree in side.trees) - before_s
    return Cell(found, cpu_s * 1e3 / max(1, found.answered))


def closed_loops(sides: Mapping[str, Sides], workload: Workload, options: argparse.Namespace) -> Cells:
    """Every side by its title, with every number in flight, in another order each round."""
    found: Cells = {}
    every = [side for each in sides.values() for side in (*each.ours, *each.tritons)]
    cells = [(side, in_flight) for side in every for in_flight in options.in_flight]
    shuffled = random.Random(options.seed)
    for _ in range(options.rounds):
        for side, in_flight in shuffled.sample(cells, len(cells)):
            found.setdefault((side.title, in_flight), []).append(closed(side, workload, in_flight, options))
    return found


def overload(side: Side, workload: Workload, rate: float, seconds: float, seed: int) -> Overload:
    """Poisson arrivals of `rate` a second for so long."""
    due_ns = poisson(rate, seconds, seed)
    with side.awake(workload):
        result = uvloop.run(_offer(side, due_ns))
    return judge(result, len(due_ns) / seconds)


async def _offer(side: Side, due_ns: Sequence[int]) -> OpenLoop:
    async with grpc.aio.insecure_channel(side.address) as channel:
        call = channel.unary_unary(side.call.path, request_serializer=None, response_deserializer=None)
        for _ in range(10):
            # A queue policy may refuse even one alone, right after it was held still.
            with suppress(grpc.aio.AioRpcError):
                await call(side.call.body, timeout=10)
        result = await open_loop(call, side.call.body, due_ns, DEADLINE_NS)
        # What is left of it here must not be held still in the middle of its work.
        await asyncio.sleep(0.3)
    return result


def judge(result: OpenLoop, rate: float) -> Overload:
    share = result.in_time(DEADLINE_NS) / max(1, len(result.lags_ns))
    p50, p99 = (quantile(result.answered_ns, q) / 1e6 for q in (0.5, 0.99))
    return Overload(share * rate, share, p50, p99, result.valid(), result.statuses)


def together(runs: Sequence[Overload]) -> Overload:
    """Medians, and the sum of the statuses."""
    return Overload(
        median(run.goodput_per_s for run in runs),
        median(run.share_in_time for run in runs),
        median(run.p50_ms for run in runs),
        median(run.p99_ms for run in runs),
        all(run.valid for run in runs),
        sum((run.statuses for run in runs), Counter[str]()),
        runs[0].capacity,
    )


def overloads(
    sides: Sides, reduced: Sides, workload: Workload, capacities: dict[str, float], options: argparse.Namespace
) -> tuple[dict[str, Overload], dict[str, float]]:
    """By title; and what each queue policy had in its trial, by the side's name."""
    capacity = capacities[sides.alone.title]
    rate = OVERLOAD * capacity
    tried = [sides.alone.of(f"Triton, {policy}", model, workload) for model, policy in POLICIES.items()]
    trials = {
        side.name: overload(side, workload, rate, options.trial_seconds, options.seed).goodput_per_s for side in tried
    }
    best = max(tried, key=lambda side: trials[side.name])
    own = {side.title: capacities[side.title] for side in (sides.gateway, sides.embedded)}
    compared = [
        (sides.gateway, rate, own[sides.gateway.title]),
        (replace(sides.alone, name="Triton, its default queue"), rate, capacity),
        (best, rate, capacity),
        *((side, rate, capacities[side.title]) for side in reduced.ours),
        *((_at_own(side), OVERLOAD * own[side.title], own[side.title]) for side in (sides.gateway, sides.embedded)),
    ]
    runs: dict[str, list[Overload]] = {side.title: [] for side, _, _ in compared}
    for number in range(options.rounds):
        at = number % len(compared)
        for side, offered, alone in compared[at:] + compared[:at]:
            found = overload(side, workload, offered, options.overload_seconds, options.seed + 1 + number)
            runs[side.title].append(found._replace(capacity=alone))
    return {title: together(each) for title, each in runs.items()}, trials


def _at_own(side: Side) -> Side:
    return replace(side, name=f"{side.name} at twice its own capacity")


def closed_table(found: Cells) -> str:
    lines = []
    for (title, in_flight), cells in sorted(found.items(), key=lambda one: (one[0][1], one[0][0])):
        runs = [cell.measured for cell in cells]
        rates = [run.requests_per_s for run in runs]
        times = (f"{median(run.p50_ms for run in runs):.1f}", f"{median(run.p99_ms for run in runs):.1f}")
        spread = f"{min(rates):.0f}-{max(rates):.0f}"
        cpu = f"{median(cell.cpu_ms for cell in cells):.2f}"
        lines.append([title, in_flight, f"{median(rates):.0f}", spread, *times, cpu, sum(run.failed for run in runs)])
    return table(CLOSED_HEADER, lines)


def open_table(found: dict[str, Overload], capacity: float) -> str:
    lines = []
    for title, one in found.items():
        statuses = ", ".join(f"{name} {count}" for name, count in sorted(one.statuses.items()))
        shares = (f"{one.goodput_per_s / capacity:.2f}", f"{one.goodput_per_s / one.capacity:.2f}")
        numbers = (f"{one.goodput_per_s:.0f}", *shares, f"{one.share_in_time:.0%}")
        times = (f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}")
        lines.append([title, *numbers, *times, "yes" if one.valid else "no", statuses])
    return table(OPEN_HEADER, lines)


def capacity_of(found: Cells, title: str) -> float:
    """The best median rate of that side."""
    return max(
        median(cell.measured.requests_per_s for cell in cells) for (name, _), cells in found.items() if name == title
    )


def cpu_ms_of(found: Cells, title: str) -> float:
    """The least median processor time of that side for an answer."""
    return min(median(cell.cpu_ms for cell in cells) for (name, _), cells in found.items() if name == title)


def p99_ms_of(found: Cells, title: str) -> float:
    """The median p99 of that side with the most in flight."""
    _, cells = max((in_flight, cells) for (name, in_flight), cells in found.items() if name == title)
    return median(cell.measured.p99_ms for cell in cells)


def ratios(found: Cells, sides: Mapping[str, Sides]) -> str:
    """Each of ours over each way of Triton's with the same decoder, and over those that decode whole pictures."""
    whole, reduced = (sides[decoder] for decoder in DECODERS)
    pairs = [(own, other) for each in (whole, reduced) for own in each.ours for other in each.tritons]
    pairs += [(own, other) for own in reduced.ours for other in whole.tritons]
    lines = []
    for own, other in pairs:
        rate, p99 = (of(found, own.title) / of(found, other.title) for of in (capacity_of, p99_ms_of))
        cpu = cpu_ms_of(found, other.title) / cpu_ms_of(found, own.title)
        lines.append([own.title, other.title, f"{rate:.2f}", f"{cpu:.2f}", f"{p99:.2f}"])
    return table(RATIO_HEADER, lines)


def run(options: argparse.Namespace) -> Iterator[str]:
    """The report, part by part: a Triton that ends amid the overload leaves what was measured before."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workload = workloads.write(folder)[WORKLOAD]
        with started(workload, folder, options.served_on) as sides:
            os.sched_setaffinity(0, {options.sent_from})
            gc.disable()
            found = closed_loops(sides, workload, options)
            yield (
                f"# A JPEG of 640x480 to its label, all servers on one core: medians of {options.rounds} rounds\n\n"
                f"{closed_table(found)}\n"
            )
            yield f"{ratios(found, sides)}\n"
            if options.only:
                return
            whole, reduced = (sides[decoder] for decoder in DECODERS)
            measured = (*whole.ours, whole.alone, *reduced.ours)
            capacities = {side.title: capacity_of(found, side.title) for side in measured}
            capacity = capacities[whole.alone.title]
            loads, trials = overloads(whole, reduced, workload, capacities, options)
    tried = ", ".join(f"{title.removeprefix('Triton, ')}: {goodput:.0f}" for title, goodput in trials.items())
    yield (
        f"Overload: {OVERLOAD:g} times Triton's {capacity:.0f}/s, deadline {DEADLINE_NS / 1e6:g} ms\n\n"
        f"{open_table(loads, capacity)}\n"
        f"Goodput/s of the queue policies in their trials: {tried}.\n"
        f"Load average of the machine: {os.getloadavg()[0]:.1f} (quiet: about 2).\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=counted, default=2, help="of each closed loop, whole (default: 2)")
    parser.add_argument("--overload-seconds", type=positive, default=4, help="of each overload (default: 4)")
    parser.add_argument("--trial-seconds", type=positive, default=1.5, help="of each policy's trial (default: 1.5)")
    parser.add_argument("--rounds", type=counted, default=3, help="(default: 3)")
    parser.add_argument(
        "--in-flight", type=counted, nargs="+", default=IN_FLIGHT, help="of the closed loops (default: 8 32)"
    )
    parser.add_argument("--only", choices=("closed",), help="no overload")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write over_triton.md into this folder")
    options = parser.parse_args(arguments)
    problems = missing()
    available = cores()
    if len(available) < 2:
        problems.append("two cores are needed: one for the servers, one for the generator")
    if problems:
        sys.stderr.write("".join(f"{problem}\n" for problem in problems))
        return 2
    options.served_on, options.sent_from = available[:2]
    text, status = "", 0
    try:
        for part in run(options):
            text += part
    except (TritonMissing, Unavailable, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        status = 2
    if text:
        publish(text, "over_triton.md", options.out)
    return status


if __name__ == "__main__":
    sys.exit(main())
