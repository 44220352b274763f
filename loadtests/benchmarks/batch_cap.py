"""The cap that the server chooses for its batches, against every fixed batch size, on one core.

    python -m loadtests.benchmarks.batch_cap

Three models: an MLP that gains from batching, a CNN that does not, one in between. "Chosen" is a batcher as
`ModelControl` makes it for an empty ``dynamic_batching {}``, with the costs that the warm-up measured; "fixed" is the
same `Batcher` whose cost model claims that a pass costs the same however many rows it has, so that it always fills
`max_batch_size`. All have more callers than the largest batch has rows.

What is noise, and what is not: rates are rows in a second of the process's CPU time, and so is the clock that the
chosen one learns from, so that a neighbour on the core counts for little. All sizes take short turns, each round in
another order, and within a round the chosen one is compared with each size: a machine that drifts hits both. The
median of these ratios counts, the least of all sizes, and behind it stands its standard error. The chosen one serves
for some seconds before, since what passes cost in service is learned there.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import median, quantiles

import numpy as np

from loadtests.cores import cores
from loadtests.flags import counted, positive
from loadtests.models import Network, between, cnn, mlp
from loadtests.report import publish, table
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.model_control import ModelControl
from server.pipeline.load import load_pipeline
from server.repository.repository import Repository
from server.scheduler.batcher import Batcher
from server.scheduler.cost import CostModel
from server.scheduler.costs import Costs
from server.scheduler.plan import Limits
from server.scheduler.queue import QueuePolicy
from server.scheduler.statistics import ModelStatistics
from server.served import Served
from server.serving import costs_of
from server.tensor import Tensor
from server.types import InferRequest, InferResponse, Outcome

SIZES = (1, 2, 4, 8, 16, 32)
CALLERS = 2 * max(SIZES)
NETWORKS: dict[str, Callable[[], Network]] = {
    "gains (MLP)": mlp,
    "in between": between,
    "gains nothing (CNN)": partial(cnn, 8),
}
HEADER = ("model", *(f"{size}" for size in SIZES), "chosen", "rows/pass", "best", "chosen/best", "error")

Submit = Callable[[Sequence[InferRequest]], None]


class ConstantCost(CostModel):
    """Believes that more rows cost nothing, whatever it is shown: the largest batch is always the best."""

    def observe(self, rows: int, ns: int, overhead_ns: int = 0, cpu_ns: int | None = None) -> None:
        return


class Callers:
    """Callers in this process who send again as soon as they are answered."""

    def __init__(self, submit: Submit, model: str, row: Tensor, loop: asyncio.AbstractEventLoop) -> None:
        self._submit = submit
        self._model = model
        self._row = row
        self._loop = loop
        self._until_ns = 0
        self._active = 0
        self._answered = 0
        self._over: asyncio.Future[None] = loop.create_future()

    async def run(self, seconds: float) -> float:
        """Answers for a second of this process's time on its core. Raises the first failure."""
        began_ns, began_cpu_ns = time.monotonic_ns(), time.process_time_ns()
        self._until_ns = began_ns + int(seconds * 1e9)
        self._active, self._answered, self._over = CALLERS, 0, self._loop.create_future()
        for _ in range(CALLERS):
            self._send()
        await self._over
        return self._answered / (time.process_time_ns() - began_cpu_ns) * 1e9

    def _send(self) -> None:
        request = InferRequest(
            self._model, [self._row], on_settle=self._settled, received_ns=time.monotonic_ns(), model_version="1"
        )
        self._submit((request,))

    def _settled(self, request: InferRequest, outcome: Outcome) -> None:
        if not isinstance(outcome, InferResponse):
            if not self._over.done():
                self._over.set_exception(outcome)
            return
        self._answered += 1
        if time.monotonic_ns() < self._until_ns:
            # In the next turn of the loop, as a caller on a socket would: not within the settling of a batch.
            self._loop.call_soon(self._send)
            return
        self._active -= 1
        if not self._active and not self._over.done():
            self._over.set_result(None)


class Way:
    """A batcher on the instances of `served`, and the checked way in."""

    def __init__(self, served: Served, size: int, costs: Costs, loop: asyncio.AbstractEventLoop) -> None:
        self.statistics = ModelStatistics(served.model.name, "1")
        self._check = served.check
        self.batcher = Batcher(
            served.model.name,
            "1",
            served.model.engine_model.instances,
            Limits(size),
            QueuePolicy(),
            costs,
            self.statistics,
            loop,
            time.process_time_ns,
        )

    def submit(self, requests: Sequence[InferRequest]) -> None:
        for request in requests:
            self._check(request)
        self.batcher.submit(requests)


@dataclass
class Comparison:
    """Rows a second of each fixed size, and of the chosen cap, round by round."""

    fixed: list[list[float]]
    chosen: list[float]
    rows_a_pass: float

    def line(self) -> list[str]:
        middle = [median(rates) for rates in self.fixed]
        ratios = [[mine / its for mine, its in zip(self.chosen, rates, strict=True)] for rates in self.fixed]
        worst = min(range(len(ratios)), key=lambda index: median(ratios[index]))
        lower, _, upper = quantiles(ratios[worst], n=4)
        # Of a median, for errors that are about normal: 1.25 standard deviations, one of which is 0.74 of the range.
        error = 1.25 * 0.74 * (upper - lower) / len(self.chosen) ** 0.5
        rates = [f"{rate:.0f}" for rate in (*middle, median(self.chosen))]
        best = f"{middle[worst]:.0f} ({SIZES[worst]})"
        return [*rates, f"{self.rows_a_pass:.1f}", best, f"{median(ratios[worst]):.3f}", f"{error:.3f}"]


async def compare(served: Served, network: Network, rounds: int, seconds: float, learn_s: float) -> Comparison:
    loop = asyncio.get_running_loop()
    row = Tensor.from_numpy("x", np.random.default_rng(0).normal(size=(1, *network.dims)).astype(np.float32))
    ways = [Way(served, size, ConstantCost({1: 1_000_000, max(2, size): 1_000_000}), loop) for size in SIZES]
    chosen = Way(served, served.model.config.max_batch_size, costs_of(served.model), loop)
    ways.append(chosen)
    callers = [Callers(way.submit, served.model.name, row, loop) for way in ways]
    rates: list[list[float]] = [[] for _ in callers]
    for each in callers[:-1]:
        await each.run(seconds)
    await callers[-1].run(learn_s)
    rows, passes = chosen.statistics.inference_count, chosen.statistics.execution_count
    order = list(range(len(callers)))
    shuffle = Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for index in order:
            rates[index].append(await callers[index].run(seconds))
    rows = chosen.statistics.inference_count - rows
    passes = chosen.statistics.execution_count - passes
    for way in ways:
        await way.batcher.close()
    return Comparison(rates[:-1], rates[-1], rows / passes)


async def measure(rounds: int, seconds: float, learn_s: float) -> list[list[str]]:
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        repository = Repository(Path(folder), OnnxRuntimeEngine(1), load_pipeline=load_pipeline, warmup_s=10)
        control = ModelControl(repository, default_max_queue_size=8192)
        for index, (title, make) in enumerate(NETWORKS.items()):
            network = make()
            network.save(Path(folder), f"m{index}")
            await control.load(f"m{index}")
            comparison = await compare(control.resolve(f"m{index}"), network, rounds, seconds, learn_s)
            lines.append([title, *comparison.line()])
        await control.close()
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=counted, default=20, help="of all sizes (default: 20)")
    parser.add_argument("--seconds", type=positive, default=0.1, help="of each size in a round (default: 0.1)")
    parser.add_argument("--learn", type=float, default=5, help="seconds that the chosen one serves first (default: 5)")
    parser.add_argument("--out", type=Path, help="also write batch_cap.md into this folder")
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {cores()[0]})
    lines = asyncio.run(measure(options.rounds, options.seconds, options.learn))
    text = "# Rows a second by batch size, on one core\n\n" + table(HEADER, lines)
    publish(text, "batch_cap.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
