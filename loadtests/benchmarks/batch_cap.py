"""The cap that the server chooses for its batches, against every fixed batch size, on one core.

    python -m loadtests.benchmarks.batch_cap

Three models: an MLP that gains from batching, a CNN that does not, one in between. "Chosen" is the real path,
loaded and warmed up by `ModelControl` with an empty ``dynamic_batching {}``; "fixed" is the same engine and the
same `Batcher` whose cost model claims that a pass costs the same however many rows it has, so that it always
fills `max_batch_size`. Both have more callers than the largest batch has rows. The sizes take turns in short
rounds, so that a noisy moment hits all of them, and the median round counts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from loadtests.cores import cores
from loadtests.models import Network, between, cnn, mlp
from loadtests.report import table
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.model_control import ModelControl, Served
from server.pipeline.load import load_pipeline
from server.repository.repository import Repository
from server.scheduler.batcher import Batcher
from server.scheduler.cost import CostModel
from server.scheduler.plan import Limits
from server.scheduler.queue import QueuePolicy
from server.scheduler.statistics import ModelStatistics
from server.types import InferRequest, InferResponse, Outcome, Tensor

SIZES = (1, 2, 4, 8, 16, 32)
CALLERS = 2 * max(SIZES)
NETWORKS: dict[str, Callable[[], Network]] = {
    "gains (MLP)": mlp,
    "in between": between,
    "gains nothing (CNN)": partial(cnn, 8),
}
HEADER = ("model", *(f"{size}" for size in SIZES), "chosen", "rows/pass", "best", "chosen/best")

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
        """Answers a second. Raises the first failure."""
        began_ns = time.monotonic_ns()
        self._until_ns = began_ns + int(seconds * 1e9)
        self._active, self._answered, self._over = CALLERS, 0, self._loop.create_future()
        for _ in range(CALLERS):
            self._send()
        await self._over
        return self._answered / (time.monotonic_ns() - began_ns) * 1e9

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


def fixed_batcher(served: Served, size: int, loop: asyncio.AbstractEventLoop) -> tuple[Batcher, Submit]:
    """A batcher that always fills `size` rows, on the instances of `served`, and its checked way in."""
    name = served.model.name
    batcher = Batcher(
        name,
        "1",
        served.model.engine_model.instances,
        Limits(size),
        QueuePolicy(),
        ConstantCost({1: 1_000_000, max(2, size): 1_000_000}),
        ModelStatistics(name, "1"),
        loop,
    )

    def submit(requests: Sequence[InferRequest]) -> None:
        for request in requests:
            served.check(request)
        batcher.submit(requests)

    return batcher, submit


async def compare(served: Served, network: Network, rounds: int, seconds: float) -> tuple[list[float], float, float]:
    """Rows a second of each fixed size, of the chosen cap, and the rows a pass that the latter had."""
    loop = asyncio.get_running_loop()
    row = Tensor.from_numpy("x", np.random.default_rng(0).normal(size=(1, *network.dims)).astype(np.float32))
    fixed = [fixed_batcher(served, size, loop) for size in SIZES]
    ways: list[Submit] = [*(submit for _, submit in fixed), served.submit]
    callers = [Callers(submit, served.model.name, row, loop) for submit in ways]
    rates: list[list[float]] = [[] for _ in callers]
    for each in callers:
        await each.run(seconds / 2)
    statistics = served.statistics
    rows, passes = statistics.inference_count, statistics.execution_count
    for _ in range(rounds):
        for index, each in enumerate(callers):
            rates[index].append(await each.run(seconds))
    rows_a_pass = (statistics.inference_count - rows) / (statistics.execution_count - passes)
    for batcher, _ in fixed:
        await batcher.close()
    middle = [median(values) for values in rates]
    return middle[:-1], middle[-1], rows_a_pass


async def measure(rounds: int, seconds: float) -> list[list[str]]:
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        repository = Repository(Path(folder), OnnxRuntimeEngine(1), load_pipeline=load_pipeline, warmup_s=10)
        control = ModelControl(repository, default_max_queue_size=8192)
        for index, (title, make) in enumerate(NETWORKS.items()):
            network = make()
            network.save(Path(folder), f"m{index}")
            await control.load(f"m{index}")
            fixed, chosen, rows = await compare(control.resolve(f"m{index}"), network, rounds, seconds)
            best = max(fixed)
            rates = [f"{rate:.0f}" for rate in (*fixed, chosen)]
            size = SIZES[fixed.index(best)]
            lines.append([title, *rates, f"{rows:.1f}", f"{best:.0f} ({size})", f"{chosen / best:.3f}"])
        await control.close()
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of all sizes (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.4, help="of each size in a round (default: 0.4)")
    parser.add_argument("--out", type=Path, help="also write batch_cap.md into this folder")
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {cores()[0]})
    lines = asyncio.run(measure(options.rounds, options.seconds))
    text = "# Rows a second by batch size, on one core\n\n" + table(HEADER, lines)
    sys.stdout.write(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "batch_cap.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
