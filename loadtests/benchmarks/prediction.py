"""How well the time of a pass is foreseen, pass by pass, with real models on one core.

    python -m loadtests.benchmarks.prediction

Bursts of mixed sizes, and lengths, at a batcher that was seeded by the warm-up. The error of a pass is the difference
between what was foreseen as it began and what it took, over what it took. After some passes to get warm the median
over the next some hundred counts. The batcher's clock is the CPU time of this process: so the numbers are of the
cost model, not of the neighbours on the machine. `--wall` takes the real clock.
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
from statistics import median, quantiles

import numpy as np

from loadtests.cores import cores
from loadtests.flags import counted
from loadtests.models import cnn, mlp, save_encoder
from loadtests.report import publish, table
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.model_control import ModelControl
from server.pipeline.load import load_pipeline
from server.repository.repository import Repository
from server.scheduler.batcher import Batcher
from server.scheduler.plan import Limits
from server.scheduler.queue import QueuePolicy
from server.scheduler.statistics import ModelStatistics
from server.served import Served
from server.serving import costs_of
from server.tensor import Array, Tensor
from server.types import InferRequest, InferResponse, Outcome

HEADER = ("model", "passes", "median error", "90 % quantile", "foreseen/took, all together")
LONGEST = 160

MakeInputs = Callable[[np.random.Generator], dict[str, Array]]


class Passes(ModelStatistics):
    """Keeps what was foreseen of each pass beside what it took."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "1")
        self.pairs: list[tuple[int, int]] = []

    def count_end(self, predicted_ns: int | None, actual_ns: int) -> None:
        super().count_end(predicted_ns, actual_ns)
        if predicted_ns is not None:
            self.pairs.append((predicted_ns, actual_ns))


def picture(dims: tuple[int, ...], rng: np.random.Generator) -> dict[str, Array]:
    return {"x": rng.normal(size=(1, *dims)).astype(np.float32)}


def tokens(rng: np.random.Generator) -> dict[str, Array]:
    length = int(rng.integers(1, LONGEST + 1))
    return {"ids": rng.integers(0, 1000, size=(1, length)), "mask": np.ones((1, length), np.int64)}


def save_models(folder: Path) -> dict[str, tuple[str, MakeInputs]]:
    """By title, the name of a model in `folder` and what makes the inputs of a request."""
    dense, pictures = mlp(), cnn(8)
    dense.save(folder, "mlp")
    pictures.save(folder, "cnn", max_batch_size=8)
    save_encoder(folder, "buckets", buckets="16,32,64,96,128")
    save_encoder(folder, "shapes")
    return {
        "MLP": ("mlp", partial(picture, dense.dims)),
        "CNN": ("cnn", partial(picture, pictures.dims)),
        "transformer, length buckets": ("buckets", tokens),
        "transformer, equal lengths only": ("shapes", tokens),
    }


async def errors(served: Served, make: MakeInputs, warm: int, passes: int, clock: Callable[[], int]) -> list[str]:
    """Send bursts, each when the one before it is answered, until so many passes have been."""
    model = served.model
    statistics = Passes(model.name)
    loop = asyncio.get_running_loop()
    batcher = Batcher(
        model.name,
        "1",
        model.engine_model.instances,
        Limits(model.config.max_batch_size),
        QueuePolicy(),
        costs_of(model),
        statistics,
        loop,
        clock,
        buckets=model.config.buckets,
    )
    rng = np.random.default_rng(0)
    while len(statistics.pairs) < warm + passes:
        burst = [make(rng) for _ in range(int(rng.integers(1, 2 * model.config.max_batch_size + 1)))]
        await _answered(served, batcher, burst, clock)
    await batcher.close()
    pairs = statistics.pairs[warm:]
    off = [abs(foreseen - took) / took for foreseen, took in pairs]
    whole = sum(foreseen for foreseen, _ in pairs) / sum(took for _, took in pairs)
    return [f"{len(pairs)}", f"{median(off):.1%}", f"{quantiles(off, n=10)[-1]:.1%}", f"{whole:.3f}"]


async def _answered(
    served: Served, batcher: Batcher, burst: Sequence[dict[str, Array]], clock: Callable[[], int]
) -> None:
    """Send requests in one tick; returns when all are answered. Raises the first failure."""
    left = len(burst)
    over = asyncio.get_running_loop().create_future()

    def settled(request: InferRequest, outcome: Outcome) -> None:
        nonlocal left
        left -= 1
        if not isinstance(outcome, InferResponse) and not over.done():
            over.set_exception(outcome)
        elif not left and not over.done():
            over.set_result(None)

    requests = []
    for inputs in burst:
        sent = [Tensor.from_numpy(name, array) for name, array in inputs.items()]
        requests.append(InferRequest(served.model.name, sent, on_settle=settled, received_ns=clock()))
        served.check(requests[-1])
    batcher.submit(requests)
    await over


async def measure(warm: int, passes: int, clock: Callable[[], int]) -> list[list[str]]:
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        models = save_models(Path(folder))
        repository = Repository(Path(folder), OnnxRuntimeEngine(1), load_pipeline=load_pipeline, warmup_s=10)
        control = ModelControl(repository, default_max_queue_size=8192)
        for title, (name, make) in models.items():
            await control.load(name)
            lines.append([title, *await errors(control.resolve(name), make, warm, passes, clock)])
        await control.close()
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm", type=int, default=100, help="passes that do not count (default: 100)")
    parser.add_argument("--passes", type=counted, default=400, help="that count (default: 400)")
    parser.add_argument("--wall", action="store_true", help="time passes on the real clock")
    parser.add_argument("--out", type=Path, help="also write prediction.md into this folder")
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {cores()[0]})
    clock = time.monotonic_ns if options.wall else time.process_time_ns
    lines = asyncio.run(measure(options.warm, options.passes, clock))
    text = "# The error of foreseen passes, on one core\n\n" + table(HEADER, lines)
    publish(text, "prediction.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
