"""What Python's garbage collector costs the hot path, by how it is set.

    python -m loadtests.benchmarks.collector

The shipped `breast_cancer` on the real data plane, in this process, with callers who send again as soon as they are
answered. The settings take turns in short rounds. "pauses" are the collector's own, seen through `gc.callbacks`;
latencies are from sending a request to its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.cores import cores
from loadtests.flags import counted, positive
from loadtests.report import publish, table
from server.app import Server
from server.environment import load_settings
from server.tensor import Tensor
from server.types import InferRequest, InferResponse, Outcome

MODEL = "breast_cancer"
CALLERS = 256
HEADER = ("collector", "answers/s", "p50 us", "p99 us", "p99.9 us", "pauses/s", "longest us", "of the time")


@dataclass
class Setting:
    """A way to set the collector, and what was seen under it."""

    name: str
    apply: Callable[[], None]
    latencies_ns: list[int] = field(default_factory=list)
    pauses_ns: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> list[str]:
        p50, p99, p999 = np.percentile(self.latencies_ns, (50, 99, 99.9)) / 1000
        pauses = self.pauses_ns or [0]
        return [
            self.name,
            f"{len(self.latencies_ns) / self.seconds:.0f}",
            *(f"{value:.0f}" for value in (p50, p99, p999)),
            f"{len(self.pauses_ns) / self.seconds:.1f}",
            f"{max(pauses) / 1000:.0f}",
            f"{sum(pauses) / 1e9 / self.seconds:.2%}",
        ]


def frozen(threshold: int) -> Callable[[], None]:
    def apply() -> None:
        gc.freeze()
        gc.set_threshold(threshold, 10, 10)

    return apply


SETTINGS = (
    ("Python's own", lambda: None),
    ("frozen", frozen(700)),
    ("frozen, threshold 10,000", frozen(10_000)),
    ("frozen, threshold 100,000", frozen(100_000)),
    ("off", gc.disable),
)


def reset() -> None:
    gc.unfreeze()
    gc.enable()
    gc.set_threshold(700, 10, 10)
    gc.collect()


class Callers:
    """Callers in this process who send again as soon as they are answered, in the next turn of the loop."""

    def __init__(self, server: Server, row: Tensor) -> None:
        self._submit = server.dataplane.submit
        self._row = row
        self._loop = asyncio.get_running_loop()

    async def run(self, setting: Setting, seconds: float) -> None:
        loop, latencies_ns = self._loop, setting.latencies_ns
        until_ns = time.monotonic_ns() + int(seconds * 1e9)
        active, over = CALLERS, loop.create_future()

        def send() -> None:
            now_ns = time.monotonic_ns()
            self._submit([InferRequest(MODEL, [self._row], on_settle=settled, received_ns=now_ns)])

        def settled(request: InferRequest, outcome: Outcome) -> None:
            nonlocal active
            now_ns = time.monotonic_ns()
            assert isinstance(outcome, InferResponse), outcome
            latencies_ns.append(now_ns - request.received_ns)
            if now_ns < until_ns:
                loop.call_soon(send)
                return
            active -= 1
            if not active:
                over.set_result(None)

        for _ in range(CALLERS):
            send()
        await over
        setting.seconds += seconds


class Watch:
    """Counts the collector's pauses into whichever setting is current."""

    def __init__(self) -> None:
        self.current: Setting | None = None
        self._began_ns = 0

    def __call__(self, phase: str, _info: dict[str, Any]) -> None:
        if phase == "start":
            self._began_ns = time.perf_counter_ns()
        elif self.current is not None:
            self.current.pauses_ns.append(time.perf_counter_ns() - self._began_ns)


async def measure(rounds: int, seconds: float) -> list[list[str]]:
    ports = {"http": {"port": 0}, "grpc": {"port": 0}, "metrics": {"port": 0}}
    server = Server(load_settings({**ports, "engine": {"threads": 1}}))
    await server.start()
    inputs = server.models.resolve(MODEL).model.config.inputs
    row = Tensor.from_numpy(inputs[0].name, np.zeros((1, *inputs[0].dims), np.float32))
    settings = [Setting(name, apply) for name, apply in SETTINGS]
    callers, watch = Callers(server, row), Watch()
    await callers.run(Setting("warm", lambda: None), seconds)
    gc.callbacks.append(watch)
    for _ in range(rounds):
        for setting in settings:
            reset()
            setting.apply()
            watch.current = setting
            await callers.run(setting, seconds)
            watch.current = None
    gc.callbacks.remove(watch)
    reset()
    await server.drain()
    return [setting.line() for setting in settings]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=counted, default=6, help="of all settings (default: 6)")
    parser.add_argument("--seconds", type=positive, default=1.0, help="of each setting in a round (default: 1)")
    parser.add_argument("--out", type=Path, help="also write collector.md into this folder")
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {cores()[0]})
    lines = asyncio.run(measure(options.rounds, options.seconds))
    text = f"# The garbage collector on the hot path, {CALLERS} callers, one core\n\n" + table(HEADER, lines)
    publish(text, "collector.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
