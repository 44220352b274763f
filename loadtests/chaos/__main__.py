"""A server with two workers at 0.7 of its capacity, or a gateway over two Tritons, while it is harmed by turns.

    python -m loadtests.chaos --seconds 1200
    python -m loadtests.chaos --seconds 300 --over-triton

Processes are killed, stopped for a while and for ever; the disk is full, descriptors run out; bad frames and gzip bombs
come; the model is loaded anew and the certificate changed. The order is by a seed. Every request has a deadline, which
its client only writes down: it sees what the server answers, and when. Exits with 1 if a rule of the table is broken: a
request without exactly one answer in its time, a wrong answer, memory that grows, readiness that was not true.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from loadtests.chaos import verdict
from loadtests.chaos.caller import Question, load
from loadtests.chaos.faults import FAULTS, Fault, Faults, certificate, harm, named
from loadtests.chaos.page import page
from loadtests.chaos.readiness import Readiness
from loadtests.chaos.starved import Starved
from loadtests.chaos.tritons import TRITON_FAULTS, TritonFaults, addresses, running
from loadtests.cores import cores
from loadtests.flags import positive
from loadtests.process import Server, serving
from loadtests.report import publish, table
from loadtests.soak.models import STEADY, save
from loadtests.soak.steady import Asked
from loadtests.soak.verdict import Rule
from loadtests.soak.watch import Watcher
from server.settings import GrpcSettings

_CALLERS = 8
"""Connections, at least."""
_STREAMS = GrpcSettings().max_concurrent_streams // 2
"""Calls under way on one of them, at most: the server refuses twice as many, which is no fault of it."""
_LAST_S = 12.0
"""At the end nothing is done to the server any more: it is to be well then."""


@dataclass(frozen=True)
class Plan:
    seconds: float = 1200
    load: float = 0.7
    capacity_s: float = 5
    deadline_s: float = 1.0
    every_s: float = 8
    """Between two faults, in the mean."""
    growth: float = 0.25
    seed: int = 0
    rate: float = 0.0
    """Requests a second; 0: `load` of what the server is seen to answer."""
    over_triton: bool = False
    """A gateway over two Tritons, which are killed, in place of two workers."""
    only: str = ""
    """Of the faults, those with this text in their names."""


@dataclass
class Seen:
    rate: float
    question: Question
    faults: Faults
    readiness: Readiness
    starved: Starved
    rules: list[Rule]


def chaos(plan: Plan, folder: Path) -> Seen:
    certificate(folder)
    os.environ |= {"FORWARDPASS_AUTH__REFRESH_S": "0.5", "FORWARDPASS_WORKERS__HANG_S": "4"}
    os.environ |= {"FORWARDPASS_WORKERS__MAX_DEATHS": "60"}
    pair = ["--http-tls-certificate", str(folder / "server.pem"), "--http-tls-key", str(folder / "server.key")]
    with ExitStack() as stack:
        if plan.over_triton:
            network, tritons = stack.enter_context(running(folder))
            flags = ["--engine", "triton", "--triton-url", addresses(tritons)]
            make: Callable[..., Faults] = partial(TritonFaults, tritons=tritons)
        else:
            network = save(folder / "models")
            flags = ["--model-control-mode", "explicit", "--load-model", "*", "--workers", "2"]
            make = Faults
        kinds = of_kind(plan)
        row = np.random.default_rng(0).normal(size=(1, *network.dims)).astype(np.float32)
        server = stack.enter_context(serving(folder / "models", folder, tuple(cores()), *pair, *flags))
        return asyncio.run(_see(plan, make(server, folder, Random(plan.seed), kinds=kinds), _question(folder, row)))


def of_kind(plan: Plan) -> tuple[Fault, ...]:
    """What is done; empty: no name has that text in it."""
    return tuple(one for one in (TRITON_FAULTS if plan.over_triton else FAULTS) if plan.only in named(one))


def _question(folder: Path, row: np.ndarray) -> Question:  # type: ignore[type-arg]
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "models" / STEADY / "1" / "model.onnx")
    expected = session.run(None, {"x": row})[0]
    return Question(Asked("", "", row, expected).message(), expected.astype(np.float32).tobytes())


async def _see(plan: Plan, faults: Faults, question: Question) -> Seen:
    server = faults.server
    rate = plan.rate or plan.load * await _capacity(plan, server, question)
    question.asked.clear()
    readiness, starved, watcher = Readiness(), Starved(), Watcher(server, time.monotonic)
    watching = [
        asyncio.create_task(question.lag.watch()),
        asyncio.create_task(readiness.watch(server.http, 0.05)),
        asyncio.create_task(starved.watch(server.pid)),
        asyncio.create_task(_sample(watcher, max(0.5, plan.seconds / 600))),
    ]
    until_s = time.monotonic() + plan.seconds
    await asyncio.gather(
        load(question, server.grpc, rate, plan.deadline_s, until_s, callers(rate, plan.deadline_s)),
        harm(faults, plan.every_s, until_s - _LAST_S),
    )
    for task in watching:
        task.cancel()
    kinds = math.floor((plan.seconds - _LAST_S) / plan.every_s / 2)
    rules = verdict.judge(question.asked, faults, readiness, watcher.samples, plan.growth, kinds, starved)
    return Seen(rate, question, faults, readiness, starved, rules)


def callers(rate: float, deadline_s: float) -> int:
    """How many connections it takes, where an engine that stalls lets all calls wait until their deadline."""
    return max(_CALLERS, math.ceil(rate * deadline_s / _STREAMS))


async def _sample(watcher: Watcher, every_s: float) -> None:
    """As `Watcher.watch`, but a process may end while it is looked at, and the metrics may not be there."""
    while True:
        with suppress(OSError, ValueError):
            watcher.samples.append(await watcher.look())
        await asyncio.sleep(every_s)


async def _capacity(plan: Plan, server: Server, question: Question) -> float:
    """The most that was answered in time of what was asked at rising rates."""
    best, rate = 0.0, 100.0
    while True:
        question.asked.clear()
        until_s = time.monotonic() + plan.capacity_s / 5
        await load(question, server.grpc, rate, 0.2, until_s, _CALLERS)
        answered = sum(one.right for one in question.asked) / (plan.capacity_s / 5)
        if answered < 0.9 * rate:
            return max(best, answered)
        best, rate = answered, rate * 1.6


def report(seen: Seen, plan: Plan) -> str:
    ends = verdict.outcomes(seen.question.asked)
    lines = [("requests a second, asked", f"{seen.rate:.0f}"), ("requests", f"{len(seen.question.asked)}")]
    lines += [(f"of them {name}", f"{count}") for name, count in ends.most_common()]
    lines += [("part of the time that it was ready", f"{seen.readiness.part():.3f}")]
    lines += [("late by the clock alone", f"{sum(verdict.is_late(one) for one in seen.question.asked)}")]
    lines += [("longest wait of the server for a core in a second, ms", f"{seen.starved.most() * 1e3:.0f}")]
    done = [(event.name, f"{event.ended_s - event.begun_s:.1f} s", event.told) for event in seen.faults.events]
    kind = ", over two Tritons" if plan.over_triton else ""
    late = verdict.latest(seen.question.asked, seen.faults, seen.starved)
    return "\n".join(
        [
            f"# {plan.seconds:g} s of chaos at {plan.load:g} of the capacity{kind}, seed {plan.seed}",
            table(("what", "seen"), lines),
            table(("rule", "found", "allowed", "kept"), [rule.line() for rule in seen.rules]),
            table(("fault", "for", "what came of it"), done),
            *(
                [table(("late at", "fault", "what", "how many", "by at most", "waited for a core"), late)]
                if late
                else []
            ),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=positive, default=Plan.seconds, help="of the run (default: 1200)")
    parser.add_argument("--load", type=positive, default=Plan.load, help="of the capacity (default: 0.7)")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, instead of a part of the capacity")
    parser.add_argument("--every", type=positive, default=Plan.every_s, help="seconds between faults (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the faults")
    parser.add_argument("--only", default="", help='faults with this text in their names, as "the engine"')
    parser.add_argument("--over-triton", action="store_true", help="a gateway over two Tritons, which are killed too")
    parser.add_argument("--out", type=Path, help="also write chaos.md and chaos.html into this folder")
    options = parser.parse_args(arguments)
    plan = Plan(
        options.seconds,
        options.load,
        every_s=options.every,
        seed=options.seed,
        rate=options.rate,
        over_triton=options.over_triton,
        only=options.only,
    )
    if not of_kind(plan):
        parser.error(f"--only: no fault has {options.only!r} in its name")
    with tempfile.TemporaryDirectory() as folder:
        seen = chaos(plan, Path(folder))
    text = report(seen, plan)
    publish(text, "chaos.md", options.out)
    if options.out:
        title = text.partition("\n")[0].removeprefix("# ")
        shown = page(title, seen.question.asked, seen.faults.events, seen.readiness, seen.rules)
        (options.out / "chaos.html").write_text(shown)
    return 0 if all(rule.kept for rule in seen.rules) else 1


if __name__ == "__main__":
    sys.exit(main())
