"""What the way from `dataplane.submit` to the answers costs a request: checks, queue, batch, forward pass, settling.

    python -m loadtests.benchmarks.scheduler_cost

A tiny MLP on one core of this process, loaded as the server loads it. In each tick of the loop so many requests
arrive together; the next ones come when all are answered. No transport: what a gRPC or REST call costs on top is
not in these numbers. CPU time of the process, so that neighbours on the machine matter little; medians of rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import uvloop

from loadtests.cores import cores
from loadtests.flags import counted
from loadtests.models import tiny_mlp
from loadtests.report import publish, table
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.model_control import ModelControl
from server.pipeline.load import load_pipeline
from server.repository.repository import Repository
from server.served import Served
from server.tensor import Tensor
from server.types import NO_DEADLINE, Form, InferRequest, InferResponse, Outcome

MODEL = "tiny"
TOGETHER = (1, 8, 32)
DEADLINE_NS = 100_000_000
HEADER = ("requests a tick", "us a request", "with a deadline each", "bare forward pass, us a request")


class Callers:
    """Sends `together` requests in one tick, and again once all are answered."""

    def __init__(self, served: Served, together: int, deadline_ns: int) -> None:
        self._served = served
        self._together = together
        self._deadline_ns = deadline_ns
        self._row = np.random.default_rng(0).normal(size=(1, 30)).astype(np.float32).tobytes()
        self._form = Form()
        self._waiting = 0
        self._ticks = 0
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()

    async def run(self, ticks: int) -> float:
        """Microseconds of CPU time a request. Raises the first failure."""
        self._ticks, self._over = ticks, self._loop.create_future()
        began = time.process_time_ns()
        self._send()
        await self._over
        return (time.process_time_ns() - began) / ticks / self._together / 1e3

    def _send(self) -> None:
        now_ns = time.monotonic_ns()
        self._waiting = self._together
        requests = [
            InferRequest(
                MODEL,
                [Tensor("x", "FP32", (1, 30), self._row)],
                on_settle=self._settled,
                received_ns=now_ns,
                # They differ, as those of callers who did not agree on anything do.
                deadline_ns=now_ns + self._deadline_ns - index * 1000 if self._deadline_ns else NO_DEADLINE,
                form=self._form,
            )
            for index in range(self._together)
        ]
        self._served.submit(requests)

    def _settled(self, request: InferRequest, outcome: Outcome) -> None:
        if not isinstance(outcome, InferResponse):
            if not self._over.done():
                self._over.set_exception(outcome)
            return
        self._waiting -= 1
        if self._waiting:
            return
        self._ticks -= 1
        if self._ticks:
            self._loop.call_soon(self._send)
        else:
            self._over.set_result(None)


def bare(session: Any, together: int, passes: int = 2000) -> float:
    """Microseconds a request of nothing but the session, on a batch that lies ready."""
    feed = {"x": np.zeros((together, 30), np.float32)}
    began = time.process_time_ns()
    for _ in range(passes):
        session.run(["y"], feed)
    return (time.process_time_ns() - began) / passes / together / 1e3


async def measure(rounds: int, requests: int) -> list[list[str]]:
    import onnxruntime

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        tiny_mlp().save(Path(folder), MODEL)
        repository = Repository(Path(folder), OnnxRuntimeEngine(1), load_pipeline=load_pipeline, warmup_s=10)
        control = ModelControl(repository, default_max_queue_size=8192)
        await control.load(MODEL)
        served = control.resolve(MODEL)
        session = onnxruntime.InferenceSession(Path(folder) / MODEL / "1" / "model.onnx")
        gc.collect()
        gc.freeze()
        for together in TOGETHER:
            callers = [Callers(served, together, 0), Callers(served, together, DEADLINE_NS)]
            times: list[list[float]] = [[], [], []]
            for _ in range(rounds):
                for index, each in enumerate(callers):
                    times[index].append(await each.run(max(1, requests // together)))
                times[2].append(bare(session, together))
            lines.append([str(together), *(f"{median(values):.2f}" for values in times)])
        await control.close()
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=counted, default=7)
    parser.add_argument("--requests", type=counted, default=20_000, help="of a round (default: 20000)")
    parser.add_argument("--out", type=Path, help="also write scheduler_cost.md into this folder")
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {cores()[0]})
    lines = uvloop.run(measure(options.rounds, options.requests))
    text = "# CPU time of a request without a transport\n\n" + table(HEADER, lines)
    publish(text, "scheduler_cost.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
