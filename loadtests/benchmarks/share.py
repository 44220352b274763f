"""Two models on the same cores, for real: one far beyond its capacity, one with little to do; with and without share.

    python -m loadtests.benchmarks.share

A is a CNN on four instances of one thread, offered `--load` times what all cores can do; B is asked for a tenth of
the cores. Open loop, one row a request, in this process: the real path from `Served.submit` to ONNX Runtime. Two
kinds of A: passes about as long as B's, and passes ten times as long. With and without take turns in short rounds,
and all answers of all rounds count. Latency counts from the time that a request was due.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import numpy as np

from loadtests.arrivals import poisson
from loadtests.cores import cores
from loadtests.flags import counted, positive
from loadtests.models import Network, cnn
from loadtests.report import publish, table
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.model_control import ModelControl
from server.pipeline.load import load_pipeline
from server.repository.repository import Repository
from server.scheduler.share import Share
from server.served import Served
from server.tensor import Tensor
from server.types import InferRequest, InferResponse, Outcome

MS = 1_000_000
INSTANCES = 4
B_LAYERS = 16
KINDS = {"as long as B's": B_LAYERS, "10 times as long": 10 * B_LAYERS}
"""Layers of A by the kind of its passes."""
HEADER = (
    "A's passes",
    "share",
    "A's pass, ms",
    "B's pass, ms",
    "A rows/s",
    "B in time",
    "B p50, ms",
    "B p99, ms",
    "cores busy",
    "of it the loop",
)


@dataclass
class Result:
    """Of one way, all rounds together."""

    offered: int = 0
    """Of B."""
    latencies_ns: list[int] = field(default_factory=list)
    """Of B's answers."""
    a_rows: int = 0
    seconds: float = 0.0
    busy_s: float = 0.0
    """CPU time of this process."""
    loop_s: float = 0.0
    """CPU time of its event loop, requests included."""

    def quantile_ms(self, q: float) -> float:
        ordered = sorted(self.latencies_ns)
        return ordered[ceil(q * len(ordered)) - 1] / MS if ordered else float("nan")


class Stream:
    """Requests to one model at the times of a Poisson process."""

    def __init__(self, served: Served, network: Network, rate_per_s: float, deadline_ms: float, seed: int) -> None:
        self._served = served
        self._row = Tensor.from_numpy("x", np.zeros((1, *network.dims), dtype=np.float32))
        self._rate_per_s = rate_per_s
        self._deadline_ns = int(deadline_ms * MS)
        self._seed = seed
        self.offered = 0
        self.latencies_ns: list[int] = []
        self._open = 0
        self._over = asyncio.Event()

    async def run(self, seconds: float) -> None:
        """Returns when all are settled."""
        self._seed += 1
        began_ns = time.monotonic_ns()
        for at_ns in poisson(self._rate_per_s, seconds, self._seed):
            wait_ns = began_ns + at_ns - time.monotonic_ns()
            if wait_ns > 0:
                await asyncio.sleep(wait_ns / 1e9)
            self._send(began_ns + at_ns)
        while self._open:
            self._over.clear()
            await self._over.wait()

    def _send(self, due_ns: int) -> None:
        self.offered += 1
        self._open += 1
        request = InferRequest(
            self._served.model.name,
            [self._row],
            on_settle=self._settled,
            received_ns=due_ns,
            deadline_ns=due_ns + self._deadline_ns,
        )
        self._served.submit([request])

    def _settled(self, request: InferRequest, outcome: Outcome) -> None:
        self._open -= 1
        if isinstance(outcome, InferResponse):
            self.latencies_ns.append(time.monotonic_ns() - request.received_ns)
        self._over.set()


def pass_ns(served: Served) -> int:
    """Of one row, as the warm-up measured it: with one pass at a time."""
    return served.model.costs_ns["cpu"][None][1]


class Way:
    """A server of its own for the two models, with the share or without."""

    def __init__(self, folder: Path, shared: bool) -> None:
        engine = OnnxRuntimeEngine(1)
        repository = Repository(folder, engine, load_pipeline=load_pipeline, warmup_s=10)
        share = Share(len(cores())) if shared else None
        self.shared = shared
        self.control = ModelControl(repository, default_max_queue_size=8192, share=share)
        self.result = Result()

    async def start(self) -> None:
        await self.control.load("a")
        await self.control.load("b")

    async def round(
        self, networks: Sequence[Network], load: float, seconds: float, seed: int, costs: Sequence[int]
    ) -> None:
        """One round, counted. `costs`: of a pass of A and of B."""
        rates = [load * len(cores()) * 1e9 / costs[0], 0.1 * len(cores()) * 1e9 / costs[1]]
        deadlines_ms = [max(500.0, 20 * costs[0] / MS), 1000.0]
        a, b = (
            Stream(self.control.resolve(name), network, rate, deadline_ms, seed + place)
            for place, (name, network, rate, deadline_ms) in enumerate(
                zip("ab", networks, rates, deadlines_ms, strict=True)
            )
        )
        rows = self.control.resolve("a").statistics.inference_count
        began, cpu, loop = time.monotonic(), time.process_time(), time.thread_time()
        await asyncio.gather(a.run(seconds), b.run(seconds))
        result = self.result
        result.seconds += time.monotonic() - began
        result.busy_s += time.process_time() - cpu
        result.loop_s += time.thread_time() - loop
        result.a_rows += self.control.resolve("a").statistics.inference_count - rows
        result.offered += b.offered
        result.latencies_ns += b.latencies_ns


async def compare(layers: int, load: float, rounds: int, seconds: float) -> list[list[str]]:
    """The lines of the table for one kind of A."""
    with tempfile.TemporaryDirectory() as folder:
        networks = cnn(layers), cnn(B_LAYERS)
        group = f"instance_group {{ count: {INSTANCES} kind: KIND_CPU }}"
        networks[0].save(Path(folder), "a", max_batch_size=1, more=group)
        networks[1].save(Path(folder), "b", max_batch_size=1)
        ways = [Way(Path(folder), shared) for shared in (False, True)]
        for way in ways:
            await way.start()
        costs = [min(pass_ns(way.control.resolve(name)) for way in ways) for name in "ab"]
        for number in range(rounds + 1):
            for way in ways:
                if number == 1:
                    way.result = Result()
                await way.round(networks, load, seconds, 100 * number, costs)
        for way in ways:
            await way.control.close()
        return [_line(way, costs) for way in ways]


def _line(way: Way, costs: Sequence[int]) -> list[str]:
    result = way.result
    in_time = f"{len(result.latencies_ns) / max(1, result.offered):.3f}"
    figures = [result.a_rows / result.seconds, result.quantile_ms(0.5), result.quantile_ms(0.99)]
    rows, p50, p99 = (f"{value:.1f}" for value in figures)
    passes = [f"{ns / MS:.1f}" for ns in costs]
    return [
        "with" if way.shared else "without",
        *passes,
        rows,
        in_time,
        p50,
        p99,
        f"{result.busy_s / result.seconds:.2f}",
        f"{result.loop_s / result.seconds:.2f}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=counted, default=4, help="of each way, after one that does not count (default: 4)"
    )
    parser.add_argument("--seconds", type=positive, default=2.0, help="of a round (default: 2)")
    parser.add_argument("--load", type=positive, default=3.0, help="of A, over all cores (default: 3)")
    parser.add_argument("--out", type=Path, help="also write share.md into this folder")
    options = parser.parse_args(arguments)
    lines = []
    for title, layers in KINDS.items():
        compared = asyncio.run(compare(layers, options.load, options.rounds, options.seconds))
        lines += [[title, *line] for line in compared]
    text = f"# Two models on {len(cores())} cores, A offered {options.load:g} times what they can do\n\n"
    text += table(HEADER, lines)
    publish(text, "share.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
